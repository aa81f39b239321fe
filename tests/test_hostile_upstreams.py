"""Providers that send too much, or nonsense: memory stays bounded, and the caller is told."""

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core import watchdog
from core.settings import Settings
from providers.base import Call, ChatRequest, Finish, Provider
from providers.http import connect, exchange
from tests.conftest import CLAUDE, GPT, Service, ask, pointed_at, serve
from tests.inprocess import code_of
from tests.upstream import (
    CHUNKED,
    CUT,
    STALL,
    Reply,
    Upstream,
    endless,
    in_chunks,
    joined,
    openai_chunk,
    openai_completion,
    openai_events,
    raw,
    refuse,
    say,
)

# What one call may cost: the cap on an answer is 8 MB, and it is held a few times over.
BOUND_MB = 60
# Keys that do not look like any.
ANTHROPIC_KEY, OPENAI_KEY = "correct-horse", "battery-staple"
HEAD = b"HTTP/1.1 200 OK\r\n"
STREAM = HEAD + b"content-type: text/event-stream\r\n\r\n"
BLOCK = b"x" * 65_536
_SECRET = json.dumps(openai_completion("for A")).encode()
SECRET = HEAD + b"content-length: %d\r\n\r\n" % len(_SECRET) + _SECRET
FIRST = next(openai_events([]))
assert isinstance(FIRST, bytes)


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(
        tmp_path_factory,
        ANTHROPIC_API_KEY=ANTHROPIC_KEY,
        OPENAI_API_KEY=OPENAI_KEY,
        TOTAL_TIMEOUT_S=10,
        STREAM_TIMEOUT_S=10,
        READ_TIMEOUT_S=5,
    )


def bomb(status: bytes = b"200 OK", *headers: bytes) -> Reply:
    """200 MB of zeros, compressed to 200 KB."""
    data = gzip.compress(b"\0" * 1_000_000, 9) * 200
    lines = (b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(data), b"", b"")
    return raw(b"\r\n".join(lines), data)


def peak_mb(service: Service) -> float:
    """The most memory that the worker ever held."""
    (pid,) = service.worker_pids()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


def text_chunk(size: int) -> bytes:
    return openai_chunk([{"index": 0, "delta": {"content": "y" * size}}])


GZIP = b"content-encoding: gzip"
TOO_MUCH: dict[str, tuple[bool, Callable[[], Reply], str]] = {
    "200 MB, announced": (
        False,
        lambda: endless(HEAD + b"content-length: 200000000\r\n\r\n", BLOCK),
        "more than 8000000 bytes",
    ),
    "an endless body": (False, lambda: endless(HEAD + b"\r\n", BLOCK), "more than 8000000 bytes"),
    "an endless line": (True, lambda: endless(STREAM, BLOCK), "too long"),
    "an endless event": (True, lambda: endless(STREAM, b"data: " + BLOCK + b"\n"), "too long"),
    "an event of empty lines": (True, lambda: endless(STREAM, b"data:\n" * 10_000), "too long"),
    "an event of bare fields": (True, lambda: endless(STREAM, b"data\n" * 10_000), "too long"),
    "an endless text": (True, lambda: endless(STREAM + FIRST, text_chunk(60_000)), "too long"),
    "a compressed bomb": (False, lambda: bomb(b"200 OK", GZIP), "compressed"),
    "a compressed bomb as a stream": (True, lambda: bomb(b"200 OK", GZIP), "compressed"),
    "a bomb in disguise": (False, bomb, "not JSON"),
    "an endless header": (False, lambda: endless(HEAD + b"x: ", BLOCK), "not an HTTP answer"),
    "endless headers": (False, lambda: endless(HEAD, b"x: y\r\n" * 100), "not an HTTP answer"),
    "a header of 1 MB": (
        False,
        lambda: raw(HEAD + b"x: " + BLOCK * 16 + b"\r\n\r\n", CUT),
        "not an HTTP answer",
    ),
    "1000 headers": (False, lambda: raw(HEAD, b"x: y\r\n" * 1000, b"\r\n{}"), "not an HTTP answer"),
}


@pytest.mark.parametrize(("stream", "reply", "words"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_memory_stays_bounded_and_the_caller_is_told_when_the_provider_sends(
    stream: bool, reply: Callable[[], Reply], words: str, service: Service, provider: Upstream
) -> None:
    before = peak_mb(service)
    provider.replies.append(reply())
    response = service.post(ask(stream=stream))
    error = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert response.status_code == (200 if "chat.completion.chunk" in response.text else 500)
    assert code_of(error) == "provider_bad_response"
    assert words in str(error)
    assert "[DONE]" not in response.text
    assert peak_mb(service) - before < BOUND_MB
    assert service.record_of(response)["code"] == "provider_bad_response"


@pytest.mark.parametrize(
    "reply",
    [
        lambda: endless(b"HTTP/1.1 400 No\r\n\r\n", BLOCK),
        lambda: bomb(b"400 No"),
        lambda: bomb(b"400 No", GZIP),
    ],
    ids=["endless", "a bomb in disguise", "a compressed bomb"],
)
def test_an_error_s_body_is_read_only_so_far(
    reply: Callable[[], Reply], service: Service, provider: Upstream
) -> None:
    before = peak_mb(service)
    provider.replies.append(reply())
    response = service.post(ask())
    assert response.status_code == 500
    assert response.json()["error"] == "provider_rejected_request"
    assert peak_mb(service) - before < BOUND_MB / 2


NONSENSE = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 99 Odd\r\n\r\n",
    "a status of its own": b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
    "half a status line": b"HTTP/1.1 2",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "other protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
    "a chunk size that is none": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}",
    "a negative chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\n{}",
    "an enormous chunk size": HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "an enormous length": HEAD + b"content-length: 99999999999999999999\r\n\r\n{}",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 7\r\n\r\n{}",
    "nested lists": HEAD + b"\r\n" + b"[" * 200_000,
    "a long number": HEAD + b"\r\n" + b"1" * 20_000,
    "half a document": HEAD + b"\r\n" + json.dumps(openai_completion("x")).encode()[:-9],
    "null": HEAD + b"\r\nnull",
    "nothing": HEAD + b"content-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("stream", [False, True], ids=["full", "stream"])
@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_the_caller_is_told_when_the_provider_answers(
    answer: bytes, stream: bool, service: Service, provider: Upstream
) -> None:
    provider.replies.append(raw(answer, CUT))
    response = service.post(ask(stream=stream))
    assert response.status_code == 500
    assert sorted(response.json()) == ["error", "message"]
    assert response.json()["error"] in ("provider_bad_response", "provider_unavailable")
    assert len(provider.received) == 1


@pytest.mark.parametrize("model", [CLAUDE, GPT])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_neither_key_nor_prompt_to_another_host(
    status: int, model: str, service: Service, provider: Upstream
) -> None:
    with Upstream() as elsewhere:
        location = elsewhere.url.replace("127.0.0.1", "localhost") + "/v1/messages"
        provider.replies.append(refuse(status, location=location))
        response = service.post(ask(model))
        assert elsewhere.received == []
        assert elsewhere.connections == 0
    assert response.status_code == 500
    assert response.json()["error"] == "provider_bad_response"
    assert "redirect" in response.json()["message"]
    assert location not in response.text
    assert len(provider.received) == 1


@pytest.mark.parametrize("model", [CLAUDE, GPT])
def test_an_error_that_quotes_the_key_is_passed_on_without_it(
    model: str, service: Service, provider: Upstream
) -> None:
    message = f"Bad key {ANTHROPIC_KEY} or {OPENAI_KEY} or sk-another-one; Bearer abc."
    provider.replies.append(refuse(400, message))
    text = service.post(ask(model)).text
    assert "Bad key [key] or [key] or [key]" in text
    for secret in (ANTHROPIC_KEY, OPENAI_KEY, "sk-another-one", "abc"):
        assert secret not in text


def test_names_that_the_provider_makes_up_stay_short_in_the_log(
    service: Service, provider: Upstream
) -> None:
    document = openai_completion("Hello") | {"model": "m\n" * 500_000}
    document["choices"][0]["finish_reason"] = "r" * 100_000
    provider.replies.append(raw(HEAD + b"\r\n", json.dumps(document).encode(), CUT))
    record = service.record_of(service.post(ask()))
    assert len(json.dumps(record)) < 4096
    assert record["answered_model"].startswith("m\nm\n")


@pytest.mark.parametrize("status", [102, 103])
def test_an_interim_answer_is_not_taken_for_the_answer(
    status: int, service: Service, provider: Upstream
) -> None:
    provider.replies.append(raw(b"HTTP/1.1 %d Soon\r\n\r\n" % status, 0.2, SECRET))
    assert service.post(ask()).json()["choices"][0]["message"]["content"] == "for A"
    assert service.post(ask()).json()["choices"][0]["message"]["content"] == "Hello there"


@pytest.mark.parametrize("status", [101, 204, 205, 304])
def test_what_follows_an_answer_without_a_body_is_not_the_next_caller_s(
    status: int, service: Service, provider: Upstream
) -> None:
    provider.replies.append(raw(b"HTTP/1.1 %d None\r\n\r\n" % status, 0.2, SECRET))
    assert service.post(ask()).json()["error"] == "provider_bad_response"
    assert service.post(ask()).json()["choices"][0]["message"]["content"] == "Hello there"


@pytest.mark.parametrize("end", [b"zz\r\n", b"\r\n", b"0\r\nx", b"5\r\n"])
def test_a_stream_whose_body_ends_in_a_fault_leaves_no_connection_behind(
    end: bytes, service: Service, provider: Upstream
) -> None:
    said = in_chunks(*openai_events(["Hello"])).removesuffix(b"0\r\n\r\n")
    provider.replies.append(raw(CHUNKED + said + end, 0.3, SECRET))
    assert "Hello" in service.post(ask(GPT, stream=True)).text
    assert service.post(ask(GPT)).json()["choices"][0]["message"]["content"] == "Hello there"


def test_equal_lengths_in_one_header_are_one(service: Service, provider: Upstream) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2, 2\r\n\r\n"
    provider.replies.append(raw(head, b"{}", STALL))
    assert service.post(ask(GPT)).json()["error"] == "provider_rejected_request"


def test_a_provider_that_never_stops_is_cut_off(service: Service, provider: Upstream) -> None:
    provider.replies.append(endless(HEAD + b"\r\n", BLOCK))
    assert service.post(ask()).status_code == 500
    assert provider.received[0].gone.wait(2)


def prepared(upstream: Upstream) -> tuple[Provider, dict[str, Any]]:
    """OpenAI's side of the service, in this process, and a body for it to send."""
    provider = connect(Settings.read(pointed_at(upstream)))[GPT]
    request = ChatRequest(GPT, [{"role": "user", "content": "Hi"}], 1.0, None)
    return provider, provider.prepare(request).body


def test_the_end_of_a_body_is_waited_for_so_that_its_connection_is_used_again(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "END_OF_BODY_S", 10)  # as long as a busy machine may take
    provider, body = prepared(upstream)
    end = b"0\r\n\r\n"
    whole = in_chunks(*openai_events(["Hello"])).removesuffix(end)
    for _ in range(3):
        upstream.replies.append(raw(CHUNKED + whole, 0.02, end))
        batches = list(provider.stream(body, Call(watchdog.watch(None, 60))))
        assert isinstance(batches[-1][-1], Finish)
    assert upstream.connections == 1


def test_a_stream_of_a_known_length_has_its_connection_alone_until_it_is_over(
    upstream: Upstream,
) -> None:
    provider, body = prepared(upstream)
    whole = joined(openai_events(["Hello"]))
    upstream.replies.append(raw(HEAD + b"content-length: %d\r\n\r\n" % len(whole), whole))
    upstream.replies += [say("Hel", 0.3, "lo", 0.3, "!"), say("Again")]
    first = provider.stream(body, Call(watchdog.watch(None, 60)))
    assert isinstance(next(first)[-1], Finish)
    second = provider.stream(body, Call(watchdog.watch(None, 60)))
    texts = next(second)
    assert list(first) == []
    texts += itertools.chain.from_iterable(second)
    assert "".join(text for text in texts if isinstance(text, str)) == "Hello!"
    assert upstream.connections == 2
    assert list(provider.stream(body, Call(watchdog.watch(None, 60))))
    assert upstream.connections == 2
