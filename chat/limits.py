"""Limits that hold: calls, tokens and US dollars of a brand or caller in a minute, day or month.

Calls are counted before the call, in one step with the look at what is left, so that a limit on
calls is exact. Tokens and dollars are looked at before and added after, from the usage record.
"""

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from chat.stores import UNLIMITED, Backend, Counter, Store
from core import errors
from core.errors import ServiceError
from core.limit import Limit
from core.settings import Settings

# What a price function says of a usage record: US dollars, or None where it cannot know.
Price = Callable[[Mapping[str, Any]], float | None]

MAX_NAME_CHARACTERS = 64
# Stores count in whole numbers; a token may cost less than a millionth of a dollar.
PARTS = {"calls": 1, "tokens": 1, "USD": 10**9}
SECONDS = {"minute": 60, "day": 86_400}
# Of so many callers and brands the names of their counters are kept, for as long as they hold.
_CACHED = 500
# The longest wait that openai-python and openai-node obey.
MAX_WAIT_S = 60


class Limits:
    """The limits of the settings; without any, its methods do nothing and no store is opened."""

    def __init__(
        self, settings: Settings, price: Price, clock: Callable[[], float] = time.time
    ) -> None:
        self.limits = settings.limits
        self._most = {one: int(one.number * PARTS[one.unit]) for one in settings.limits}
        self._has_dollars = any(limit.unit == "USD" for limit in settings.limits)
        self._price = price
        self.clock = clock
        self.store = Store(_connector(settings)) if settings.limits else None
        self._counted = lru_cache(_CACHED)(self._limits_of)

    def check(self, caller: str, brand_id: str) -> None:
        """Count one call; raises ServiceError, having counted nothing, if a limit is spent."""
        if self.store is None:
            return
        now = self.clock()
        limits = self._counted(caller, brand_id, int(now) // 60)
        full = self.store.take(list(limits), now) if limits else None
        if full is not None:
            raise _refusal(limits[full], full.ends, now)

    def count(self, caller: str, brand_id: str, record: Mapping[str, Any]) -> bool:
        """Add what a call has used; False if a dollar limit could not count it without a price."""
        tokens = _tokens(record)
        if self.store is None or not tokens:
            return True
        now, price = self.clock(), self._price(record) if self._has_dollars else None
        used = {"calls": 0, "tokens": tokens, "USD": round((price or 0.0) * PARTS["USD"])}
        limits = self._counted(caller, brand_id, int(now) // 60)
        adding = [
            Counter(counter.ends, counter.key, UNLIMITED, adds)
            for counter, limit in limits.items()
            if (adds := used[limit.unit])
        ]
        if adding:
            self.store.take(adding, now)
        is_priced = price is not None or not self._has_dollars
        return is_priced or all(limit.unit != "USD" for limit in limits.values())

    def _limits_of(self, caller: str, brand_id: str, minute: int) -> dict[Counter, Limit]:
        """What counts a call, and why; where two limits look at one number, the lower decides."""
        found: dict[str, tuple[Counter, Limit]] = {}
        for limit, most in self._most.items():
            name = brand_id if limit.scope == "brand" else caller
            if limit.name is None or limit.name == name:
                key = counter_key(limit, name)
                if key not in found or most < found[key][0].most:
                    ends = window_end(limit.window, minute * 60)
                    adds = 1 if limit.unit == "calls" else 0
                    found[key] = Counter(ends, key, most, adds), limit
        return dict(found.values())


def counter_key(limit: Limit, name: str) -> str:
    """What tells a counter from others of its window: the name, which may be anything, is last."""
    return f"{limit.scope} {limit.unit}/{limit.window} {_bounded(name)}"


def window_end(window: str, now: float) -> int:
    """When the calendar minute, day or month (UTC) ends, in seconds since 1970."""
    if window in SECONDS:
        return (int(now) // SECONDS[window] + 1) * SECONDS[window]
    today = datetime.fromtimestamp(now, UTC)
    year, month = divmod(today.year * 12 + today.month, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp())


def _bounded(name: str) -> str:
    if len(name) <= MAX_NAME_CHARACTERS and name.isprintable():
        return name
    # Longer than any name that stays as it is, so that none can pass for another.
    return "sha256=" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _tokens(record: Mapping[str, Any]) -> int:
    if record["total_tokens"] is not None:
        return int(record["total_tokens"])
    return (record["prompt_tokens"] or 0) + (record["completion_tokens"] or 0)


def _refusal(limit: Limit, ends: int, now: float) -> ServiceError:
    kind = errors.RATE_LIMITED if limit.window == "minute" else errors.BUDGET_EXHAUSTED
    until = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wait_s = math.ceil(ends - now)
    text = f"The limit `{limit.text}` is used up until {until}."
    return ServiceError(kind, text, retry_after=str(wait_s), is_final=wait_s > MAX_WAIT_S)


def _connector(settings: Settings) -> Callable[[], Backend]:
    # Imported where they are used: SQLite takes 1 MiB, redis 6 MiB and half a second.
    if settings.redis_url is None:
        from chat.sqlite_store import SQLite

        return lambda: SQLite(settings.limits_file)
    from chat.redis_store import redis_at

    return redis_at(settings.redis_url, settings.redis_ca_bundle)
