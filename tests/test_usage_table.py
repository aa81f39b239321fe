"""`flask usage`: what a log's usage records add up to."""

import csv
import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import providers
from usage.command import OVER, UNREAD, usage_command
from usage.lines import log_lines, usage_records
from usage.prices import PRICES, cost_of, is_priced
from usage.table import as_csv, as_json, as_table
from usage.totals import GROUPS, Report


def a_record(**changes: Any) -> dict[str, Any]:
    return {
        "event": "usage",
        "time": "2026-11-23T18:24:55.123Z",
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
    text = as_table(Report(records, by)).split("\n\n")[0]
    head, *lines = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}


def usage(*arguments: str, log: str | bytes = b"") -> Result:
    return CliRunner().invoke(usage_command, [*arguments], input=log)


def line(**changes: Any) -> str:
    return json.dumps(a_record(**changes)) + "\n"


def calls_in(result: Result) -> int:
    calls = json.loads(result.stdout)["total"]["calls"]
    assert isinstance(calls, int)
    return calls


# What is added up.


def test_calls_errors_tokens_and_cost_are_added_up_per_brand() -> None:
    rows = rows_of(
        [
            a_record(),
            a_record(cached_tokens=0, reasoning_tokens=60),
            a_record(brand_id="brand-b", status="error", prompt_tokens=None),
            a_record(brand_id="brand-b", status="client_disconnect", completion_tokens=None),
        ]
    )
    assert rows["brand-a"] == {
        "calls": "2",
        "errors": "0",
        "hang-ups": "0",
        "prompt tokens": "2,000",
        "cached tokens": "0",
        "completion tokens": "200",
        "reasoning tokens": "60",
        "unpriced": "0",
        "USD": "0.0070",  # 2,000 at 2.50 and 200 at 10.00 a million
        "p50 ms": "800",
        "p95 ms": "800",
    }
    assert rows["brand-b"]["errors"] == rows["brand-b"]["hang-ups"] == "1"
    assert rows["total"]["calls"] == "4"
    assert rows["total"]["USD"] == "0.0070"


@pytest.mark.parametrize("by", [by for by in GROUPS if by != "day"])
def test_the_table_groups_by_each_of_the_fields_that_tell_calls_apart(by: str) -> None:
    rows = rows_of([a_record(**{GROUPS[by]: name}) for name in ("this", "that", "that")], by)
    assert {name: row["calls"] for name, row in rows.items()} == {
        "this": "1",
        "that": "2",
        "total": "3",
    }


def test_days_are_utc_and_follow_each_other() -> None:
    times = ["2026-11-24T00:00:00.000Z", "2026-11-23T23:59:59.999Z", "2026-11-24T12:00:00.000Z"]
    rows = rows_of([a_record(time=time) for time in times], "day")
    assert [(name, row["calls"]) for name, row in rows.items()] == [
        ("2026-11-23", "1"),
        ("2026-11-24", "2"),
        ("total", "3"),
    ]


@pytest.mark.parametrize(("by", "value", "name"), [("upstream-status", 529, "529")])
def test_a_status_is_a_group_too(by: str, value: int, name: str) -> None:
    assert name in rows_of([a_record(upstream_status=value)], by)


def test_the_dearest_group_comes_first_and_the_total_last() -> None:
    rows = rows_of([a_record(), a_record(brand_id="dear", prompt_tokens=9000)])
    assert list(rows) == ["dear", "brand-a", "total"]


def test_percentiles_are_within_a_tenth_of_a_percent() -> None:
    rows = rows_of(a_record(duration_ms=float(ms)) for ms in range(1, 101))
    assert (rows["brand-a"]["p50 ms"], rows["brand-a"]["p95 ms"]) == ("50", "95")
    for ms in (3.3, 47.0, 999.5, 12_345.6, 600_000.0):
        p95 = Report([a_record(duration_ms=ms)], "brand").total.row()["p95_ms"]
        assert p95 == pytest.approx(ms, rel=0.001, abs=0.06)  # and rounded to 0.1 ms


# What a call costs.


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


@pytest.mark.parametrize(
    ("provider", "model", "cached", "usd"),
    [
        ("openai", "gpt-4o", 400, 0.0030),  # 600 at 2.50, 400 at 1.25, 100 at 10.00
        ("openai", "gpt-4o", None, 0.0035),
        ("openai", "gpt-4o", 5000, 0.00225),  # no more than the prompt can have been cached
        ("openai", "gpt-4-turbo", 400, 0.0130),  # no price for cached input: the full one
        ("anthropic", "claude-sonnet-4-6", 1000, 0.0018),
    ],
)
def test_the_cached_share_of_a_prompt_is_taken_off_at_its_own_price(
    provider: str, model: str, cached: int | None, usd: float
) -> None:
    record = a_record(provider=provider, answered_model=model, cached_tokens=cached)
    assert cost_of(record) == pytest.approx(usd)


def test_a_long_prompt_and_an_earlier_day_have_their_own_prices() -> None:
    luna = {"answered_model": "gpt-6-luna", "completion_tokens": 0}
    assert cost_of(a_record(**luna, prompt_tokens=272_000)) == pytest.approx(0.0272)
    assert cost_of(a_record(**luna, prompt_tokens=272_001)) == pytest.approx(0.0544, rel=1e-4)
    sonnet = {"provider": "anthropic", "answered_model": "claude-sonnet-5-5"}
    sonnet |= {"cached_tokens": 1000, "completion_tokens": 0}
    costs = [cost_of(a_record(**sonnet, time=f"2026-10-0{day}T00:00:00Z")) for day in (6, 7)]
    assert costs == pytest.approx([0.0002, 0.0001])
    assert cost_of({**a_record(**sonnet), "time": None}) == pytest.approx(0.0001)


def test_every_model_of_the_service_and_its_successors_has_a_price_with_a_source() -> None:
    for model, provider in providers.PROVIDER_OF.items():
        assert is_priced(provider, model), model
        assert PRICES["providers"][provider]["source"].startswith("https://")
    for model in ("gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol", "gpt-6.2-sol", "gpt-5.6-sol"):
        assert is_priced("openai", model), model
    assert is_priced("anthropic", "claude-sonnet-5-5")
    assert not is_priced("openai", "claude-sonnet-5-5")


def test_the_last_row_of_every_price_fits_every_call() -> None:
    for provider in PRICES["providers"].values():
        for model, rows in provider["models"].items():
            assert rows, model
            for number, row in enumerate(rows):
                assert {"over", "before"} & row.keys() or number == len(rows) - 1, model
                assert 0 < row.get("cached", row["input"]) <= row["input"] < row["output"], model
            assert not {"over", "before"} & rows[-1].keys(), model


def test_models_without_a_price_are_named() -> None:
    records = [a_record(answered_model="gpt-9"), a_record(answered_model="gpt-9"), a_record()]
    records += [a_record(status="error", answered_model=None, prompt_tokens=None)]
    text = as_table(Report(records, "brand"))
    assert "Models without a price: openai/gpt-9 (2 calls)." in text
    one = usage(log=line(answered_model="gpt-9")).output
    assert "Models without a price: openai/gpt-9 (1 call)." in one
    assert json.loads(as_json(Report(records, "brand")))["unpriced_models"] == {"openai/gpt-9": 2}
    assert "without a price" not in as_table(Report([a_record()], "brand"))


# What a log may look like.


def docker(text: str) -> str:
    return json.dumps({"log": text, "stream": "stdout", "time": "2026-11-23T18:24:55.1Z"}) + "\n"


def journald(message: object) -> str:
    return json.dumps({"__CURSOR": "s=1", "_PID": "7", "MESSAGE": message}) + "\n"


WRAPPERS = {
    "plain": line(),
    "windows": line().replace("\n", "\r\n"),
    "heroku": f"2026-11-23T18:24:55.123456+00:00 app[web.1]: {line()}",
    "journald short": f"Nov 23 18:24:55 web1 gunicorn[812]: {line()}",
    "journald json": journald(line().strip()),
    "journald bytes": journald([*line().strip().encode()]),
    "journald compact bytes": journald([*line().strip().encode()]).replace(" ", ""),
    "docker": docker(line()),
    "docker with a terminal": docker(line().replace("\n", "\r\n")),
    "docker compose": f"web-1  | {line()}",
    "docker, odd name": docker(line(requested_by='a\\"{b\\\\')),
    "after a cut record": line()[:90] + line(),
    "another tool": json.dumps(a_record(prompt_tokens=1000.0), separators=(",", ":")) + "\n",
}


@pytest.mark.parametrize("log", WRAPPERS.values(), ids=WRAPPERS)
def test_a_record_is_found_in_whatever_a_platform_puts_around_it(log: str) -> None:
    total = json.loads(usage("--json", log=log * 2).stdout)["total"]
    assert (total["calls"], total["prompt_tokens"], total["usd"]) == (2, 2000, 0.007)


NESTED = '{"event": "usage", "a":' + '{"a":' * 100_000
FOREIGN: dict[str, bytes] = {
    "text": b"Listening at: http://127.0.0.1:8000\n",
    "cut record": line()[:90].encode() + b"\n",
    "another event": b'{"event": "start", "warning": "no usage"}\n',
    "nested": NESTED.encode() + b"\n",
    "nested lists": b'{"event": "usage", "a":' + b"[" * 100_000 + b"\n",
    "empty": b"\n",
    "no object": b'["usage"]\n"usage"\n{"usage"\n{}\nusage\n',
    "huge number": b'{"event": "usage", "prompt_tokens": ' + b"9" * 5000 + b"}\n",
    "binary": bytes(range(256)) + b'"usage"{\xff\xfe\n',
    "docker of something": docker("usage").encode()
    + b'{"log": 5, "usage": 1}\n{"log": ["usage"]}\n',
    "journald of something": (journald([999, -1]) + journald([[1]]) + journald(None)).encode(),
    "docker in docker": docker(docker(line())).encode(),
    "a long line": b"usage" * 1_000_000 + line().encode(),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_line_that_is_no_record_is_passed_over(foreign: bytes) -> None:
    result = usage("--json", log=line().encode() + foreign + line().encode())
    assert result.exception is None
    assert calls_in(result) == 2


ODD = [None, True, -5, 1e400, float("nan"), -0.5, 1.5, 10**15, 10**400, "7", [], {}, "\ud800", [{}]]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("form", ["--json", "--csv", "--by=day"])
def test_a_record_with_odd_values_is_a_call_and_never_a_traceback(value: Any, form: str) -> None:
    odd = dict.fromkeys((*a_record(), "cached_tokens", "reasoning_tokens", "code"), value)
    odd["event"] = "usage"
    log = json.dumps(odd) + "\n"
    for name in a_record():
        if name != "event":
            log += line(**{name: value})
    for by in GROUPS:
        result = usage(form, f"--by={by}", "--since=2000-01-01", log=log)
        assert result.exception is None, result.exc_info
    everything = usage("--json", log=log)
    assert calls_in(everything) == len(a_record())
    total = json.loads(everything.stdout, parse_constant=pytest.fail)["total"]
    assert 0 <= total["prompt_tokens"] < 20_000
    assert 0 <= total["usd"] < 1


def test_several_files_gzip_and_standard_input_are_read_in_one_go(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.log", tmp_path / "named-as-it-likes"
    plain.write_text(line())
    packed.write_bytes(gzip.compress(line().encode()) + gzip.compress(line().encode()))
    result = usage("--json", str(plain), "-", str(packed), log=line())
    assert calls_in(result) == 4
    assert calls_in(usage("--json", log=packed.read_bytes())) == 2
    from_file, from_stdin = usage(str(plain), "--by", "model"), usage("--by", "model", log=line())
    assert from_file.exit_code == from_stdin.exit_code == 0
    assert from_file.output == from_stdin.output
    assert from_file.output.startswith("model")
    assert PRICES["as_of"] in from_file.output


@pytest.mark.parametrize("damage", [slice(None, -10), slice(None, 12)])
def test_a_damaged_file_is_counted_as_far_as_it_goes_and_ends_with_1(
    damage: slice, tmp_path: Path
) -> None:
    log, good = tmp_path / "cut.gz", tmp_path / "good"
    log.write_bytes(gzip.compress(line().encode() * 3)[damage])
    good.write_text(line())
    result = usage("--json", str(log), str(good))
    assert result.exit_code == UNREAD
    assert calls_in(result) >= 1
    assert "cut.gz: not read to its end" in result.stderr
    assert "Traceback" not in result.output


def test_a_log_without_records_says_so() -> None:
    assert usage().output.startswith("No usage records.")
    assert calls_in(usage("--json")) == 0
    assert len(usage("--csv").output.splitlines()) == 1


# Which records count.


def test_since_is_inclusive_and_until_exclusive() -> None:
    times = [f"2026-11-{day:02d}T00:00:00.000Z" for day in (1, 2, 3)] + ["2026-11-02T23:59:59.999Z"]
    log = "".join(line(time=time) for time in times)
    windows = {
        ("--since=2026-11-02",): 3,
        ("--until=2026-11-02",): 1,
        ("--since=2026-11-02", "--until=2026-11-03"): 2,
        ("--since=2026-11-02T00:00:00.001",): 2,
        ("--since=2026-11-02T01:00:00+01:00", "--until=2026-11-03T00:00:00Z"): 2,
        ("--until=2026-11-02 23:59:59.999",): 2,
    }
    for window, calls in windows.items():
        assert calls_in(usage("--json", *window, log=log)) == calls, window


@pytest.mark.parametrize(
    "options",
    [
        ("--since=soon",),
        ("--since=",),
        ("--since=0001-01-01T00:00:00+05:00",),
        ("--since=2026-11-03", "--until=2026-11-03"),
        ("--over=-1",),
        ("--over=much",),
        ("--by=nothing",),
        ("no-such-file",),
    ],
)
def test_a_wrong_option_ends_with_2_and_one_error(options: tuple[str, ...]) -> None:
    result = usage(*options, log=line())
    assert result.exit_code == 2
    assert "Error: " in result.stderr


# How it ends, and what it writes.


@pytest.mark.parametrize(
    ("limit", "code"), [("0.0034", OVER), ("0.0035", 0), ("1e9", 0), ("0", OVER), ("nan", OVER)]
)
def test_a_total_over_the_limit_ends_with_3(limit: str, code: int) -> None:
    for form in ("--json", "--csv", "--by=model"):
        result = usage(form, "--over", limit, log=line())
        assert result.exit_code == code
        assert ("is over" in result.stderr) == (code == OVER)
        assert result.stdout == usage(form, log=line()).stdout


@pytest.mark.parametrize(
    "name", ["total", "(none)", "'total'", "", " total", "\u202etotal", "\x1b[2J"]
)
def test_no_name_can_be_taken_for_the_tables_own_words_or_move_the_cursor(name: str) -> None:
    log = [a_record(brand_id=name), a_record(brand_id=None)]
    text = as_table(Report(log, "brand")).split("\n\n")[0]
    assert [row.split("  ")[0] for row in text.splitlines()].count("total") == 1
    assert len(text.splitlines()) == 4
    assert len({row.split("  ")[0] for row in text.splitlines()}) == 4
    assert all(part.isprintable() for part in text.splitlines())
    document = json.loads(as_json(Report(log, "brand")))
    assert {group["name"] for group in document["groups"]} == {name, None}
    assert document["total"]["calls"] == 2


@pytest.mark.parametrize(
    "name", ["=cmd|'/c calc'!A0", "+1", "-1", "@SUM(A1)", "\uff1d1", "\t=1", "\r=1", "a;=1", '";=1']
)
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    text = as_csv(Report([a_record(brand_id=name)], "brand"))
    (cell,) = (row[0] for row in csv.reader(text.splitlines()[1:]))
    assert cell[0] not in "=+-@\uff1d\t\r"
    assert text.splitlines()[1].startswith('"')


def test_csv_has_numbers_as_they_are_and_no_total() -> None:
    log = [a_record(prompt_tokens=10_000), a_record(brand_id="total"), a_record(provider="x")]
    rows = list(csv.DictReader(as_csv(Report(log, "brand")).splitlines()))
    assert [row["brand"] for row in rows] == ["brand-a", "'total'"]
    assert (rows[0]["prompt_tokens"], rows[0]["usd"], rows[0]["unpriced"]) == (
        "11000",
        "0.026",
        "1",
    )


def test_a_terminal_of_another_encoding_gets_the_name_written_out() -> None:
    runner = CliRunner(charset="ascii")
    result = runner.invoke(usage_command, input=line(brand_id="漢"))
    assert result.exception is None
    assert "\\u6f22" in result.output


def flask_usage(*arguments: str, **more: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flask", "usage", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_a_reader_who_leaves_early_hears_no_traceback() -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    process = flask_usage("--by", "requester", stdout=pipe)
    os.close(pipe)
    log = "".join(line(requested_by=f"user-{number}") for number in range(3000))
    _, said = process.communicate(log.encode())
    assert b"Error" not in said
    assert b"Traceback" not in said
    assert b"Broken" not in said


def test_memory_does_not_grow_with_the_log() -> None:
    some = [
        line(duration_ms=n % 500 + 0.5, brand_id=f"brand-{n % 7}").encode() for n in range(3500)
    ]

    def peak(times: int) -> int:
        tracemalloc.start()
        try:
            Report(usage_records(part for _ in range(times) for part in some), "brand")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    once = peak(1)
    assert peak(6) < once * 1.2


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    endless = tmp_path / "bomb.gz"
    endless.write_bytes(gzip.compress(b"usage" * 8_000_000, 1))
    tracemalloc.start()
    try:
        with endless.open("rb") as file:
            assert sum(1 for _ in log_lines(file)) == 1
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
