"""The command `flask usage`: which records count, in which form, and how it ends."""

import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import click

from usage.lines import log_lines, usage_records
from usage.table import as_csv, as_json, as_table
from usage.totals import GROUPS, Report

UNREAD, OVER = 1, 3  # exit codes; 2 is click's for a wrong option

_FORMS = {"table": as_table, "json": as_json, "csv": as_csv}


class Moment(click.ParamType[str]):
    """An ISO date or time, as the beginning of the times in records that are not before it."""

    name = "date or time"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        try:
            time = datetime.fromisoformat(value)
            utc = time.astimezone(UTC) if time.tzinfo else time
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not like 2026-11-30 or 2026-11-30T12:00:00Z.", param, ctx)
        return utc.replace(tzinfo=None).isoformat()


@click.command("usage")
@click.argument(
    "logs",
    nargs=-1,
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    metavar="[FILE|-]...",
)
@click.option("--by", type=click.Choice(list(GROUPS)), default="brand", show_default=True)
@click.option("--since", type=Moment(), help="Only calls that ended then or later (UTC).")
@click.option("--until", type=Moment(), help="Only calls that ended before (UTC).")
@click.option("--json", "form", flag_value="json", help="Write JSON.")
@click.option("--csv", "form", flag_value="csv", help="Write CSV, without the total.")
@click.option(
    "--over", type=click.FloatRange(min=0), metavar="USD", help="End with 3 if the total is more."
)
def usage_command(
    logs: Sequence[str],
    by: str,
    since: str | None,
    until: str | None,
    form: str | None,
    over: float | None,
) -> None:
    """Add up the usage records in the FILEs, or in standard input.

    Plain or gzip; as the service wrote them or with what Heroku, Docker or journald put
    around them. USD is at the list prices in prices.json. A call whose tokens or price are
    unknown counts as unpriced and is not in USD.

    Ends with 1 if a file could not be read to its end, 2 if an option is wrong, 3 if --over.
    """
    if since and until and since >= until:
        raise click.BadParameter("it must be later than --since.", param_hint="--until")
    unread: list[str] = []
    records = _records(logs or ["-"], unread)
    if since or until:
        records = _within(records, since or "", until or "~")
    report = Report(records, by)
    # What the output's encoding does not know is written out.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(_FORMS[form or "table"](report).encode(encoding, "backslashreplace"), nl=False)
    for problem in unread:
        click.echo(problem, err=True)
    if over is not None and not report.total.usd <= over:  # nor if it is not a number
        click.echo(f"The total of {report.total.usd:,.4f} USD is over {over:,.4f}.", err=True)
        sys.exit(OVER)
    sys.exit(UNREAD if unread else 0)


def _records(logs: Sequence[str], unread: list[str]) -> Iterator[dict[str, Any]]:
    for log in logs:
        try:
            with click.open_file(log, "rb") as file:
                yield from usage_records(log_lines(cast(BinaryIO, file)))
        except (OSError, EOFError, zlib.error) as error:
            unread.append(f"{click.format_filename(log)}: not read to its end: {error}")


def _within(records: Iterator[dict[str, Any]], since: str, until: str) -> Iterator[dict[str, Any]]:
    for record in records:
        time = record.get("time")
        if isinstance(time, str) and since <= time < until:
            yield record
