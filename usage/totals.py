"""What usage records add up to, in memory that grows with their groups, not with their number."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from usage.prices import cost_of, count, is_priced

GROUPS = {
    "brand": "brand_id",
    "requester": "requested_by",
    "model": "model",
    "caller": "caller",
    "code": "code",
    "cause": "cause",
    "upstream-status": "upstream_status",
    "day": "time",
}
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
COUNTS = ("calls", "errors", "hang_ups", *TOKENS, "unpriced")
COLUMNS = (*COUNTS, "usd", "p50_ms", "p95_ms")

# Durations are counted in steps of 0.2 %: a percentile is 0.1 % off at most.
_STEPS_PER_E = 500
_LONGEST_MS = 1e9


class Totals:
    """The sums of some calls; durations are those of all calls, however they ended."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.usd = 0.0
        self._durations = Counter[int]()

    def add(self, record: Mapping[str, Any], cost: float | None) -> None:
        """Count one call; `cost` None is unknown."""
        counts = self.counts
        counts["calls"] += 1
        counts["errors"] += record.get("status") == "error"
        counts["hang_ups"] += record.get("status") == "client_disconnect"
        counts["unpriced"] += cost is None
        self.usd += cost or 0
        for name in TOKENS:
            if value := record.get(name):
                counts[name] += count(value) or 0
        duration = record.get("duration_ms")
        if isinstance(duration, (float, int)) and 0 <= duration < _LONGEST_MS:
            self._durations[int(_STEPS_PER_E * math.log(duration + 1) + 0.5)] += 1

    def merge(self, other: "Totals") -> None:
        """Count all that another one has counted."""
        self.usd += other.usd
        self._durations.update(other._durations)
        for name, number in other.counts.items():
            self.counts[name] += number

    def row(self) -> dict[str, float | None]:
        """The numbers of COLUMNS, in that order; None is unknown."""
        usd = None if self.counts["unpriced"] == self.counts["calls"] else round(self.usd, 8)
        times = {"p50_ms": self._percentile_ms(0.50), "p95_ms": self._percentile_ms(0.95)}
        return {**self.counts, "usd": usd, **times}

    def _percentile_ms(self, share: float) -> float | None:
        left = math.ceil(self._durations.total() * share)
        for step, calls in sorted(self._durations.items()):
            left -= calls
            if left <= 0:
                return round(math.exp(step / _STEPS_PER_E) - 1, 1)
        return None


class Report:
    """The totals of each group and of all, and the calls of each model without a price."""

    def __init__(self, records: Iterable[Mapping[str, Any]], by: str) -> None:
        self.by = by
        self.total = Totals()
        self.unpriced_models = Counter[str]()
        groups: defaultdict[str | None, Totals] = defaultdict(Totals)
        for record in records:
            cost = cost_of(record)
            groups[self._group(record)].add(record, cost)
            if cost is None:
                self._note_model(record.get("provider"), record.get("answered_model"))
        for totals in groups.values():
            self.total.merge(totals)
        self.groups = sorted(groups.items(), key=self._rank)

    def _group(self, record: Mapping[str, Any]) -> str | None:
        value = record.get(GROUPS[self.by])
        name = str(value) if type(value) in (str, int) else None
        return name[:10] if name and self.by == "day" else name

    def _rank(self, group: tuple[str | None, Totals]) -> tuple[float, float, str]:
        name, totals = group
        if self.by == "day":
            return 0, 0, name or ""
        return -totals.usd, -totals.counts["calls"], name or ""  # the dearest first

    def _note_model(self, provider: Any, model: Any) -> None:
        if isinstance(provider, str) and isinstance(model, str) and not is_priced(provider, model):
            self.unpriced_models[f"{provider}/{model}"] += 1
