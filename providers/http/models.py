"""`flask models`: whether the vendors still have the models that calls are sent to.

Exits with 1 where one is gone, ends soon, or could not be asked for: for a scheduled job.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import click

from core import watchdog
from core.settings import Settings, load
from providers import VENDOR_OF
from providers.base import Call, Vendor, text
from providers.http.exchange import Endpoint, Exchange
from providers.http.failures import Failure, bad_answer

SOON = timedelta(days=30)
MAX_PAGES = 100


@click.command("models")
def models_command() -> None:
    """Say for each model whether its vendor has it, and until when."""
    settings, now = load(), datetime.now(UTC)
    if settings.offline:
        click.echo("OFFLINE=1: no vendor is asked.")
        return
    lists = {kind: _ends(kind(settings), settings) for kind in set(VENDOR_OF.values())}
    is_well = True
    for model, kind in VENDOR_OF.items():
        ends, problem = lists[kind]
        sent_as = settings.model_aliases.get(model, model)
        line = f"{model}: {problem or _state(model, ends, now)[0]}"
        if sent_as != model and problem is None:
            line += f"; sent as {sent_as}: {_state(sent_as, ends, now)[0]}"
        is_well = is_well and problem is None and _state(sent_as, ends, now)[1]
        click.echo(line)
    if not is_well:
        raise SystemExit(1)


def _state(model: str, ends: dict[str, datetime | None], now: datetime) -> tuple[str, bool]:
    """What to say of a model, and whether it may be relied on."""
    # A name without a date stands for the newest of its snapshots.
    snapshot = re.compile(re.escape(model) + r"-\d{4}-?\d\d-?\d\d")
    name = model if model in ends else max(filter(snapshot.fullmatch, ends), default=None)
    if name is None:
        return "gone", False
    end = ends[name]
    if end is None:
        return "available", True
    if end <= now:
        return f"gone since {end:%Y-%m-%d}", False
    return f"available until {end:%Y-%m-%d}", end - now > SOON


def _ends(vendor: Vendor, settings: Settings) -> tuple[dict[str, datetime | None], str | None]:
    """When each of a vendor's models ends, None for no known end; or what kept it from telling."""
    if not vendor.key:
        return {}, f"unknown, no key for {vendor.label} is set"
    try:
        listed = [model for model in _listed(vendor, settings) if not _is_retired(model)]
        return {text(model["id"]): _end(model) for model in listed}, None
    except Failure as failure:
        return {}, f"unknown, {vendor.label} {failure.text}"
    except (LookupError, TypeError, AttributeError, ValueError):
        return {}, f"unknown, {vendor.label} sent a list of an unknown shape"


def _listed(vendor: Vendor, settings: Settings) -> Iterator[dict[str, Any]]:
    url = vendor.models_url
    for _ in range(MAX_PAGES):
        # (An endpoint is of one address.)
        endpoint = Endpoint(vendor, settings, [vendor.key or ""])
        with (
            watchdog.watch(None, settings.total_timeout_s) as watch,
            Exchange(endpoint, Call(watch), is_stream=True, is_new=False) as exchange,
        ):
            exchange.send(None, url)
            page = exchange.read_document()
        yield from page["data"]
        if not page.get("has_more"):
            return
        last = page.get("last_id") or page["data"][-1]["id"]
        url = f"{vendor.models_url}{vendor.next_page}{quote(last, safe='')}"
    raise bad_answer("did not come to the end of its list")


def _end(model: dict[str, Any]) -> datetime | None:
    """When a model ends, as its vendor writes it: a date, a moment, or Unix seconds."""
    lifecycle = model.get("lifecycle")
    fields = {**model, **lifecycle} if isinstance(lifecycle, dict) else model
    end = fields.get("shutdown_date") or fields.get("retires_at")
    if not end:
        return None
    if isinstance(end, int | float):
        return datetime.fromtimestamp(end, UTC)
    moment = datetime.fromisoformat(end)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_retired(model: dict[str, Any]) -> bool:
    """Whether a model is listed though it is gone, and nothing says since when."""
    return model.get("lifecycle") == "retired" and not model.get("retires_at")
