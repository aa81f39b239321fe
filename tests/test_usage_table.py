"""`flask usage`: the table that a log's usage records add up to."""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from click.testing import CliRunner

import providers
from usage.table import PRICES, cost_of, usage_command, usage_records, usage_table


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "event": "usage",
        "brand_id": "brand-a",
        "requested_by": "jane.doe",
        "model": "gpt-4o",
        "answered_model": "gpt-4o-2024-08-06",
        "provider": "openai",
        "status": "ok",
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "duration_ms": 800.0,
        **changes,
    }


def rows_of(records: Iterable[dict[str, Any]], by: str = "brand") -> dict[str, dict[str, str]]:
    """The printed table, as {row name: {column: cell}}."""
    head, *lines = [re.split(r"\s{2,}", line) for line in usage_table(records, by).splitlines()]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}


def test_calls_errors_tokens_and_cost_are_added_up_per_brand() -> None:
    rows = rows_of(
        [
            a_record(),
            a_record(),
            a_record(brand_id="brand-b", status="error", prompt_tokens=None),
            a_record(brand_id="brand-b", status="client_disconnect", completion_tokens=None),
        ]
    )
    assert rows["brand-a"] == {
        "calls": "2",
        "errors": "0",
        "hang-ups": "0",
        "prompt tokens": "2,000",
        "completion tokens": "200",
        "unpriced": "0",
        "USD": "0.0070",  # 2,000 at 2.50 and 200 at 10.00 a million
        "p50 ms": "800",
        "p95 ms": "800",
    }
    assert rows["brand-b"]["errors"] == rows["brand-b"]["hang-ups"] == "1"
    assert rows["total"]["calls"] == "4"
    assert rows["total"]["USD"] == "0.0070"


@pytest.mark.parametrize(("by", "field"), [("requester", "requested_by"), ("model", "model")])
def test_the_table_groups_by_requester_or_model(by: str, field: str) -> None:
    rows = rows_of([a_record(), a_record(**{field: "another"})], by)
    assert rows[a_record()[field]]["calls"] == rows["another"]["calls"] == "1"


@pytest.mark.parametrize(
    "changes",
    [
        {"answered_model": "gpt-9", "model": "gpt-4o"},
        {"answered_model": None},
        {"answered_model": "gpt-4o-audio-preview"},
        {"provider": "offline"},
        {"prompt_tokens": None},
        {"completion_tokens": None},
    ],
)
def test_a_call_whose_price_or_tokens_are_unknown_is_unpriced_and_not_free(
    changes: dict[str, Any],
) -> None:
    assert cost_of(a_record(**changes)) is None
    row = rows_of([a_record(**changes)])["brand-a"]
    assert (row["unpriced"], row["USD"]) == ("1", "unknown")
    mixed = rows_of([a_record(**changes), a_record()])["brand-a"]
    assert (mixed["unpriced"], mixed["USD"]) == ("1", "0.0035")


@pytest.mark.parametrize(
    ("answered", "usd"),
    [
        ("gpt-4o", 0.0035),
        ("gpt-4o-2024-11-20", 0.0035),
        ("gpt-4o-2024-05-13", 0.0065),  # this snapshot has a price of its own
        ("gpt-4o-mini-2024-07-18", 0.00021),
        ("gpt-3.5-turbo-0125", 0.00065),
    ],
)
def test_a_dated_snapshot_costs_what_its_family_costs(answered: str, usd: float) -> None:
    assert cost_of(a_record(answered_model=answered)) == pytest.approx(usd)


def test_every_model_of_the_service_has_a_price_and_every_price_a_source() -> None:
    for model, provider in providers.PROVIDER_OF.items():
        assert cost_of(a_record(provider=provider, answered_model=model)), model
        assert PRICES[provider]["source"].startswith("https://")


def test_percentiles_are_durations_that_occurred() -> None:
    rows = rows_of(a_record(duration_ms=float(ms)) for ms in range(1, 101))
    assert (rows["brand-a"]["p50 ms"], rows["brand-a"]["p95 ms"]) == ("50", "95")


def test_the_dearest_group_comes_first_and_the_total_last() -> None:
    rows = rows_of([a_record(), a_record(brand_id="dear", prompt_tokens=9000)])
    assert list(rows) == ["dear", "brand-a", "total"]


def test_other_lines_cut_records_and_router_prefixes_do_no_harm() -> None:
    record = json.dumps(a_record())
    log = [
        "Listening at: http://127.0.0.1:8000\n",
        f"2026-11-23T18:24:55.123456+00:00 app[web.1]: {record}\n",
        record[: len(record) // 2] + "\n",
        '{"event": "start", "warning": "no key"}\n',
        '{"a":' * 100_000 + "\n",
        "\n",
        record,
    ]
    assert list(usage_records(log)) == [a_record(), a_record()]


def test_a_name_cannot_move_the_cursor_of_a_terminal() -> None:
    assert "\x1b" not in usage_table([a_record(brand_id="\x1b[2Jx")], "brand")


def test_the_command_reads_a_file_or_standard_input(tmp_path: Any) -> None:
    line = json.dumps(a_record()) + "\n"
    log = tmp_path / "log"
    log.write_text(line)
    from_file = CliRunner().invoke(usage_command, [str(log), "--by", "model"])
    from_stdin = CliRunner().invoke(usage_command, ["--by", "model"], input=line)
    assert from_file.exit_code == from_stdin.exit_code == 0
    assert from_file.output == from_stdin.output
    assert from_file.output.startswith("model")
    assert PRICES["as_of"] in from_file.output


def test_a_log_without_records_says_so() -> None:
    assert CliRunner().invoke(usage_command, input="").output.startswith("No usage records.")
