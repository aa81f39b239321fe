"""`flask limits`: what is used and left of each limit, and giving one back."""

from collections.abc import Iterator
from datetime import UTC, datetime

import click

from chat.limits import PARTS, Limits, counter_key, window_end
from chat.stores import Backend, reason_of
from core.limit import Limit

# Nobody's call waits here, and the store may be far away.
PATIENCE_S = 5.0


def limits_command(limits: Limits) -> click.Command:
    """The command for these limits."""

    @click.command("limits")
    @click.option("--brand", metavar="NAME", help="Only this brand.")
    @click.option("--caller", metavar="NAME", help="Only this caller.")
    @click.option("--reset", metavar="UNIT/WINDOW", help="Have this one count from nothing.")
    def command(brand: str | None, caller: str | None, reset: str | None) -> None:
        """Show what is used and left of each limit in its present window.

        A limit on each (*) has a line for everyone who has used some of it. `--brand loop --reset
        tokens/day` gives the brand loop the tokens of its day back.
        """
        asked = {"brand": brand, "caller": caller}
        named = {scope: name for scope, name in asked.items() if name is not None}
        if reset is not None and len(named) != 1:
            raise click.UsageError("--reset needs one of --brand and --caller.")
        if limits.store is None:
            raise click.ClickException("LIMITS is not set: nothing is limited.")
        try:
            store = limits.store.connect()
            store.patience_s = PATIENCE_S
            if reset is not None:
                _reset(limits, store, named, reset)
            click.echo("\n".join(table(limits, store, named)))
        except click.ClickException:
            raise
        except Exception as error:
            # Its own words may quote a URL with a password.
            raise click.ClickException(f"The store is out of reach: {reason_of(error)}.") from None

    return command


def table(limits: Limits, store: Backend, named: dict[str, str]) -> Iterator[str]:
    """The lines of the table: those of the names, or all that is known."""
    now = limits.clock()
    known = store.known(now)
    lines: list[tuple[str, ...]] = [("limit", "of", "used", "left", "until")]
    for limit in limits.limits:
        if named and not _is_about(limit, named):
            continue
        ends = window_end(limit.window, now)
        until = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d %H:%M")
        most = int(limit.number * PARTS[limit.unit])
        prefix = counter_key(limit, "")
        for key in _keys(limit, named, {key for end, key in known if end == ends}):
            used = known.get((ends, key), 0)
            left = max(0, most - used)
            amounts = [_amount(number, limit.unit) for number in (used, left)]
            lines.append((limit.text, key.removeprefix(prefix), *amounts, until))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for text, name, used_text, left_text, until in lines:
        start = f"{text:{widths[0]}}  {name:{widths[1]}}"
        yield f"{start}  {used_text:>{widths[2]}}  {left_text:>{widths[3]}}  {until}"


def _is_about(limit: Limit, named: dict[str, str]) -> bool:
    return limit.scope in named and limit.name in (None, named[limit.scope])


def _keys(limit: Limit, named: dict[str, str], known: set[str]) -> list[str]:
    name = limit.name if limit.name is not None else named.get(limit.scope)
    if name is not None:
        return [counter_key(limit, name)]
    return sorted(key for key in known if key.startswith(counter_key(limit, "")))


def _amount(number: int, unit: str) -> str:
    return f"{number / PARTS[unit]:,.4f}" if unit == "USD" else f"{number:,}"


def _reset(limits: Limits, store: Backend, named: dict[str, str], which: str) -> None:
    ((scope, name),) = named.items()
    for limit in limits.limits:
        if _is_about(limit, named) and which == f"{limit.unit}/{limit.window}":
            ends = window_end(limit.window, limits.clock())
            store.delete(ends, counter_key(limit, name))
            return
    raise click.ClickException(f"No limit in {which} is about this {scope}.")
