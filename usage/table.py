"""A report of usage as people, programs and spreadsheets read it."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping

from usage.prices import PRICES
from usage.totals import COLUMNS, Report

_HEADINGS = {"hang_ups": "hang-ups", "usd": "USD"}
_MOST_NAMES = 10


def as_table(report: Report) -> str:
    """For people: the groups, their total, and what is not in it."""
    if not report.groups:
        return "No usage records.\n"
    lines = [[report.by, *(_HEADINGS.get(name, name.replace("_", " ")) for name in COLUMNS)]]
    lines += ([shown(name), *_cells(totals.row())] for name, totals in report.groups)
    lines.append(["total", *_cells(report.total.row())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        line[:] = line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])
    text = "\n".join("  ".join(line) for line in lines)
    text += f"\n\nUSD at the list prices of {PRICES['as_of']}. Unpriced calls are not in it.\n"
    if named := report.unpriced_models.most_common(_MOST_NAMES):
        names = ", ".join(
            f"{shown(model)} ({calls:,} {'call' if calls == 1 else 'calls'})"
            for model, calls in named
        )
        more = len(report.unpriced_models) - len(named)
        text += f"Models without a price: {names}{f' and {more:,} more' if more else ''}.\n"
    return text


def as_json(report: Report) -> str:
    """For programs: names as they are, null where something is unknown."""
    document = {
        "by": report.by,
        "prices_as_of": PRICES["as_of"],
        "groups": [{"name": name, **totals.row()} for name, totals in report.groups],
        "total": report.total.row(),
        "unpriced_models": dict(report.unpriced_models.most_common()),
    }
    return json.dumps(document, indent=2) + "\n"


def as_csv(report: Report) -> str:
    """For spreadsheets: no total, which would be added up with the rest, and no formulas."""
    file = io.StringIO()
    # Text is in quotes for spreadsheets to which a semicolon in a name would begin a new cell.
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([report.by, *COLUMNS])
    for name, totals in report.groups:
        writer.writerow([inert(shown(name)), *totals.row().values()])
    return file.getvalue()


def shown(name: str | None) -> str:
    """A caller's word, written out if it could move the cursor or be taken for one of ours."""
    if name is None:
        return "(none)"
    plain = name.isprintable() and name == name.strip() and name[:1] not in ("", "'", '"')
    return name if plain and name not in ("total", "(none)") else ascii(name)


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    first = unicodedata.normalize("NFKC", cell)[:1]  # full-width signs count as well
    return f"'{cell}" if first in ("=", "+", "-", "@") else cell


def _cells(row: Mapping[str, float | None]) -> Iterator[str]:
    for name, value in row.items():
        if value is None:
            yield "unknown" if name == "usd" else "-"
        else:
            yield f"{value:,.4f}" if name == "usd" else f"{value:,.0f}"
