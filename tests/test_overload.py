"""More callers than slots: some are served, the others are told at once, and nobody is kept."""

import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import pytest
import requests

from tests.conftest import (
    BOUND_TOKEN,
    CLAUDE,
    GPT,
    TOKEN,
    Service,
    answer_on,
    ask,
    pointed_at,
    server_after,
)
from tests.upstream import Upstream, say

THREADS, SLOTS = 20, 16
AT_ONCE_S = 1.0


@pytest.fixture
def small(start: Callable[..., Service], upstream: Upstream) -> Service:
    """A service whose few slots are soon taken."""
    # One caller alone may have all slots; where there are more, a fifth is kept for the others.
    return start(
        **pointed_at(upstream),
        THREADS=THREADS,
        ACCESS_TOKENS=f"team:{TOKEN},team:{BOUND_TOKEN}:loop",
    )


@contextmanager
def full(service: Service, upstream: Upstream) -> Iterator[list[socket.socket]]:
    """All slots are held by streams that wait; afterwards, these can end."""
    go_on = threading.Event()
    upstream.default = say("Hel", go_on, "lo")
    before = len(upstream.received)
    with ExitStack() as stack:
        streams = [
            stack.enter_context(service.send(ask([CLAUDE, GPT][i % 2], stream=True)))
            for i in range(SLOTS)
        ]
        upstream.wait_for(before + SLOTS)
        try:
            yield streams
        finally:
            go_on.set()
        for stream in streams:
            answer = answer_on(stream)
            assert answer.status == 200
            assert answer.read().endswith(b"data: [DONE]\n\n")


def is_shed(answer: HTTPResponse) -> bool:
    document = json.loads(answer.read())
    return (
        answer.status == 503
        and sorted(document) == ["error", "message"]
        and document["error"] == "overloaded"
        and int(answer.headers["Retry-After"]) >= 1
        and answer.headers["Content-Type"] == "application/json"
    )


def test_health_checks_are_answered_at_once_while_every_slot_is_taken(
    small: Service, upstream: Upstream
) -> None:
    with full(small, upstream):
        for _ in range(5):
            response = requests.get(f"{small.url}/healthz", timeout=AT_ONCE_S)
            assert response.json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_without_a_slot_is_told_at_once_when_to_come_again(
    stream: bool, small: Service, upstream: Upstream
) -> None:
    with full(small, upstream):
        response = small.post(ask(stream=stream))
        assert response.elapsed.total_seconds() < AT_ONCE_S
        assert response.status_code == 503
        assert response.json() == {
            "error": "overloaded",
            "message": "All 16 call slots here are taken.",
        }
        assert response.headers["Retry-After"] == "1"
        record = small.record_of(response)
        assert (record["status"], record["code"]) == ("error", "overloaded")
        assert record["attempts"] == 0
        assert len(upstream.received) == SLOTS


def test_it_recovers_by_itself(small: Service, upstream: Upstream) -> None:
    for _ in range(2):
        with full(small, upstream):
            assert small.post(ask()).status_code == 503
        upstream.default = say("Hello")
        assert small.post(ask()).status_code == 200


def test_refused_requests_need_no_slot(small: Service, upstream: Upstream) -> None:
    with full(small, upstream):
        assert small.post(ask(), token=None).status_code == 401
        assert small.post(b"{}").status_code == 400
        assert small.post(ask(brand_id="other"), token="bound-token").status_code == 403


def test_of_hundreds_of_callers_each_is_served_or_told_at_once(
    small: Service, upstream: Upstream
) -> None:
    go_on = threading.Event()
    upstream.default = say("Hel", go_on, "lo")
    with ExitStack() as stack:
        callers = [
            stack.enter_context(small.send(ask([CLAUDE, GPT][i % 2], stream=True)))
            for i in range(300)
        ]
        upstream.wait_for(SLOTS)
        began = time.monotonic()
        # The shed ones are answered while the others still hold their slots.
        answers = [answer_on(caller) for caller in callers]
        assert time.monotonic() - began < AT_ONCE_S
        statuses = Counter(answer.status for answer in answers)
        assert statuses == {200: SLOTS, 503: 300 - SLOTS}
        assert all(is_shed(answer) for answer in answers if answer.status == 503)
        go_on.set()
        served = [answer.read() for answer in answers if answer.status == 200]
    assert all(body.endswith(b"data: [DONE]\n\n") for body in served)


FEW_DESCRIPTORS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
"""
FEW_THREADS = """
import threading
start = threading.Thread.start
def start_if_there_are_few(thread):
    if threading.active_count() > 150:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = start_if_there_are_few
"""
NO_BODY_YET = (
    f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    "Content-Length: 5\r\n\r\n"
).encode()


@contextmanager
def twenty_streams(service: Service, upstream: Upstream) -> Iterator[None]:
    """Twenty calls run inside; afterwards, all have their whole answers from the same worker."""
    workers, go_on = service.worker_pids(), threading.Event()
    upstream.default = say("Hel", go_on, "lo")
    with ExitStack() as stack:
        answers = [
            answer_on(stack.enter_context(service.send(ask(stream=True)))) for _ in range(20)
        ]
        yield
        go_on.set()
        assert all(answer.read().endswith(b"data: [DONE]\n\n") for answer in answers)
    assert service.worker_pids() == workers


def is_healthy(service: Service) -> bool:
    return requests.get(f"{service.url}/healthz", timeout=10).status_code == 200


def test_running_calls_go_on_when_the_system_gives_no_more_threads(
    tmp_path: Path, upstream: Upstream
) -> None:
    command = server_after(FEW_THREADS)
    with Service(tmp_path / "log", *command, **pointed_at(upstream)) as service:
        (pid,) = service.worker_pids()
        with twenty_streams(service, upstream):
            with ExitStack() as crowd:
                for _ in range(200):
                    crowd.enter_context(service.connect()).sendall(NO_BODY_YET)
                service.until(lambda: service.threads_of(pid) >= 150)
            assert is_healthy(service)


KEPT = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
# By itself, it takes no more connections than it has descriptors for.
CROWDS = {
    "few": ("", (b"", b"GET", KEPT)),
    "few, and each has had its answer": ("", (KEPT,)),
    "all taken": ("--worker-connections=1000", (b"", b"GET", KEPT)),
}


@pytest.mark.parametrize(("options", "crowd"), CROWDS.values(), ids=CROWDS)
def test_idle_connections_make_room_when_descriptors_are(
    options: str, crowd: tuple[bytes, ...], tmp_path: Path, upstream: Upstream
) -> None:
    command = server_after(FEW_DESCRIPTORS)
    settings = pointed_at(upstream) | {"GUNICORN_CMD_ARGS": options}
    with Service(tmp_path / "log", *command, **settings) as service:
        (pid,) = service.worker_pids()
        with twenty_streams(service, upstream), ExitStack() as stack:
            for sent in crowd * (210 // len(crowd)):
                stack.enter_context(service.connect()).sendall(sent)
            before = cpu_s(pid)
            time.sleep(1)
            assert cpu_s(pid) - before < 0.5
            assert is_healthy(service)


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_callers_who_take_none_of_their_answers_hold_no_thread(
    path: str, start: Callable[..., Service]
) -> None:
    service = start(OFFLINE=1, THREADS=10)
    (pid,) = service.worker_pids()
    requests_ = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2000
    with ExitStack() as stack:
        for _ in range(20):
            caller = stack.enter_context(service.connect(buffer_bytes=4096))
            caller.setblocking(False)
            caller.send(requests_)
        service.until(lambda: is_idle(pid))  # what it can say to them is said
        assert all(is_healthy(service) for _ in range(20))
        assert service.post(ask()).elapsed.total_seconds() < AT_ONCE_S


def is_idle(pid: int) -> bool:
    before = cpu_s(pid)
    time.sleep(0.3)
    return cpu_s(pid) - before < 0.05


def test_a_body_in_a_million_chunks_costs_little(service: Service) -> None:
    (pid,) = service.worker_pids()
    before = cpu_s(pid)
    head = NO_BODY_YET.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")
    with service.connect() as caller:
        caller.sendall(head + b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n")
        assert answer_on(caller).status == 400
    assert cpu_s(pid) - before < 1.5


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_with_its_default_settings_it_carries_three_hundred_streams(
    service: Service, provider: Upstream
) -> None:
    go_on = threading.Event()
    provider.replies.extend([say("Hel", go_on, "lo")] * 300)
    with ExitStack() as stack:
        callers = [
            stack.enter_context(service.send(ask([CLAUDE, GPT][i % 2], stream=True)))
            for i in range(300)
        ]
        answers = [answer_on(caller) for caller in callers]
        assert requests.get(f"{service.url}/healthz", timeout=AT_ONCE_S).status_code == 200
        go_on.set()
        bodies = [answer.read() for answer in answers]
    assert {answer.status for answer in answers} == {200}
    assert all(body.endswith(b"data: [DONE]\n\n") for body in bodies)


ON_TWO_CPUS = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes two CPUs")
def test_each_worker_has_a_cpu_of_its_own_even_one_that_replaces_another(tmp_path: Path) -> None:
    def is_apart(service: Service) -> bool:
        cpus = [os.sched_getaffinity(pid) for pid in service.worker_pids()]
        return [len(each) for each in cpus] == [1, 1] and not set.intersection(*cpus)

    command = server_after(ON_TWO_CPUS)
    with Service(tmp_path / "log", *command, OFFLINE="1", WEB_CONCURRENCY="2") as service:
        for _ in range(3):
            service.until(lambda: is_apart(service))
            killed = service.worker_pids()[-1]
            os.kill(killed, signal.SIGKILL)
            service.until(lambda pid=killed: pid not in service.worker_pids())


def test_a_lone_worker_may_use_every_cpu(service: Service) -> None:
    (pid,) = service.worker_pids()
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)


NO_CPU_TO_CHOOSE = """
import os
def refuse(*asked):
    raise PermissionError(1, "Operation not permitted")
os.sched_{}affinity = refuse
"""


@pytest.mark.parametrize("what", ["get", "set"])
def test_it_serves_where_no_cpu_may_be_chosen(what: str, tmp_path: Path) -> None:
    cpus = str(len(os.sched_getaffinity(0)))
    command = server_after(NO_CPU_TO_CHOOSE.format(what))
    with Service(tmp_path / "log", *command, OFFLINE="1", WEB_CONCURRENCY=cpus) as service:
        assert service.post(ask()).status_code == 200
