"""Providers behind TLS, as the real ones are."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from tests.conftest import CLAUDE, GPT, Service, ask, pointed_at, text_of
from tests.upstream import CHUNKED, Upstream, in_chunks, openai_events, raw, say

# What one read of the service takes.
READ_BYTES = 8192


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def upstream(authority: trustme.CA) -> Iterator[Upstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Upstream(tls=context) as server:
        yield server


@pytest.fixture
def service(
    start: Callable[..., Service], upstream: Upstream, authority: trustme.CA, tmp_path: Path
) -> Service:
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    return start(**pointed_at(upstream), UPSTREAM_CA_BUNDLE=bundle)


def test_full_answers_and_streams_come_through_on_one_connection(
    service: Service, upstream: Upstream
) -> None:
    words = [f"w{number} " for number in range(3000)]
    for model in (GPT, CLAUDE):
        connections = upstream.connections
        upstream.default = say("Hello", " there")
        assert service.post(ask(model)).json()["choices"][0]["message"]["content"] == "Hello there"
        upstream.default = say(*words)
        assert text_of(service.stream(ask(model))) == "".join(words)
        assert upstream.connections == connections + 1


def test_an_authority_that_is_not_known_is_refused(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    response = start(**pointed_at(upstream)).post(ask())
    assert response.status_code == 500
    assert response.json()["error"] == "provider_unavailable"
    assert "TLS" in response.json()["message"]
    assert upstream.received == []


def test_what_was_decrypted_behind_an_answer_is_not_the_next_caller_s(
    service: Service, upstream: Upstream
) -> None:
    asked_for = in_chunks(b":" + b"p" * 6000 + b"\n\n", *openai_events(["for A"]))
    padding = READ_BYTES - len(CHUNKED + asked_for) - len(b"400\r\n" + b"\r\n")
    asked_for = b"%x\r\n%b\r\n" % (padding, b":" + b"p" * (padding - 3) + b"\n\n") + asked_for
    assert len(CHUNKED + asked_for) == READ_BYTES
    upstream.replies.append(
        raw(CHUNKED + asked_for + CHUNKED + in_chunks(*openai_events(["nobody's"])))
    )
    assert text_of(service.stream(ask())) == "for A"
    upstream.default = say("for B")
    assert text_of(service.stream(ask())) == "for B"
    assert upstream.connections == 2


class Proxy:
    """A proxy that answers CONNECT with this line, and on 200 passes bytes on, both ways."""

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += caller.recv(1)
        self.asked.append(head.decode().split("\r\n")[0])
        caller.sendall(f"HTTP/1.1 {self._answer}\r\n\r\n".encode())
        if not self._answer.startswith("200"):
            caller.close()
            return
        host, port = self.asked[-1].split()[1].split(":")
        target = socket.create_connection((host, int(port)))
        for here, there in ((caller, target), (target, caller)):
            threading.Thread(target=self._pass_on, args=(here, there), daemon=True).start()

    @staticmethod
    def _pass_on(here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while read := here.recv(65_536):
                there.sendall(read)
            there.shutdown(socket.SHUT_WR)


def test_a_proxy_is_passed_through(
    start: Callable[..., Service], upstream: Upstream, authority: trustme.CA, tmp_path: Path
) -> None:
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(bundle)
    proxy = Proxy("200 OK")
    service = start(
        **pointed_at(upstream), UPSTREAM_CA_BUNDLE=bundle, UPSTREAM_PROXY=proxy.url, THREADS=5
    )
    assert service.post(ask()).json()["choices"][0]["message"]["content"] == "Hello there"
    assert text_of(service.stream(ask())) == "Hello there"
    assert [line.split()[:2] for line in proxy.asked] == [["CONNECT", f"127.0.0.1:{upstream.port}"]]


def test_a_proxy_that_refuses_is_told_as_no_connection(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    proxy = Proxy("407 Proxy Authentication Required")
    service = start(**pointed_at(upstream), UPSTREAM_PROXY=proxy.url, THREADS=5)
    response = service.post(ask())
    assert response.json()["error"] == "provider_unavailable"
    assert service.record_of(response)["cause"] == "unreachable"
    assert len(proxy.asked) == 3
