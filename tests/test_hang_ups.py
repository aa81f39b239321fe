"""Callers who leave: what was done for them ends, and nothing of it stays behind."""

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import pytest

from tests.conftest import CLAUDE, GPT, TOKEN, Service, ask, serve
from tests.upstream import STALL, Reply, Upstream, raw, refuse, say

CALLERS, THREADS = 50, 63
# From hanging up to the end of the upstream request.
SOON_S = 2.0


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    # Just enough slots: one that was not given back would be missed by the next crowd.
    # One caller alone may have all slots; where there are more, a fifth is kept for the others.
    alone = f"team:{TOKEN}"
    for service, provider in serve(tmp_path_factory, THREADS=THREADS, ACCESS_TOKENS=alone):
        start_all_threads(service)
        yield service, provider


def start_all_threads(service: Service) -> None:
    """The server starts threads as it needs them, and keeps them."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 5\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(THREADS):
            stack.enter_context(service.connect()).sendall(head.encode())
        service.until(lambda: held(service)[1] >= THREADS)
    service.post(ask())  # starts the watchdog if nothing has


def crowd_that_vanishes(
    service: Service, provider: Upstream, reply: Reply, who: str, **request: Any
) -> list[float]:
    """Fifty callers ask, get this reply and hang up: after how long each upstream request ended."""
    provider.replies.extend([reply] * CALLERS)
    before = len(provider.received)
    models = cycle([CLAUDE, GPT])
    # With buffers that grow, those who do not read would take a gigabyte of the kernel's memory
    # in all, and a kernel that runs short of it drops the packet that says that they left.
    callers = [
        service.send(ask(next(models), requested_by=who, **request), buffer_bytes=4096)
        for _ in range(CALLERS)
    ]
    received = provider.wait_for(before + CALLERS)[before:]
    if request["stream"] and reply.parts[0] is not STALL:  # type: ignore[index]
        for caller in callers:
            caller.recv(1)
    left = time.monotonic()
    for caller in callers:
        caller.close()
    took = []
    for each in received:
        assert each.gone.wait(3 * SOON_S), "the provider was left working for nobody"
        took.append(time.monotonic() - left)
    service.records(CALLERS, requested_by=who)
    return took


def held(service: Service) -> tuple[int, int]:
    """Descriptors and threads of the worker."""
    (pid,) = service.worker_pids()
    return len(os.listdir(f"/proc/{pid}/fd")), service.threads_of(pid)


CROWDS = {
    "in mid-stream": (say(*["and ", 0.05] * 1000), True),
    "while the provider is silent in mid-stream": (say("Hel", STALL), True),
    "while the provider has not begun its stream": (say(STALL), True),
    "while they wait for a full answer": (say(STALL), False),
    "while they do not read what comes": (say(*["x" * 60_000] * 1000), True),
}


@pytest.mark.parametrize(("reply", "stream"), CROWDS.values(), ids=CROWDS)
def test_nothing_is_left_of_fifty_callers_who_vanish(
    reply: Reply, stream: bool, request: pytest.FixtureRequest, service: Service, provider: Upstream
) -> None:
    files, threads = held(service)
    who = request.node.name
    took = crowd_that_vanishes(service, provider, reply, who, stream=stream)
    assert max(took) < SOON_S
    records = service.records(CALLERS, requested_by=who)
    assert Counter(record["status"] for record in records) == {"client_disconnect": CALLERS}
    assert {record["code"] for record in records} == {None}
    assert {record["attempts"] for record in records} == {1}
    service.until(lambda: held(service)[0] <= files)
    assert held(service)[1] <= threads
    assert service.post(ask()).status_code == 200


def test_hanging_up_costs_no_new_connection_to_the_provider(
    service: Service, provider: Upstream
) -> None:
    service.post(ask())  # leaves a connection that the next call uses
    connections = provider.connections
    provider.replies.append(raw(STALL))
    with service.send(ask(requested_by="used")):
        provider.wait_for(2)
    assert service.records(requested_by="used")[0]["status"] == "client_disconnect"
    assert provider.connections == connections


def test_nothing_is_tried_again_for_a_caller_who_left(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(503, retry_after="2"))
    with service.send(ask(requested_by="impatient")):
        provider.wait_for(1)
    connections = provider.connections
    left = time.monotonic()
    record = service.records(requested_by="impatient")[0]
    assert time.monotonic() - left < 1
    assert (record["status"], record["attempts"]) == ("client_disconnect", 1)
    assert provider.connections == connections
    assert len(provider.received) == 1


@pytest.mark.usefixtures("provider")
def test_a_caller_who_leaves_at_the_very_end_has_still_been_served(service: Service) -> None:
    with service.send(ask(requested_by="served", stream=True)) as caller:
        answer = b""
        while b"[DONE]" not in answer:
            answer += caller.recv(65536)
    assert service.records(requested_by="served")[0]["status"] == "ok"


HALF_CLOSED = {
    "before a full answer": (say(0.5, "Hello"), False),
    "before a stream": (raw(STALL), True),
    "in mid-stream": (say("Hel", 0.5, "lo"), True),
}


@pytest.mark.parametrize(("reply", "stream"), HALF_CLOSED.values(), ids=HALF_CLOSED)
def test_who_closes_only_the_sending_side_reads_no_answer_that_is_none(
    reply: Reply, stream: bool, service: Service, provider: Upstream
) -> None:
    provider.replies.append(reply)
    with service.send(ask(stream=stream)) as caller:
        caller.shutdown(socket.SHUT_WR)
        said = b""
        while read := caller.recv(65536):
            said += read
    if reply.parts[0] == "Hel":  # type: ignore[index]
        assert said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert not said.endswith(b"0\r\n\r\n")  # torn, where it ends
    else:
        assert said == b""
    assert "crash" not in service.log
