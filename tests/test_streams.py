"""Streams from a provider's socket, through a real gunicorn, to a caller's socket."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.conftest import CLAUDE, GPT, Service, ask, chunks, text_of
from tests.upstream import (
    CHUNKED,
    CUT,
    RESET,
    STALL,
    Part,
    Reply,
    Upstream,
    body,
    events,
    in_chunks,
    joined,
    raw,
    refuse,
    say,
    sse,
    wire_of,
)

MODELS = pytest.mark.parametrize("model", [CLAUDE, GPT])
PROMPT_TOKENS = {CLAUDE: 15, GPT: 10}


class Reading:
    """A streamed answer that is read as it comes."""

    def __init__(self, service: Service, request: dict[str, Any]) -> None:
        self.response = service.post(request | {"stream": True}, stream=True)
        self.text = ""
        self._pieces: Iterator[bytes] = self.response.iter_content(chunk_size=None)

    def until(self, end: str) -> str:
        """What has come once `end` is in it."""
        while end not in self.text:
            self.text += next(self._pieces).decode()
        return self.text


# The form.


@MODELS
def test_a_stream_has_openai_s_chunk_form(model: str, service: Service, provider: Upstream) -> None:
    provider.replies.append(say("Hel", "lo"))
    response = service.post(ask(model, stream=True))
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["Cache-Control"] == "no-store, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert "Content-Length" not in response.headers
    out = [line for line in response.content.decode().split("\n") if line]
    assert all(line.startswith(("data: ", ":")) for line in out)
    assert out[-1] == "data: [DONE]"
    documents = chunks(out)
    heads = {(d["id"], d["created"], d["model"], d["object"]) for d in documents}
    assert len(heads) == 1
    assert heads.pop()[3] == "chat.completion.chunk"
    assert all(len(document["choices"]) == 1 for document in documents)
    choices = [document["choices"][0] for document in documents]
    assert all(choice["index"] == 0 for choice in choices)
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, None, None]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hello"
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


@MODELS
def test_usage_goes_out_once_on_the_finishing_chunk(
    model: str, service: Service, provider: Upstream
) -> None:
    documents = chunks(service.stream(ask(model)))
    assert [bool(document.get("usage")) for document in documents[:-1]] == [False] * 3
    usage, prompt = documents[-1]["usage"], PROMPT_TOKENS[model]
    expected = {"prompt_tokens": prompt, "completion_tokens": 2, "total_tokens": prompt + 2}
    assert usage.items() >= expected.items()
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    assert len(provider.received) == 1


@MODELS
def test_usage_goes_out_once_in_an_extra_last_chunk_when_asked_for(
    model: str, service: Service, provider: Upstream
) -> None:
    out = service.stream(ask(model, stream_options={"include_usage": True}))
    documents = chunks(out)
    assert [document["usage"] for document in documents[:-1]] == [None] * 4
    assert documents[-2]["choices"][0]["finish_reason"] == "stop"
    assert documents[-1]["choices"] == []
    assert documents[-1]["usage"]["total_tokens"] == PROMPT_TOKENS[model] + 2
    assert out[-1] == "data: [DONE]"
    assert len(provider.received) == 1


@MODELS
def test_text_of_any_script_comes_through_although_no_charset_is_named(
    model: str, service: Service, provider: Upstream
) -> None:
    text = 'é漢\U0001f600\u2028\u0085\x0b"\\\r\n'
    raw = joined(wire_of(model, text)).replace(b"\\u2028", "\u2028".encode())
    raw = raw.replace(b"\\u00e9", "é".encode())
    provider.replies.append(events(raw, content_type="text/event-stream"))
    assert text_of(service.stream(ask(model))) == text


@MODELS
@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_cut_into_single_bytes_comes_through(
    model: str, chunked: bool, service: Service, provider: Upstream
) -> None:
    raw = joined(wire_of(model, "Hé", "\u2028"))
    provider.replies.append(events(*(raw[i : i + 1] for i in range(len(raw))), chunked=chunked))
    out = service.stream(ask(model))
    assert text_of(out) == "Hé\u2028"
    assert out[-1] == "data: [DONE]"


@MODELS
@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
def test_any_line_end_comes_through(
    model: str, end: bytes, service: Service, provider: Upstream
) -> None:
    provider.replies.append(events(joined(wire_of(model, "Hello")).replace(b"\n", end)))
    assert text_of(service.stream(ask(model))) == "Hello"


# In time.


@MODELS
@pytest.mark.parametrize("form", ["chunked", "until close", "content-length"])
def test_an_event_is_passed_on_before_the_next_one_is_there(
    model: str, form: str, service: Service, provider: Upstream
) -> None:
    go_on = threading.Event()
    parts = wire_of(model, "Hel", go_on, "lo")
    reply = events(*parts, chunked=form == "chunked")
    if form == "content-length":
        reply.headers["content-length"] = str(len(joined(parts)))
    provider.replies.append(reply)
    reading = Reading(service, ask(model))
    assert "Hel" in reading.until("Hel")
    assert '"lo"' not in reading.text
    go_on.set()
    assert reading.until("[DONE]").endswith("data: [DONE]\n\n")


@MODELS
def test_events_that_come_together_leave_together_though_each_is_in_a_chunk_of_its_own(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(raw(CHUNKED + in_chunks(*wire_of(model, *"abcdefgh"))))
    response = service.post(ask(model, stream=True), stream=True)
    (whole,) = response.iter_content(chunk_size=None)
    assert whole.count(b"data: ") == 11  # role, eight texts, finish, [DONE]
    assert whole.endswith(b"data: [DONE]\n\n")


@MODELS
def test_what_came_before_a_fault_in_the_framing_is_the_callers(
    model: str, service: Service, provider: Upstream
) -> None:
    whole = in_chunks(*wire_of(model, "Hel", "lo"))
    provider.replies.append(raw(CHUNKED + whole.removesuffix(b"0\r\n\r\n") + b"zz\r\n", CUT))
    assert service.stream(ask(model))[-1] == "data: [DONE]"
    provider.replies.append(raw(CHUNKED + in_chunks(*wire_of(model, "Hel", CUT))[:-5] + b"zz\r\n"))
    out = service.stream(ask(model))
    assert text_of(out) == "Hel"
    ends_with_one_error(out, "provider_unavailable")


def test_a_ping_goes_out_at_once_as_a_comment(service: Service, provider: Upstream) -> None:
    go_on = threading.Event()
    provider.replies.append(say(sse({"type": "ping"}, "ping"), go_on, "Hello"))
    reading = Reading(service, ask(CLAUDE))
    reading.until(": ping\n\n")
    go_on.set()
    assert '"Hello"' in reading.until("[DONE]")


def test_pings_go_out_once_a_second_at_most(service: Service, provider: Upstream) -> None:
    pings = [sse({"type": "ping"}, "ping")] * 50
    provider.replies.append(say("Hel", *pings, "lo"))
    reading = Reading(service, ask(CLAUDE))
    began = time.monotonic()
    text = reading.until("[DONE]")
    assert text.count(": ping") <= 2 + (time.monotonic() - began)


def test_thinking_is_shown_as_a_sign_of_life_only(service: Service, provider: Upstream) -> None:
    go_on = threading.Event()
    delta = {"type": "thinking_delta", "thinking": "hidden"}
    thought = sse({"type": "content_block_delta", "index": 0, "delta": delta})
    provider.replies.append(say(thought, go_on, "Hello"))
    reading = Reading(service, ask(CLAUDE))
    reading.until(": ping")
    go_on.set()
    reading.until("[DONE]")
    assert "hidden" not in reading.text


@MODELS
def test_the_status_waits_for_the_first_event(
    model: str, service: Service, provider: Upstream
) -> None:
    go_on = threading.Event()
    provider.replies.append(events(b"data: non", go_on, b"sense\n\n"))
    answers: list[requests.Response] = []
    caller = threading.Thread(target=lambda: answers.append(service.post(ask(model, stream=True))))
    caller.start()
    provider.wait_for(1)
    assert not answers
    go_on.set()
    caller.join(10)
    assert answers[0].status_code == 500
    assert answers[0].json()["error"] == "provider_bad_response"


# Early failures.


@MODELS
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (refuse(400), "provider_rejected_request"),
        (refuse(401), "provider_auth_failed"),
        (refuse(404), "model_not_available"),
        (refuse(429, retry_after="60"), "provider_rate_limited"),
        (refuse(529, x_should_retry="false"), "provider_unavailable"),
        (body("<html></html>", 502, x_should_retry="false"), "provider_unavailable"),
        (body("<html></html>"), "provider_bad_response"),
        (body(""), "provider_bad_response"),
        (body("{}"), "provider_bad_response"),
        (events(), "provider_bad_response"),
        (events(b"data: {}\n\n"), "provider_bad_response"),
        (events(b'data: {"type": "message_start"'), "provider_bad_response"),
        (events(CUT), "provider_unavailable"),
        (events(b"data: {", RESET), "provider_unavailable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_early_failure_is_500_with_a_json_body(
    reply: Reply, code: str, model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(reply)
    response = service.post(ask(model, stream=True))
    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/json"
    assert sorted(response.json()) == ["error", "message"]
    assert response.json()["error"] == code
    assert len(provider.received) == 1


# Late failures.


def ends_with_one_error(out: list[str], code: str, text: str = "Hel") -> None:
    """The caller got the text so far, then one error event, and nothing that looks complete."""
    assert text_of(out[:-1]) == text
    document = json.loads(out[-1].removeprefix("data: "))
    assert list(document) == ["error"]
    error = document["error"]
    assert error == {"message": error["message"], "type": code, "code": code}
    assert error["message"]
    before = chunks(out[:-1])
    assert not any("error" in document for document in before)
    assert all(document["choices"][0]["finish_reason"] is None for document in before)
    assert not any(document.get("usage") for document in before)
    assert not any("[DONE]" in line for line in out)


@MODELS
@pytest.mark.parametrize("how", [CUT, RESET])
def test_a_stream_that_the_provider_cuts_is_told_as_a_failure(
    model: str, how: Part, service: Service, provider: Upstream
) -> None:
    provider.replies.append(say("Hel", how))
    ends_with_one_error(service.stream(ask(model)), "provider_unavailable")


@MODELS
@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_that_ends_cleanly_without_its_end_mark_is_told_as_a_failure(
    model: str, chunked: bool, service: Service, provider: Upstream
) -> None:
    whole = wire_of(model, "Hel")
    # OpenAI's is whole once it has its reason: not all that speak its wire send [DONE].
    for count in (len(whole) - 1, len(whole) - 2, 4) if model == CLAUDE else (1, 2):
        provider.replies.append(events(joined(whole[:count]), chunked=chunked))
        out = service.stream(ask(model))
        ends_with_one_error(out, "provider_bad_response", text_of(out))


def test_an_end_mark_cut_in_the_middle_is_told_as_a_failure(
    service: Service, provider: Upstream
) -> None:
    for missing in (1, 2, 5):
        provider.replies.append(events(joined(wire_of(CLAUDE, "Hel"))[:-missing]))
        ends_with_one_error(service.stream(ask(CLAUDE)), "provider_bad_response")


def test_a_stream_that_ends_cleanly_after_its_reason_is_whole(
    service: Service, provider: Upstream
) -> None:
    *whole, done = wire_of(GPT, "Hello")
    for end in (b"", b"data: [DO", done):
        provider.replies.append(events(joined(whole) + end))
        out = service.stream(ask(GPT))
        assert (text_of(out), out[-1]) == ("Hello", "data: [DONE]")
        assert chunks(out)[-1]["usage"]["prompt_tokens"] == 10


@MODELS
def test_an_error_in_mid_stream_is_told_after_the_text_before_it(
    model: str, service: Service, provider: Upstream
) -> None:
    error = {"type": "overloaded_error", "message": "Overloaded", "code": None}
    told = sse({"type": "error", "error": error}, "error" if model == CLAUDE else None)
    start = joined(wire_of(model, "Hel", CUT))
    for parts in ([start + told], [start, told], [start, 0.01, told, b"data: [DONE]\n\n"]):
        provider.replies.append(events(*parts))
        ends_with_one_error(service.stream(ask(model)), "provider_unavailable")


@MODELS
@pytest.mark.parametrize(
    "rest", [b"data: {\n\n", b"data: []\n\n", b"data: {}\n\n", b"data: \xff\n\n", b"data: 1\n\n"]
)
def test_garbage_in_mid_stream_is_told_after_the_text_before_it(
    rest: bytes, model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(events(joined(wire_of(model, "Hel", CUT)) + rest))
    ends_with_one_error(service.stream(ask(model)), "provider_bad_response")


@MODELS
def test_a_body_after_a_failed_stream_is_whole_so_that_the_connection_goes_on(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.extend([say("Hel", CUT), say("Hello")])
    with requests.Session() as session:
        for expected in ("Hel", "Hello"):
            response = session.post(
                f"{service.url}/v1/chat/completions",
                json=ask(model, stream=True),
                headers={"Authorization": f"Bearer {service.token}"},
                timeout=10,
            )
            assert text_of(response.text.split("\n")) == expected


# Connections.


@MODELS
def test_a_connection_to_the_provider_is_used_again_after_a_stream(
    model: str, service: Service, provider: Upstream
) -> None:
    whole = raw(CHUNKED + in_chunks(*wire_of(model, "Hello")))
    provider.replies.append(whole)
    assert service.stream(ask(model))[-1] == "data: [DONE]"
    before = provider.connections
    for _ in range(3):
        provider.replies.append(whole)
        service.stream(ask(model))
        assert service.post(ask(model)).status_code == 200
    assert provider.connections == before


@MODELS
def test_a_connection_is_not_used_again_after_a_stream_that_failed(
    model: str, service: Service, provider: Upstream
) -> None:
    stop = threading.Event()
    provider.replies.append(events(joined(wire_of(model, "Hel", CUT)) + b"data: {\n\n", stop))
    out = service.stream(ask(model))
    ends_with_one_error(out, "provider_bad_response")
    stop.set()
    assert service.stream(ask(model))[-1] == "data: [DONE]"


@MODELS
def test_when_the_caller_leaves_the_provider_s_connection_is_closed(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(say("Hel", STALL))
    reading = Reading(service, ask(model))
    reading.until("Hel")
    (request,) = provider.wait_for(1)
    reading.response.close()
    assert request.gone.wait(15)


def test_an_http_1_0_caller_gets_the_stream_until_the_connection_closes(
    service: Service, provider: Upstream
) -> None:
    data = json.dumps(ask(stream=True)).encode()
    with service.connect() as sock:
        head = f"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {service.token}\r\n"
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = sock.makefile("rb").read().decode()
    head, _, text = answer.partition("\r\n\r\n")
    assert "chunked" not in head.lower()
    assert text.endswith("data: [DONE]\n\n")
    assert len(provider.received) == 1


def test_the_offline_provider_streams_in_the_same_form(offline_service: Service) -> None:
    out = offline_service.stream(ask(text="Good day"))
    assert text_of(out).endswith("Good day")
    assert out[-1] == "data: [DONE]"
    documents = chunks(out)
    assert documents[0]["choices"][0]["delta"]["role"] == "assistant"
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    assert documents[-1]["usage"]["total_tokens"] > 0
