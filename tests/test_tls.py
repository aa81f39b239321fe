"""Providers behind TLS, as the real ones are."""

import ssl
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
