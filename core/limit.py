"""What may be limited: calls, tokens and US dollars of a brand or caller in a window of time."""

import re
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import unquote

_LIMIT = re.compile(
    r"(brand|caller) +(\S+) +(\d{1,15}(?= +[ct])|\d{1,6}(?:\.\d{1,6})?(?= +U)) +"
    r"(calls|tokens|USD)/(minute|day|month)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """How much one brand or caller, or each of them for itself, may use in a window."""

    text: str  # as the operator wrote it
    scope: str  # brand or caller
    name: str | None  # None: each one for itself
    number: Decimal
    unit: str  # calls, tokens or USD
    window: str  # minute, day or month


def parse_limits(text: str) -> tuple[Limit, ...]:
    """The limits in a list of `brand loop 10 calls/minute`; ValueError where it is none."""
    limits = []
    for entry in text.split(";"):
        found = _LIMIT.fullmatch(entry.strip(" "))
        if not found or not Decimal(found[3]):
            raise ValueError
        scope, name, number, unit, window = found.groups()
        written = " ".join(found.groups()[:4]) + f"/{window}"
        limits.append(Limit(written, scope, _name(name), Decimal(number), unit, window))
    if len({(one.scope, one.name, one.unit, one.window) for one in limits}) < len(limits):
        raise ValueError
    return tuple(limits)


def _name(text: str) -> str | None:
    """A name as in a URL: %20 is a space, %3B a semicolon; None for *, which is each."""
    if not text.isprintable() or re.search("%(?![0-9A-Fa-f]{2})", text):
        raise ValueError
    return None if text == "*" else unquote(text, errors="strict")
