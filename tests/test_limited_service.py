"""Limits as callers meet them: many workers over one store, the SDKs, and `flask limits`."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from app import create_app
from core.settings import Settings
from tests.conftest import (
    BOUND_TOKEN,
    CLAUDE,
    GPT,
    TOKEN,
    Service,
    answer_on,
    ask,
    pointed_at,
)
from tests.redis_server import RedisServer
from tests.upstream import CUT, STALL, Upstream, body, openai_completion, refuse, say

Start = Callable[..., Service]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The variables that name each store."""
    if request.param == "file":
        return {"LIMITS_FILE": str(tmp_path / "limits.sqlite3")}
    return {"REDIS_URL": request.getfixturevalue("redis_server").url}


def statuses_of(services: list[Service], calls: int, **request: Any) -> list[int]:
    """The statuses of so many calls to each of the services, all at once."""
    sockets = [service.send(ask(**request)) for _ in range(calls) for service in services]
    answers = [answer_on(sock) for sock in sockets]
    for answer in answers:
        answer.read()
    for sock in sockets:
        sock.close()
    return [answer.status for answer in answers]


def test_of_200_calls_at_once_to_four_workers_exactly_as_many_pass_as_may(
    start: Start, upstream: Upstream, store: dict[str, str]
) -> None:
    where = {**pointed_at(upstream), **store, "LIMITS": "brand loop 100 calls/month"}
    services = [start(**where, WEB_CONCURRENCY="2") for _ in range(2)]
    statuses = statuses_of(services, 100)
    assert [line for s in services for line in s.log.splitlines() if "limits_store" in line] == []
    assert (statuses.count(200), statuses.count(429)) == (100, 100)
    assert len(upstream.received) == 100


def test_counts_outlive_killed_workers_and_a_new_start(
    start: Start, upstream: Upstream, store: dict[str, str]
) -> None:
    where = {**pointed_at(upstream), **store, "LIMITS": "caller team 30 calls/month"}
    service = start(**where, WEB_CONCURRENCY="2")
    assert statuses_of([service], 20) == [200] * 20
    for pid in service.worker_pids():
        os.kill(pid, signal.SIGKILL)
    service.until(lambda: len(service.worker_pids()) == 2 and service._answers())
    assert statuses_of([service], 8) == [200] * 8
    service.__exit__()
    again = start(**where, WEB_CONCURRENCY="2")
    assert sorted(statuses_of([again], 4)) == [200, 200, 429, 429]


def test_no_call_fails_or_stalls_when_the_store_stops_under_load(
    start: Start, upstream: Upstream, redis_server: RedisServer
) -> None:
    limits = {"LIMITS": "brand loop 5 calls/month", "REDIS_URL": redis_server.url}
    service = start(**pointed_at(upstream), **limits, WEB_CONCURRENCY="2")
    assert statuses_of([service], 10).count(429) == 5
    redis_server.pause()
    assert statuses_of([service], 60) == [200] * 60
    gone = service.log.count('"gone"')
    assert 1 <= gone <= 2  # a line a worker
    redis_server.resume()

    def is_back() -> bool:
        statuses_of([service], 4)
        return service.log.count('"back"') == gone

    service.until(is_back, 30)
    assert statuses_of([service], 10) == [429] * 10


def test_what_calls_use_is_counted_once_however_they_end(
    start: Start, upstream: Upstream, store: dict[str, str]
) -> None:
    limits = "brand loop 1000000 tokens/month; caller * 1000000 tokens/month"
    where = {**pointed_at(upstream), **store, "LIMITS": limits}
    service = start(**where)
    for model in (CLAUDE, GPT):
        service.post(ask(model))
        service.stream(ask(model))
        upstream.replies.append(say("One", CUT))
        service.stream(ask(model))
        upstream.replies.append(refuse(400))
        service.post(ask(model))
        upstream.replies.append(say("One", STALL))
        left = service.send(ask(model, stream=True))
        answer_on(left).readline()
        left.close()
    records = service.records(10)
    used = sum(r["total_tokens"] or r["prompt_tokens"] or 0 for r in records)
    assert len(records) == 10
    assert used > 0
    lines = flask_limits(where).splitlines()
    assert [line.split()[-5:-3] for line in lines[1:]] == [
        ["loop", f"{used:,}"],
        ["team", f"{used:,}"],
    ]


def flask_limits(environ: dict[str, str], *options: str) -> str:
    """What `flask limits` prints."""
    runner = create_app(Settings.read(environ)).test_cli_runner()
    return runner.invoke(args=["limits", *options]).output.strip()


def test_flask_limits_shows_what_is_left_and_gives_one_back(
    start: Start, store: dict[str, str]
) -> None:
    limits = "brand * 3 calls/month; caller team 9 calls/day; brand acme 5.5 USD/month"
    where = {"OFFLINE": "1", **store, "LIMITS": limits}
    service = start(**where)
    assert statuses_of([service], 5).count(200) == 3
    assert statuses_of([service], 1, brand_id="acme") == [200]
    table = [line.split() for line in flask_limits(where).splitlines()]
    assert table[0] == ["limit", "of", "used", "left", "until"]
    assert [row[4:7] for row in table[1:]] == [
        ["acme", "1", "2"],
        ["loop", "3", "0"],
        ["team", "4", "5"],
        ["acme", "0.0000", "5.5000"],
    ]
    only = flask_limits(where, "--brand", "loop", "--reset", "calls/month").splitlines()
    assert [line.split()[4:7] for line in only[1:]] == [["loop", "0", "3"]]
    assert statuses_of([service], 5).count(200) == 3
    assert "No limit" in flask_limits(where, "--brand", "loop", "--reset", "calls/day")
    assert "needs one of" in flask_limits(where, "--reset", "calls/month")
    assert "LIMITS is not set" in flask_limits({"OFFLINE": "1"})


def test_flask_limits_says_that_the_store_is_out_of_reach() -> None:
    where = {"LIMITS": "brand * 1 calls/day", "REDIS_URL": "redis://:a-secret@127.0.0.1:9"}
    said = flask_limits(where)
    assert said == "Error: The store is out of reach: ConnectionError."


@pytest.fixture
def spent(start: Start, tmp_path: Path) -> Service:
    """A service whose caller `team` has made its one call of the month, `bound` of the minute."""
    limits = "caller team 1 calls/month; caller bound 1 calls/minute"
    service = start(OFFLINE="1", LIMITS=limits, LIMITS_FILE=str(tmp_path / "limits.sqlite3"))
    assert service.post(ask()).status_code == 200
    return service


def test_a_refusal_is_429_with_when_to_come_back_and_in_the_record(spent: Service) -> None:
    refused = spent.post(ask(stream=True))
    assert refused.status_code == 429
    assert refused.json()["error"] == "budget_exhausted"
    assert "`caller team 1 calls/month`" in refused.json()["message"]
    assert int(refused.headers["Retry-After"]) > 0
    record = spent.record_of(refused)
    assert (record["status"], record["code"]) == ("error", "budget_exhausted")
    assert record["attempts"] == 0


def sdk(service: Service, token: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=token, max_retries=2)


def ask_with(client: openai.OpenAI) -> Any:
    messages: Any = [{"role": "user", "content": "Hi"}]
    ours = {"brand_id": "loop", "requested_by": "me"}
    return client.chat.completions.create(model=GPT, messages=messages, extra_body=ours)


def test_openai_python_gives_up_at_once_where_a_budget_is_spent(spent: Service) -> None:
    with pytest.raises(openai.RateLimitError) as refused:
        ask_with(sdk(spent, TOKEN))
    assert refused.value.response.json()["error"] == "budget_exhausted"
    assert len(spent.records(2)) == 2


def test_openai_python_waits_for_the_next_minute(
    spent: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    here, sleep = threading.get_ident(), time.sleep

    def note(seconds: float) -> None:
        # (Not the watchdog's, where other tests have left it something to watch.)
        waits.append(seconds) if threading.get_ident() == here else sleep(seconds)

    spent.post(ask(), token=BOUND_TOKEN)
    monkeypatch.setattr(time, "sleep", note)
    with pytest.raises(openai.RateLimitError) as refused:
        ask_until_refused(sdk(spent, BOUND_TOKEN))
    assert refused.value.response.json()["error"] == "rate_limited"
    assert len(waits) == 2
    assert all(0 < wait <= 60 for wait in waits)


def ask_until_refused(client: openai.OpenAI) -> None:
    for _ in range(3):  # where a minute ends in here, one more call passes
        ask_with(client)


NODE = """
import OpenAI from "openai";
const { url, token, body } = JSON.parse(process.env.HOW);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 2 });
await client.chat.completions.create(body).catch((error) => console.log(error.status));
"""


def test_openai_node_gives_up_at_once_where_a_budget_is_spent(
    spent: Service, node_modules: Path
) -> None:
    how = json.dumps({"url": spent.url, "token": TOKEN, "body": ask()})
    run = subprocess.run(
        ["node", "--input-type=module", "--eval", NODE],
        cwd=node_modules,
        env={"PATH": os.environ["PATH"], "HOW": how},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stdout.strip() == "429", run.stderr
    assert len(spent.records(2)) == 2


def test_a_dollar_limit_says_which_models_have_no_price(
    start: Start, upstream: Upstream, tmp_path: Path
) -> None:
    service = start(
        **pointed_at(upstream),
        LIMITS="brand loop 5 USD/month",
        LIMITS_FILE=str(tmp_path / "limits.sqlite3"),
        MODEL_ALIASES="gpt-4o=gpt-of-tomorrow",
    )
    (line,) = [json.loads(line) for line in service.log.splitlines() if "unpriced_models" in line]
    assert line["models"] == ["gpt-4o"]
    answer = openai_completion("Hi") | {"model": "gpt-of-tomorrow"}
    upstream.replies.append(body(json.dumps(answer)))
    assert service.record_of(service.post(ask(GPT)))["unpriced"] is True
    assert service.record_of(service.post(ask(CLAUDE)))["unpriced"] is None
