"""What a call costs at list price: the one place that knows prices."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRICES: dict[str, Any] = json.loads(Path(__file__).with_name("prices.json").read_bytes())

# The date at the end of gpt-4o-2024-08-06, gpt-3.5-turbo-0125, claude-…-20250514.
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$", re.ASCII)
_MOST_TOKENS = 10**12  # a larger count is no count
_NOW = "~"  # later than every date


def cost_of(record: Mapping[str, Any]) -> float | None:
    """US dollars at list price, or None when the tokens or the price are not known.

    The model that answered sets the price, for the one asked for may be an alias. The offline
    provider has no price list: its calls are unpriced, not sold for nothing. A record without
    a time has today's price.
    """
    rows = _rows(str(record.get("provider")), str(record.get("answered_model")))
    prompt, completion = count(record.get("prompt_tokens")), count(record.get("completion_tokens"))
    if not rows or prompt is None or completion is None:
        return None
    price = rows[0] if len(rows) == 1 else _price(rows, prompt, record.get("time"))
    cached = min(count(record.get("cached_tokens")) or 0, prompt)
    cost = (prompt - cached) * price["input"] + cached * price.get("cached", price["input"])
    return float(cost + completion * price["output"]) / 1_000_000


def is_priced(provider: str, model: str) -> bool:
    """Whether calls that are answered by this model of this provider have a price."""
    return bool(_rows(provider, model))


def count(value: object) -> int | None:
    """A number of tokens, also when another tool has written it as 10.0; None if it is none."""
    if type(value) is int:
        return value if 0 <= value <= _MOST_TOKENS else None
    return count(int(value)) if isinstance(value, float) and value.is_integer() else None


def _price(rows: Sequence[dict[str, Any]], prompt: int, time: object) -> dict[str, Any]:
    when = time if isinstance(time, str) else _NOW
    for row in rows[:-1]:
        if prompt > row.get("over", -1) and ("before" not in row or when < row["before"]):
            return row
    return rows[-1]


@functools.lru_cache(1024)
def _rows(provider: str, model: str) -> Sequence[dict[str, Any]]:
    models = PRICES["providers"].get(provider, {}).get("models", {})
    return models.get(model) or models.get(_SNAPSHOT.sub("", model)) or ()
