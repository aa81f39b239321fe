"""`flask usage`: what the usage records of a log add up to, per brand, requester or model."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import click

PRICES: dict[str, Any] = json.loads(Path(__file__).with_name("prices.json").read_bytes())

GROUPS = {"brand": "brand_id", "requester": "requested_by", "model": "model"}
COUNTS = ["calls", "errors", "hang-ups", "prompt tokens", "completion tokens", "unpriced"]
COLUMNS = [*COUNTS, "USD", "p50 ms", "p95 ms"]

# The date at the end of gpt-4o-2024-08-06, gpt-3.5-turbo-0125, claude-…-20250514.
SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$", re.ASCII)


class Call(NamedTuple):
    """What the table needs of one usage record; `cost` None is unknown."""

    status: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    duration_ms: float


def usage_records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The usage records among the lines of a log, whatever a router wrote before each.

    Other lines, and records that were cut off, are passed over.
    """
    for line in lines:
        try:
            record = json.loads(line[line.index("{") :])
        except (ValueError, RecursionError):
            continue
        if record.get("event") == "usage":
            yield record


def cost_of(record: Mapping[str, Any]) -> float | None:
    """US dollars at list price, or None when the tokens or the price are not known.

    The model that answered sets the price, for the one asked for may be an alias. The offline
    provider has no price list: its calls are unpriced, not sold for nothing.
    """
    models = PRICES.get(record.get("provider") or "", {}).get("models", {})
    answered = record.get("answered_model") or ""
    price = models.get(answered) or models.get(SNAPSHOT.sub("", answered))
    prompt, completion = record.get("prompt_tokens"), record.get("completion_tokens")
    if price is None or prompt is None or completion is None:
        return None
    return float(prompt * price["input"] + completion * price["output"]) / 1_000_000


def usage_table(records: Iterable[Mapping[str, Any]], by: str) -> str:
    """The table as text: the dearest group first, the total last."""
    groups: defaultdict[str, list[Call]] = defaultdict(list)
    for record in records:
        groups[printable(record.get(GROUPS[by]))].append(
            Call(
                record.get("status") or "",
                record.get("prompt_tokens") or 0,
                record.get("completion_tokens") or 0,
                cost_of(record),
                record.get("duration_ms") or 0.0,
            )
        )
    if not groups:
        return "No usage records."
    ranked = sorted(groups.items(), key=lambda item: (-dollars(item[1]), -len(item[1]), item[0]))
    ranked.append(("total", [call for calls in groups.values() for call in calls]))
    lines = [[by, *COLUMNS], *([name, *cells(calls)] for name, calls in ranked)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def printable(name: object) -> str:
    """A caller's word, safe for a terminal: whatever could move the cursor is written out."""
    text = name if isinstance(name, str) else "(none)"
    return text if text.isprintable() else ascii(text)


def dollars(calls: Iterable[Call]) -> float:
    """The cost of the calls whose cost is known."""
    return sum(call.cost or 0.0 for call in calls)


def cells(calls: Sequence[Call]) -> list[str]:
    """One row, in the order of COLUMNS; durations are those of all calls, however they ended."""
    statuses = [call.status for call in calls]
    unpriced = sum(call.cost is None for call in calls)
    durations = sorted(call.duration_ms for call in calls)
    counts = (
        len(calls),
        statuses.count("error"),
        statuses.count("client_disconnect"),
        sum(call.prompt_tokens for call in calls),
        sum(call.completion_tokens for call in calls),
        unpriced,
    )
    usd = "unknown" if unpriced == len(calls) else f"{dollars(calls):,.4f}"
    # Nearest rank: the smallest duration that so large a share of the calls did not exceed.
    ranks = [durations[math.ceil(len(durations) * share) - 1] for share in (0.50, 0.95)]
    return [*(f"{count:,}" for count in counts), usd, *(f"{rank:,.0f}" for rank in ranks)]


@click.command("usage")
@click.argument(
    "log", type=click.File(encoding="utf-8", errors="replace"), default="-", metavar="[FILE|-]"
)
@click.option("--by", type=click.Choice(list(GROUPS)), default="brand", show_default=True)
def usage_command(log: TextIO, by: str) -> None:
    """Add up the usage records in FILE or standard input.

    USD is at the list prices in prices.json. A call whose tokens or price are unknown counts
    as unpriced and is not in USD.
    """
    click.echo(usage_table(usage_records(log), by))
    click.echo(f"\nUSD at the list prices of {PRICES['as_of']}. Unpriced calls are not in it.")
