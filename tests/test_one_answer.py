"""One request, one final answer: what a proxy that shares its connections may rely on."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import TOKEN, Service, ask

PATH = b"/v1/chat/completions"
KNOWN = b"Host: x\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode()
CHUNKED, LONG = b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Length: 300\r\n\r\n"
EXPECTING = b"Expect: 100-continue\r\n"
# What is answered before, or without, its body being read.
EARLY = {
    "401": b"POST %b HTTP/1.1\r\nHost: x\r\n" % PATH,
    "404": b"POST /nothing/here HTTP/1.1\r\n%b" % KNOWN,
    "405": b"PUT %b HTTP/1.1\r\n%b" % (PATH, KNOWN),
    "413": b"POST %b HTTP/1.1\r\n%b" % (PATH, KNOWN),
    "415": b"POST %b HTTP/1.1\r\n%bContent-Encoding: gzip\r\n" % (PATH, KNOWN),
    "200": b"GET /healthz HTTP/1.1\r\nHost: x\r\n",
    "200, to HEAD": b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n",
    "200, to a page's reader": b"GET / HTTP/1.1\r\nHost: x\r\n",
}
BROKEN = {
    "a bad chunk": b"zz\r\n",
    "a bad end of a chunk": b"1\r\nxyz0\r\n\r\n",
    "a trailer that is none": b"1\r\nx\r\n0\r\nAuthorization: a\r\n\r\n",
    "a request": b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "noise": b"\x16\x03\x01\x00\n\n\r\n\r\n" * 50,
}
TOO_LONG = b"2dc6c0\r\n" + b"x" * 3_000_000 + b"\r\n"


@pytest.fixture
def service(offline_service: Service) -> Service:
    return offline_service


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("small") / "log"
    with Service(log, OFFLINE="1", MAX_BODY_BYTES="2000000") as service:
        yield service


class Answers:
    """The answers on one connection, as a proxy reads them."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")

    def next(self, method: bytes) -> tuple[int, dict[str, str], bytes]:
        """The next final answer; raises EOFError where there is none."""
        line = self._file.readline()
        if not line:
            raise EOFError
        status = int(line.split()[1])
        headers = {}
        while (field := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip().lower()
        if status < 200:
            return self.next(method)
        length = 0 if method == b"HEAD" else int(headers.get("content-length", "0"))
        body = self._file.read(length)
        assert len(body) == length
        return status, headers, body


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("framing", [CHUNKED, LONG, EXPECTING + CHUNKED, EXPECTING + LONG])
@pytest.mark.parametrize(("status", "head"), EARLY.items(), ids=EARLY)
def test_an_answer_before_the_body_is_the_last_on_its_connection(
    status: str, head: bytes, framing: bytes, rest: bytes, late: bool, small: Service
) -> None:
    if status == "413":
        if framing.endswith(LONG):
            framing = framing.replace(b"300", b"3000000")
        else:
            rest = TOO_LONG + rest
    method = head.split()[0]
    with small.connect() as caller:
        caller.sendall(head + framing + (b"" if late and status != "413" else rest))
        answers = Answers(caller)
        got, headers, _ = answers.next(method)
        assert got == int(status[:3])
        assert headers["connection"] == "close"
        if late:
            with contextlib.suppress(ConnectionError):
                caller.sendall(rest)
        caller.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            answers.next(method)


@pytest.mark.parametrize("framing", [CHUNKED, b"Content-Length: 3000000\r\n\r\n"])
@pytest.mark.parametrize(("status", "head"), EARLY.items(), ids=EARLY)
def test_a_body_that_nobody_will_read_is_not_asked_for(
    status: str, head: bytes, framing: bytes, small: Service
) -> None:
    if status == "413" and framing == CHUNKED:
        pytest.skip("its size is not known before it is read")
    with small.connect() as caller:
        caller.sendall(head + EXPECTING + framing)
        assert caller.makefile("rb").readline().split()[1].decode() == status[:3]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_read_is_asked_for_once(is_chunked: bool, small: Service) -> None:
    data = json.dumps(ask()).encode()
    framing = CHUNKED if is_chunked else b"Content-Length: %d\r\n\r\n" % len(data)
    with small.connect() as caller:
        caller.sendall(b"POST %b HTTP/1.1\r\n%b%b%b" % (PATH, KNOWN, EXPECTING, framing))
        answers = caller.makefile("rb")
        assert answers.readline() + answers.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if is_chunked else data)
        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"


def test_well_formed_requests_in_one_go_are_all_answered_and_keep_the_connection(
    service: Service,
) -> None:
    data = json.dumps(ask()).encode()
    post = b"POST %b HTTP/1.1\r\n%b" % (PATH, KNOWN)
    sent = [
        post + b"Content-Length: %d\r\n\r\n" % len(data) + data,
        post + CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data),
        post + CHUNKED + b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: x\r\n\r\n" % (len(data), data),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        post + b"Content-Length: 2\r\n\r\n{}",
    ]
    with service.connect() as caller:
        caller.sendall(b"".join(sent * 3))
        answers = Answers(caller)
        for request in sent * 3:
            status, headers, _ = answers.next(b"POST")
            assert status == (400 if request.endswith(b"{}") else 200)
            assert headers["connection"] == "keep-alive"


class ReusingProxy:
    """Sends each request on any idle connection, and hands its caller the next answer on it.

    Like HAProxy's default (http-reuse safe), on which a caller gets what an earlier one's request
    brought late. `spoiled` counts the calls that were.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._idle: list[tuple[socket.socket, Answers]] = []
        self._lock = threading.Lock()

    def call(self, head: bytes, body: bytes) -> int:
        with self._lock:
            sock, answers = self._idle.pop() if self._idle else self._open()
        try:
            sock.sendall(head)
            sock.sendall(body)
            status, headers, _ = answers.next(b"POST")
        except (OSError, EOFError):
            sock.close()
            return 502
        if headers["connection"] == "close":
            sock.close()
        else:
            with self._lock:
                self._idle.append((sock, answers))
        return status

    def _open(self) -> tuple[socket.socket, Answers]:
        sock = self._connect()
        return sock, Answers(sock)


def test_who_spoils_a_request_spoils_nobody_else_s_behind_a_proxy_that_reuses_connections(
    service: Service,
) -> None:
    proxy, over = ReusingProxy(service.connect), threading.Event()
    data = json.dumps(ask()).encode()
    attacks = [
        (EARLY["401"] + CHUNKED, rest)
        for name, rest in BROKEN.items()
        if name != "a request"  # a proxy would not take this for one body
    ]

    def attack() -> None:
        while not over.is_set():
            for head, body in attacks:
                proxy.call(head, body)

    attackers = [threading.Thread(target=attack) for _ in range(2)]
    for attacker in attackers:
        attacker.start()
    head = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (PATH, KNOWN, len(data))
    began, statuses = time.monotonic(), set()
    while time.monotonic() - began < 2:
        statuses.add(proxy.call(head, data))
    over.set()
    for attacker in attackers:
        attacker.join()
    assert statuses == {200}
