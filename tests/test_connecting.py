"""The time before there is a connection, and the word in the record for whatever goes wrong."""

import contextlib
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme

from core import watchdog
from core.errors import CallerLeft, ServiceError
from core.settings import Settings
from providers.base import Call, ChatRequest, Provider
from providers.http import connect, retries
from tests.conftest import GPT
from tests.upstream import CUT, STALL, Reply, Upstream, body, events, raw, refuse, say

CONNECT_S = 0.3
# What the watchdog's pace and a busy machine may add.
LATE_S = 1.5
MOST_S = 3 * CONNECT_S + LATE_S


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(retries, "MAX_WAIT_S", 0.0)


def provider_at(url: str, **environ: str) -> Provider:
    limits = {"CONNECT_TIMEOUT_S": str(CONNECT_S), "READ_TIMEOUT_S": "0.5"}
    return connect(
        Settings.read({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": f"{url}/v1"} | limits | environ)
    )[GPT]


def asked(
    provider: Provider,
    caller: socket.socket | None = None,
    timeout_s: float = 30,
    stream: bool = False,
) -> tuple[Call, Exception | None]:
    """A call that has been made, and what it failed of."""
    prepared = provider.prepare(ChatRequest(GPT, [{"role": "user", "content": "Hi"}], 1.0, None))
    with watchdog.watch(caller, timeout_s) as watch:
        call = Call(watch)
        try:
            if stream:
                list(provider.stream(prepared.body, call))
            else:
                provider.complete(prepared.body, call)
        except (ServiceError, CallerLeft) as error:
            return call, error
    return call, None


def told(error: Exception | None) -> tuple[str, str]:
    assert isinstance(error, ServiceError)
    return error.kind.code, error.message


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What some host names lead to: addresses, an error, or nothing until the test ends."""
    led: dict[str, Any] = {}
    really, over = socket.getaddrinfo, threading.Event()

    def lookup(host: str, port: int, *rest: Any, **more: Any) -> Any:
        found = led.get(host)
        if isinstance(found, Exception):
            raise found
        if found == "nothing":
            led["lookups"] = led.get("lookups", 0) + 1
            over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "late")
        if found:
            # (IPv6 as it is where the system has none.)
            families = {True: socket.AF_INET, False: 99}
            return [(families["." in at], 1, 6, "", (at, port)) for at in found]
        return really(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    yield led
    over.set()


@contextlib.contextmanager
def nobody_lets_in() -> Iterator[tuple[list[str], int]]:
    """Four addresses and a port at which connections are not taken: their queues are full."""
    hosts = [f"127.0.0.{n}" for n in (11, 12, 13, 14)]
    with contextlib.ExitStack() as held:
        port = 0
        for host in hosts:
            listener = held.enter_context(socket.socket())
            listener.bind((host, port))
            port = listener.getsockname()[1]
            listener.listen(0)
            for _ in range(4):
                caller = held.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex((host, port))
        yield hosts, port


@contextlib.contextmanager
def silent(dribble: bytes = b"") -> Iterator[int]:
    """The port of a server that takes connections and says nothing, or this, byte by byte."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(listener.accept()[0])
                if dribble:
                    threading.Thread(target=trickle, args=(taken[-1],), daemon=True).start()

    def trickle(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for byte in dribble * 1000:
                sock.send(bytes([byte]))
                time.sleep(0.02)

    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
    for sock in taken:
        sock.close()


@pytest.fixture(params=["a lookup", "four addresses", "a handshake", "a slow handshake", "CONNECT"])
def stuck(request: pytest.FixtureRequest, names: dict[str, Any]) -> Iterator[Provider]:
    """A provider to which no connection comes about."""
    with contextlib.ExitStack() as held:
        match request.param:
            case "a lookup":
                names["lookup.test"] = "nothing"
                yield provider_at("http://lookup.test")
            case "four addresses":
                names["dead.test"], port = held.enter_context(nobody_lets_in())
                yield provider_at(f"http://dead.test:{port}")
            case "a handshake":
                yield provider_at(f"https://127.0.0.1:{held.enter_context(silent())}")
            case "a slow handshake":
                # The head of a record of 16 KB, and then its content, slowly.
                port = held.enter_context(silent(b"\x16\x03\x03\x40\x00"))
                yield provider_at(f"https://127.0.0.1:{port}")
            case "CONNECT":
                proxy = f"http://127.0.0.1:{held.enter_context(silent())}"
                yield provider_at("https://127.0.0.1:1", UPSTREAM_PROXY=proxy)


@pytest.mark.parametrize("stream", [False, True], ids=["full", "stream"])
def test_the_limit_for_connecting_holds_for_all_of_it(stuck: Provider, stream: bool) -> None:
    began = time.monotonic()
    call, error = asked(stuck, stream=stream)
    assert time.monotonic() - began < MOST_S
    code, said = told(error)
    assert code == "provider_timeout"
    assert f"took no connection within {CONNECT_S} s" in said
    assert (call.attempts, call.cause) == (3, "connect_timeout")


def test_the_limit_of_the_whole_call_holds_before_there_is_a_connection(stuck: Provider) -> None:
    began = time.monotonic()
    _, error = asked(stuck, timeout_s=CONNECT_S / 2)
    assert time.monotonic() - began < CONNECT_S / 2 + LATE_S
    code, said = told(error)
    assert code == "provider_timeout"
    assert "took no connection" in said
    assert "stream" not in said


def test_a_caller_who_leaves_is_noticed_before_there_is_a_connection(stuck: Provider) -> None:
    caller, other_end = socket.socketpair()
    began = time.monotonic()
    with caller:
        threading.Timer(0.1, other_end.close).start()
        _, error = asked(stuck, caller)
    assert isinstance(error, CallerLeft)
    assert time.monotonic() - began < 0.1 + LATE_S


def test_calls_that_wait_for_one_name_leave_one_thread_behind(names: dict[str, Any]) -> None:
    names["lookup.test"] = "nothing"
    provider = provider_at("http://lookup.test")
    callers = [threading.Thread(target=asked, args=(provider,)) for _ in range(10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert names["lookups"] == 1


def test_an_address_that_is_dead_leaves_time_for_the_next(
    names: dict[str, Any], upstream: Upstream
) -> None:
    with nobody_lets_in() as (hosts, _port):
        names["both.test"] = ["::1", "127.0.0.99", hosts[0], "127.0.0.1"]
        call, error = asked(provider_at(f"http://both.test:{upstream.port}"))
    assert error is None
    assert call.attempts == 1


def test_a_lack_of_descriptors_is_ours_and_takes_no_retry(upstream: Upstream) -> None:
    provider = provider_at(upstream.url)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for url in (upstream.url, f"http://localhost:{upstream.port}"):
        provider = provider_at(url)
        with contextlib.ExitStack() as held:
            held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
            with contextlib.suppress(OSError):
                while True:
                    held.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            call, error = asked(provider)
        code, said = told(error)
        assert (code, call.attempts, call.cause) == ("overloaded", 1, "local")
        assert said.startswith("This process has no file descriptors")
        assert isinstance(error, ServiceError)
        assert error.retry_after == "1"


def untrusted() -> Upstream:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return Upstream(tls=context)


@pytest.mark.parametrize(
    ("where", "cause", "attempts"),
    [
        ("https://127.0.0.1:{}", "tls", 1),
        ("http://127.0.0.1:1", "refused", 3),
        ("http://nowhere.test", "dns", 3),
    ],
)
def test_the_record_tells_apart_why_there_is_no_connection(
    where: str, cause: str, attempts: int, names: dict[str, Any]
) -> None:
    names["nowhere.test"] = socket.gaierror(socket.EAI_NONAME, "no such name")
    with untrusted() as server:
        call, error = asked(provider_at(where.format(server.port)))
    assert told(error)[0] == "provider_unavailable"
    assert (call.cause, call.attempts, call.upstream_status) == (cause, attempts, None)


@pytest.mark.parametrize(
    ("reply", "cause", "status"),
    [
        (raw(STALL), "read_timeout", None),
        (raw(CUT), "cut", None),
        (say("Hel", CUT), "cut", 200),
        (raw(b"SSH-2.0\r\n", CUT), "bad_answer", None),
        (events(b"data: {\n\n"), "bad_answer", 200),
        (refuse(400), "status", 400),
        (body('{"error": {"code": 400}}'), "error_event", 200),
        (say("Hello"), None, 200),
    ],
    ids=repr,
)
def test_the_record_tells_apart_what_went_wrong_with_an_answer(
    reply: Reply, cause: str | None, status: int | None, upstream: Upstream
) -> None:
    upstream.default = reply
    call, error = asked(provider_at(upstream.url), stream=True)
    assert (call.cause, call.upstream_status) == (cause, status)
    assert (error is None) == (cause is None)


def test_the_request_id_that_is_told_is_the_failed_attempts(upstream: Upstream) -> None:
    upstream.replies.append(refuse(503, x_request_id="first", retry_after="0"))
    upstream.replies.append(raw(STALL))
    call, error = asked(provider_at(upstream.url), stream=True)
    assert "first" not in told(error)[1]
    assert (call.provider_request_id, call.upstream_status) == (None, None)


def test_a_silent_stream_s_message_does_not_advise_to_ask_for_one(upstream: Upstream) -> None:
    upstream.replies.append(raw(STALL))
    _, error = asked(provider_at(upstream.url), stream=True)
    code, said = told(error)
    assert code == "provider_timeout"
    assert "sent nothing for 0.5 s" in said
    assert "true" not in said


def test_our_request_id_goes_to_openai(upstream: Upstream) -> None:
    provider = provider_at(upstream.url)
    prepared = provider.prepare(ChatRequest(GPT, [{"role": "user", "content": "Hi"}], 1.0, None))
    with watchdog.watch(None, 30) as watch:
        provider.complete(prepared.body, Call(watch, "team", "our-id"))
    assert upstream.received[0].headers["x-client-request-id"] == "our-id"
