"""Stopping, reloading and dying: what runs is finished, or told; what is new goes elsewhere."""

import functools
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path

import pytest
import requests

from tests.conftest import CLAUDE, GPT, Service, answer_on, ask, pointed_at, server_after
from tests.upstream import STALL, Upstream, say

DONE = b"data: [DONE]\n\n"


def everyone(service: Service) -> list[int]:
    return [service.process.pid, *service.worker_pids()]


def master_alone(service: Service) -> list[int]:
    return [service.process.pid]


SIGNALLED = pytest.mark.parametrize("whom", [master_alone, everyone])


def send(signal_: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal_)


def refuses_connections(service: Service) -> bool:
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return True
    return False


def streams(service: Service, stack: ExitStack, count: int) -> list[socket.socket]:
    models = [CLAUDE, GPT]
    return [
        stack.enter_context(service.send(ask(models[i % 2], stream=True))) for i in range(count)
    ]


def idle_connections(service: Service, stack: ExitStack, count: int) -> None:
    """Connections kept alive after a request, and others on which none came yet."""
    for _ in range(count):
        stack.enter_context(service.connect())
        kept = stack.enter_context(service.connect())
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_on(kept, "GET").read()


@SIGNALLED
def test_sigterm_lets_streams_finish_while_new_connections_are_refused(
    whom: Callable[[Service], list[int]], start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), WEB_CONCURRENCY=2)
    go_on = threading.Event()
    upstream.default = say("Hel", go_on, "lo")
    with ExitStack() as stack:
        callers = streams(service, stack, 20)
        answers = [answer_on(caller) for caller in callers]
        send(signal.SIGTERM, whom(service))
        service.until(lambda: refuses_connections(service), 1)
        assert service.process.poll() is None
        go_on.set()
        assert all(answer.read().endswith(DONE) for answer in answers)
    ended = time.monotonic()
    assert service.process.wait(10) == 0
    assert time.monotonic() - ended < 2
    assert Counter(record["status"] for record in service.records(20)) == {"ok": 20}


@SIGNALLED
def test_sigterm_ends_what_cannot_finish_in_time_with_an_error(
    whom: Callable[[Service], list[int]], start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), WEB_CONCURRENCY=2, GRACE_TIMEOUT_S=5)
    upstream.default = say("Hel", STALL)
    with ExitStack() as stack:
        answers = [answer_on(caller) for caller in streams(service, stack, 10)]
        waiting = [stack.enter_context(service.send(ask())) for _ in range(10)]
        upstream.wait_for(20)
        began = time.monotonic()
        send(signal.SIGTERM, whom(service))
        for answer in answers:
            body = answer.read()  # torn, it would raise
            assert b'"code": "stopping"' in body
            assert DONE not in body
        for caller in waiting:
            answer = answer_on(caller)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert b'"error": "stopping"' in answer.read()
    assert service.process.wait(10) == 0
    assert time.monotonic() - began < 4
    records = service.records(20)
    assert Counter((record["status"], record["code"]) for record in records) == {
        ("error", "stopping"): 20
    }


STOP_THE_FIRST_WORKER_AS_IT_STARTS = """
import os, signal
from gunicorn.workers.base import Worker
init_signals = Worker.init_signals
def stopped_first(worker):
    if worker.age == 1:
        os.kill(worker.pid, signal.SIGTERM)
    init_signals(worker)
Worker.init_signals = stopped_first
"""


def test_a_worker_told_to_stop_before_it_handles_signals_stops(tmp_path: Path) -> None:
    command = server_after(STOP_THE_FIRST_WORKER_AS_IT_STARTS)
    with Service(tmp_path / "log", *command, OFFLINE="1") as service:
        service.until(lambda: "Worker exiting" in service.log)
        assert requests.get(f"{service.url}/healthz", timeout=10).status_code == 200


def test_a_signal_that_comes_again_does_not_put_the_end_off(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), GRACE_TIMEOUT_S=6)
    upstream.default = say("Hel", STALL)
    over = threading.Event()

    def insist() -> None:
        pids = everyone(service)
        while not over.wait(0.4):
            for pid in pids:
                if os.path.exists(f"/proc/{pid}"):
                    send(signal.SIGTERM, [pid])

    with ExitStack() as stack:
        answers = [answer_on(caller) for caller in streams(service, stack, 2)]
        send(signal.SIGTERM, everyone(service))
        again = threading.Thread(target=insist)
        again.start()
        try:
            assert all(b'"code": "stopping"' in answer.read() for answer in answers)
        finally:
            over.set()
            again.join()
    assert service.process.wait(10) == 0


def test_connections_on_which_nothing_happens_do_not_hold_up_the_exit(
    start: Callable[..., Service],
) -> None:
    service = start(OFFLINE=1, WEB_CONCURRENCY=2)
    with ExitStack() as stack:
        idle_connections(service, stack, 20)
        answered = stack.enter_context(service.connect())
        answered.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert answer_on(answered, "GET").read()
        began = time.monotonic()
        send(signal.SIGTERM, master_alone(service))
        assert service.process.wait(20) == 0
        assert time.monotonic() - began < 4


def test_a_caller_who_stopped_reading_does_not_hold_up_the_exit(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), GRACE_TIMEOUT_S=5)
    upstream.default = say(*["x" * 60_000] * 1000)
    with ExitStack() as stack:
        streams(service, stack, 2)
        upstream.wait_for(2)
        began = time.monotonic()
        send(signal.SIGTERM, master_alone(service))
        assert service.process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert len(service.records(2)) == 2


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_an_impatient_signal_ends_everything_at_once_but_cleanly(
    signal_: signal.Signals, start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream))
    upstream.default = say("Hel", STALL)
    with ExitStack() as stack:
        answers = [answer_on(caller) for caller in streams(service, stack, 4)]
        began = time.monotonic()
        send(signal_, everyone(service) if signal_ is signal.SIGINT else master_alone(service))
        assert all(b'"code": "stopping"' in answer.read() for answer in answers)
        assert service.process.wait(10) == 0
        assert time.monotonic() - began < 3


def test_sighup_under_load_loses_nothing(start: Callable[..., Service], upstream: Upstream) -> None:
    service = start(**pointed_at(upstream), WEB_CONCURRENCY=2)
    upstream.default = say("Hel", 0.02, "lo")
    over = threading.Event()
    statuses: list[object] = []

    def call(stream: bool) -> None:
        while not over.is_set():
            try:
                response = service.post(ask(stream=stream))
                complete = response.text.endswith("data: [DONE]\n\n" if stream else "}")
                statuses.append(response.status_code if complete else "torn")
            except requests.RequestException as error:
                statuses.append(type(error).__name__)

    callers = [threading.Thread(target=call, args=(i % 2 == 0,)) for i in range(10)]
    for caller in callers:
        caller.start()
    for _ in range(2):
        reload(service)
        so_far = len(statuses)
        service.until(functools.partial(has_more, statuses, so_far + 40))
    over.set()
    for caller in callers:
        caller.join()
    assert set(statuses) == {200}


def reload(service: Service) -> None:
    """SIGHUP, until every worker is a new one."""
    before = set(service.worker_pids())
    send(signal.SIGHUP, master_alone(service))
    service.until(lambda: len(set(service.worker_pids()) - before) == 2)
    service.until(lambda: not before & set(service.worker_pids()))


def has_more(items: list[object], count: int) -> bool:
    return len(items) > count


def test_a_killed_worker_costs_only_its_own_requests(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), WEB_CONCURRENCY=2)
    upstream.default = say("Hel", *[0.1, "lo"] * 15)
    with ExitStack() as stack:
        answers = [answer_on(caller) for caller in streams(service, stack, 40)]
        killed, spared = service.until(lambda: len(pids := service.worker_pids()) == 2 and pids)
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            assert requests.get(f"{service.url}/healthz", timeout=1).status_code == 200
        service.until(lambda: len(set(service.worker_pids()) - {killed}) == 2)
        upstream.default = say("Hello")
        assert service.post(ask()).status_code == 200
        assert time.monotonic() - began < 2
        ends = Counter(_ending(answer) for answer in answers)
    lost = sum(each.gone.wait(0) for each in upstream.received)
    assert ends == Counter(done=40 - lost, torn=lost)
    assert spared in service.worker_pids()


def test_an_error_in_mid_answer_costs_only_that_answer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Service(log, "gunicorn", "tests.breaking_app:app", OFFLINE="1") as service:
        before = service.worker_pids()
        for _ in range(3):
            with service.connect() as caller:
                caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                with pytest.raises(IncompleteRead):
                    answer_on(caller, "GET").read()
            assert requests.get(f"{service.url}/healthz", timeout=1).text == "ok"
        assert service.worker_pids() == before
        assert "nobody should log" not in service.log


def _ending(answer: HTTPResponse) -> str:
    try:
        return "done" if answer.read().endswith(DONE) else "cut"
    except (HTTPException, OSError):
        return "torn"


def test_a_worker_at_its_last_request_ends_its_other_calls_as_a_stop_does(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    options = {"GRACE_TIMEOUT_S": 5, "GUNICORN_CMD_ARGS": "--max-requests=2"}
    service = start(**pointed_at(upstream), **options)
    upstream.default = say("Hel", STALL)
    with ExitStack() as stack:
        answers = [answer_on(caller) for caller in streams(service, stack, 2)]
        for answer in answers:
            assert b'"code": "stopping"' in answer.read()  # torn, it would raise
    assert service.post(ask(), token="wrong").status_code == 401  # another worker is there
    assert service.process.poll() is None


OUTPUT_THAT_NOBODY_READS = """
import fcntl, os
reader, writer = os.pipe()
fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
os.dup2(writer, 1)
os.dup2(writer, 2)
"""


@pytest.mark.parametrize("options", ["", "--access-logfile=- --log-level=debug"])
def test_a_log_that_nobody_reads_holds_up_neither_calls_nor_signals(
    options: str, tmp_path: Path
) -> None:
    command = server_after(OUTPUT_THAT_NOBODY_READS)
    settings = {"OFFLINE": "1", "GRACE_TIMEOUT_S": "5", "GUNICORN_CMD_ARGS": options}
    with Service(tmp_path / "log", *command, **settings) as service:
        for _ in range(40):
            assert service.post(ask()).status_code == 200
            assert service.post(ask(), token="wrong").status_code == 401
            assert requests.get(f"{service.url}/%", timeout=5).status_code == 401
        send(signal.SIGUSR1, everyone(service))
        (before,) = service.worker_pids()
        send(signal.SIGHUP, master_alone(service))
        service.until(lambda: len(set(service.worker_pids()) - {before}) == 1)
        service.until(lambda: before not in service.worker_pids())
        assert service.post(ask()).status_code == 200
        send(signal.SIGTERM, master_alone(service))
        assert service.process.wait(7) == 0
