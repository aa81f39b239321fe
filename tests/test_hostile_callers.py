"""Slow, broken and hostile callers: theirs ends soon and cleanly, and nobody else notices."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import requests

from tests.conftest import TOKEN, Service, answer_on, ask, pointed_at, serve
from tests.upstream import Upstream

ARRIVAL_S = 1.0
CROWD = 100
PATH = b"/v1/chat/completions"
AUTHORIZED = b"Host: x\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode()
POST = b"POST %b HTTP/1.1\r\n%b" % (PATH, AUTHORIZED)
BODY = json.dumps(ask()).encode()
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(tmp_path_factory, ARRIVAL_TIMEOUT_S=ARRIVAL_S)


def assert_serves_normally(service: Service) -> None:
    """Normal requests are answered in under a second."""
    for _ in range(3):
        assert requests.get(f"{service.url}/healthz", timeout=1).status_code == 200
        response = service.post(ask())
        assert response.status_code == 200
        assert response.elapsed.total_seconds() < 1
        began = time.monotonic()
        assert service.stream(ask())[-1] == "data: [DONE]"
        assert time.monotonic() - began < 1


@contextmanager
def crowd(service: Service, first: bytes, drip: bytes = b"") -> Iterator[list[socket.socket]]:
    """Many connections that send `first` and then `drip`, again and again, slowly."""
    over = threading.Event()
    with ExitStack() as stack:
        callers = [stack.enter_context(service.connect()) for _ in range(CROWD)]

        def dribble() -> None:
            for caller in callers:
                _still_takes(caller, first)
            living = callers if drip else []
            while living and not over.wait(0.1):
                living = [caller for caller in living if _still_takes(caller, drip)]

        thread = threading.Thread(target=dribble)
        thread.start()
        yield callers
        over.set()
        thread.join()


def _still_takes(caller: socket.socket, data: bytes) -> bool:
    try:
        caller.sendall(data)
    except OSError:
        return False
    return True


def ending(caller: socket.socket) -> bytes:
    """All that comes on a connection until the service closes it; raises if it is reset."""
    said = b""
    while read := caller.recv(65536):
        said += read
    return said


def ends_unanswered(caller: socket.socket) -> bool:
    try:
        return ending(caller) == b""
    except ConnectionResetError:
        return True


def assert_is_refused(said: bytes, *statuses: int) -> None:
    """One answer, a 4xx in the contract's shape with all its headers, and nothing after it."""
    head, _, body = said.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    found = re.fullmatch(r"HTTP/1\.[01] (\d+) .+", lines[0])
    assert found, said[:200]
    assert int(found[1]) in (statuses or range(400, 500))
    headers = {name.lower(): value for name, _, value in (s.partition(": ") for s in lines[1:])}
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    assert int(headers["content-length"]) == len(body)
    assert sorted(json.loads(body)) == ["error", "message"]


# The slow.


def test_half_open_connections_take_no_thread_and_are_closed(service: Service) -> None:
    (pid,) = service.worker_pids()
    before = service.threads_of(pid)
    with crowd(service, b"") as callers:
        assert_serves_normally(service)
        assert service.threads_of(pid) < before + CROWD / 2
        began = time.monotonic()
        assert all(ends_unanswered(caller) for caller in callers)
        assert time.monotonic() - began < ARRIVAL_S + 2


def test_dribbled_headers_are_closed(service: Service) -> None:
    with crowd(service, b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a") as callers:
        assert_serves_normally(service)
        began = time.monotonic()
        assert all(ends_unanswered(caller) for caller in callers)
        assert time.monotonic() - began < ARRIVAL_S + 2


SLOW_BODIES = {
    "of an announced length": (POST + b"Content-Length: 5000\r\n\r\n", b"a", 400),
    "in chunks": (CHUNKED, b"1\r\na\r\n", 400),
    "of an unknown caller": (
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" % PATH,
        b"a",
        401,
    ),
    "for no known path": (
        b"POST /x HTTP/1.1\r\n%bContent-Length: 50\r\n\r\n" % AUTHORIZED,
        b"a",
        404,
    ),
}


@pytest.mark.parametrize(("head", "drip", "status"), SLOW_BODIES.values(), ids=SLOW_BODIES)
def test_dribbled_bodies_are_refused(
    head: bytes, drip: bytes, status: int, service: Service
) -> None:
    with crowd(service, head, drip) as callers:
        assert_serves_normally(service)
        began = time.monotonic()
        answers = [answer_on(caller) for caller in callers]
        assert time.monotonic() - began < ARRIVAL_S + 2
        assert {answer.status for answer in answers} == {status}
        # What comes of the body later would be taken for the next request.
        assert {answer.headers["Connection"] for answer in answers} == {"close"}
        for answer in answers:
            assert sorted(json.loads(answer.read())) == ["error", "message"]


def test_answered_callers_who_never_close_hold_no_thread(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), THREADS=20)
    for request in (b"NOT HTTP\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n"):
        with crowd(service, request) as callers:
            for caller in callers:
                caller.settimeout(2)
                assert caller.recv(12).startswith(b"HTTP/1.")
            assert_serves_normally(service)


def test_a_crowd_with_oversized_headers_is_refused(service: Service) -> None:
    with crowd(service, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n") as callers:
        assert_serves_normally(service)
        for caller in callers:
            assert_is_refused(ending(caller), 431)


def test_callers_who_close_early_are_forgotten(service: Service, provider: Upstream) -> None:
    for end in (0, 1, 10, len(POST), len(POST) + 10):
        for _ in range(20):
            with service.connect() as caller:
                caller.sendall((POST + b"Content-Length: 5000\r\n\r\n" + BODY)[:end])
    with service.connect() as caller:
        caller.sendall(POST + b"Content-Length: 5000\r\n\r\n" + BODY)
        caller.shutdown(socket.SHUT_WR)
        assert_is_refused(ending(caller), 400)
    assert_serves_normally(service)
    assert len(provider.received) == 6


# The broken, and those who would smuggle.


def with_length(value: bytes) -> bytes:
    return POST + b"Content-Length: " + value + b"\r\n\r\n" + BODY


def with_coding(header: bytes, version: bytes = b"1.1") -> bytes:
    head = POST.replace(b"HTTP/1.1", b"HTTP/" + version)
    return head + header + b"\r\n\r\n" + CHUNK + b"0\r\n\r\n"


CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
N = b"%d" % len(BODY)

BROKEN = {
    "length and chunks": with_coding(b"Content-Length: 5\r\nTransfer-Encoding: chunked") + SMUGGLED,
    "chunks and length": with_coding(b"Transfer-Encoding: chunked\r\nContent-Length: 5") + SMUGGLED,
    "a folded coding": with_coding(b"Transfer-Encoding:\r\n chunked"),
    "a space before the colon": with_coding(b"Transfer-Encoding : chunked"),
    "an unknown coding": with_coding(b"Transfer-Encoding: xchunked"),
    "a compressed coding": with_coding(b"Transfer-Encoding: gzip, chunked"),
    "chunked twice": with_coding(b"Transfer-Encoding: chunked, chunked"),
    "two codings": with_coding(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "chunks in HTTP/1.0": with_coding(b"Transfer-Encoding: chunked", b"1.0"),
    "two lengths": with_length(N + b"\r\nContent-Length: 5") + SMUGGLED,
    "a length twice": with_length(N + b"\r\nContent-Length: " + N),
    "a list of lengths": with_length(N + b", " + N),
    "a signed length": with_length(b"+" + N),
    "a negative length": with_length(b"-1"),
    "a hexadecimal length": with_length(b"0x10"),
    "a length of 5000 digits": with_length(b"9" * 5000),
    "a chunk size that is none": CHUNKED + b"zz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk extension with a line feed": CHUNKED + b"5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "an endless chunk size": CHUNKED + b"0" * 500_000,
    "an endless chunk extension": CHUNKED + b"1;" + b"a" * 500_000,
    "endless trailers": CHUNKED + CHUNK + b"0\r\n" + b"A: b\r\n" * 100_000,
    "a long header": POST + b"X-Long: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "many headers": POST + b"".join(b"X-%d: y\r\n" % i for i in range(500)) + b"\r\n",
    "endless headers": POST + b"X: y\r\n" * 200_000,
    "a long request line": b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
    "an endless request line": b"GET /" + b"a" * 1_000_000,
    "a header without a colon": POST + b"garbage\r\n\r\n",
    "a header with a NUL": POST + b"X: a\0b\r\n\r\n",
    "a header with a carriage return": POST + b"X: a\rb\r\n\r\n",
    "a header name with a space": POST + b"X Y: z\r\n\r\n",
    "bare line feeds": POST.replace(b"\r\n", b"\n") + b"\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "a host that is none": b"GET /healthz HTTP/1.1\r\nHost: a/b c\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /healthz HTTP/3.0\r\n\r\n",
    "a PROXY line": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + SMUGGLED,
    "a method that is none": b"G@T /healthz HTTP/1.1\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\n\r\n",
    "a path of bytes": b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    "an unknown expectation": POST + b"Expect: the-impossible\r\nContent-Length: 0\r\n\r\n",
    "empty lines": b"\r\n" * 1000,
    "NULs": b"\0" * 10_000,
    "noise": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("request_", BROKEN.values(), ids=BROKEN)
def test_malformed_is_what_is_refused(
    request_: bytes, service: Service, provider: Upstream
) -> None:
    with service.connect() as caller:
        assert _still_takes(caller, request_)  # all of it: the connection is not reset
        assert_is_refused(ending(caller))
    assert provider.received == []


def test_tls_on_the_plain_port_is_closed_by_the_time_limit(service: Service) -> None:
    hello = bytes.fromhex("16030100f8010000f40303") + b"\xaa" * 230
    began = time.monotonic()
    with service.connect() as caller:
        caller.sendall(hello)
        assert ends_unanswered(caller)
    assert time.monotonic() - began < ARRIVAL_S + 2


def test_a_giant_token_is_an_unknown_token(service: Service) -> None:
    assert service.post(ask(), token="a" * 8_000).status_code == 401


def test_requests_that_come_in_one_piece_are_answered_one_by_one(
    service: Service, provider: Upstream
) -> None:
    with service.connect() as caller:
        caller.sendall(with_length(N) * 3)
        said = b""
        while said.count(b"HTTP/1.1 200 OK") < 3 or not said.endswith(b"}"):
            said += caller.recv(65536)
    assert len(provider.received) == 3


def test_what_proxies_say_of_the_scheme_is_no_mistake_of_the_callers(service: Service) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"}
    assert service.post(ask(), headers=headers).status_code == 200
