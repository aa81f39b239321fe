"""Anthropic's Messages API: what is sent there, and what is made of its answers."""

from typing import Any

import pytest
import responses

from tests.conftest import ANTHROPIC_KEY, CLAUDE, ask, chunks, text_of
from tests.inprocess import (
    ANTHROPIC_URL,
    NO_ANSWERS,
    NO_STREAMS,
    ONLY_SIGNS_OF_LIFE,
    answer,
    client,
    code_of,
    difference,
    error_of,
    lines,
    offline,
    post,
    sent,
    streamed,
    without,
)
from tests.upstream import sse

USAGE = {"input_tokens": 10, "output_tokens": 4}


def message(**changes: Any) -> dict[str, Any]:
    return {
        "id": "msg_01A",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6-20260101",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    } | changes


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def turns(*given: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in given]


def forwarded(wire: responses.RequestsMock, **request: Any) -> dict[str, Any]:
    """The body that Anthropic gets for a request."""
    response, body = answer(wire, ANTHROPIC_URL, message(), **request)
    assert response.status_code == 200, response.text
    return body


# What is sent.


def test_a_request_is_sent_in_anthropic_s_form_and_with_nothing_else(
    wire: responses.RequestsMock,
) -> None:
    body = forwarded(wire, text="Hi", max_tokens=7, temperature=0.5)
    assert body == {
        "model": CLAUDE,
        "max_tokens": 7,
        "temperature": 0.5,
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_the_key_and_the_pinned_version_go_along_and_the_caller_s_data_does_not(
    wire: responses.RequestsMock,
) -> None:
    wire.post(ANTHROPIC_URL, json=message())
    caller = {"Cookie": "a=caller", "X-Caller": "caller", "User-Agent": "caller", "Referer": "c"}
    post(client(), ask(CLAUDE, brand_id="loop", requested_by="caller"), caller)
    request = wire.calls[0].request
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["x-api-key"] == ANTHROPIC_KEY
    assert headers["anthropic-version"] == "2023-06-01"
    assert headers["content-type"] == "application/json"
    assert "authorization" not in headers
    assert "caller" not in f"{headers}{request.body!r}"
    assert "loop" not in f"{request.body!r}"
    assert "test-token" not in f"{headers}{request.body!r}"


@pytest.mark.parametrize(
    ("messages", "system", "left"),
    [
        ([("system", "A"), ("user", "Hi")], "A", [("user", "Hi")]),
        ([("user", "Hi"), ("system", "A")], "A", [("user", "Hi")]),
        (
            [("system", "A"), ("user", "1"), ("system", "B"), ("assistant", "2"), ("user", "3")],
            "A\nB",
            [("user", "1"), ("assistant", "2"), ("user", "3")],
        ),
        ([("system", " A "), ("system", ""), ("system", "\n"), ("user", "Hi")], " A ", None),
        ([("system", ""), ("user", "Hi")], None, None),
        ([("system", " \t\r\n\u00a0\u3000"), ("user", "Hi")], None, None),
    ],
)
def test_system_messages_are_hoisted_and_joined_and_blank_ones_dropped(
    messages: list[tuple[str, str]],
    system: str | None,
    left: list[tuple[str, str]] | None,
    wire: responses.RequestsMock,
) -> None:
    body = forwarded(wire, messages=turns(*messages))
    assert body.get("system") == system
    assert ("system" in body) == (system is not None)
    assert body["messages"] == turns(*(left or [("user", "Hi")]))


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0", "\u3000"])
def test_blank_turns_in_the_history_are_left_out(blank: str, wire: responses.RequestsMock) -> None:
    history = turns(("user", "1"), ("assistant", blank), ("user", blank), ("user", "2"))
    assert forwarded(wire, messages=history)["messages"] == turns(("user", "1"), ("user", "2"))


@pytest.mark.parametrize(
    "history",
    [
        [("user", "1"), ("user", "2")],
        [("user", "1"), ("assistant", "2"), ("assistant", "3"), ("user", "4")],
        [("assistant", "1"), ("user", "2")],
        [("user", " space around \n")],
        [("user", "x")] * 50,
    ],
)
def test_turns_are_never_glued_together_reordered_trimmed_or_lost(
    history: list[tuple[str, str]], wire: responses.RequestsMock
) -> None:
    assert forwarded(wire, messages=turns(*history))["messages"] == turns(*history)


@pytest.mark.parametrize(
    "history",
    [
        [("assistant", "1")],
        [("user", "1"), ("assistant", "2")],
        [("user", "1"), ("assistant", "2"), ("system", "3")],
        [("user", "1"), ("assistant", "2"), ("user", " ")],
    ],
)
def test_a_conversation_that_ends_with_assistant_is_400_for_claude(
    history: list[tuple[str, str]], wire: responses.RequestsMock
) -> None:
    for stream in (False, True):
        body = ask(CLAUDE, messages=turns(*history), stream=stream)
        code, said = error_of(post(client(), body), 400)
        assert code == "invalid_input"
        assert "messages" in said
        assert "user" in said
    assert len(wire.calls) == 0


@pytest.mark.parametrize(
    "history",
    [
        [("system", "1")],
        [("user", "")],
        [("user", " \n"), ("assistant", "\t")],
        [("system", "1"), ("user", "")],
    ],
)
def test_a_conversation_without_any_text_is_400_for_claude(
    history: list[tuple[str, str]], wire: responses.RequestsMock
) -> None:
    code, said = error_of(post(client(), ask(CLAUDE, messages=turns(*history))), 400)
    assert (code, "messages" in said) == ("invalid_input", True)
    assert len(wire.calls) == 0


@pytest.mark.parametrize("temperature", [1.01, 1.5, 2, 2.0])
def test_a_temperature_above_1_is_capped_and_said_so(
    temperature: float, wire: responses.RequestsMock
) -> None:
    response, body = answer(wire, ANTHROPIC_URL, message(), temperature=temperature)
    assert body["temperature"] == 1
    assert response.headers["X-Adjusted-Parameters"] == "temperature=1"


@pytest.mark.parametrize("temperature", [0, 0.0, 0.3, 1, 1.0])
def test_a_temperature_up_to_1_is_sent_as_it_is(
    temperature: float, wire: responses.RequestsMock
) -> None:
    response, body = answer(wire, ANTHROPIC_URL, message(), temperature=temperature)
    assert body["temperature"] == temperature
    assert "X-Adjusted-Parameters" not in response.headers


def test_a_stream_says_in_its_headers_what_was_adjusted(wire: responses.RequestsMock) -> None:
    response = streamed(wire, ANTHROPIC_URL, stream_of(), temperature=2)
    assert response.headers["X-Adjusted-Parameters"] == "temperature=1"
    assert sent(wire)["temperature"] == 1


def test_max_tokens_has_a_default_that_a_setting_changes(wire: responses.RequestsMock) -> None:
    assert forwarded(wire)["max_tokens"] == 4096
    post(client(DEFAULT_MAX_TOKENS="99"), ask(CLAUDE))
    assert sent(wire)["max_tokens"] == 99


def test_max_tokens_is_sent_as_a_whole_number(wire: responses.RequestsMock) -> None:
    sent_tokens = forwarded(wire, max_tokens=8.0)["max_tokens"]
    assert (sent_tokens, type(sent_tokens)) == (8, int)


def test_an_alias_renames_the_model_upstream(wire: responses.RequestsMock) -> None:
    wire.post(ANTHROPIC_URL, json=message())
    post(client(MODEL_ALIASES=f"{CLAUDE}=claude-next"), ask(CLAUDE))
    assert sent(wire)["model"] == "claude-next"


def test_text_of_any_script_arrives_as_it_was_sent(wire: responses.RequestsMock) -> None:
    text = 'é漢\U0001f600\u2028\x00"\\\r\n'
    assert forwarded(wire, text=text)["messages"][0]["content"] == text


# Full answers.


def test_a_full_answer_uses_the_provider_s_full_form(wire: responses.RequestsMock) -> None:
    response, body = answer(wire, ANTHROPIC_URL, message())
    assert not body.get("stream")
    document = response.get_json()
    assert type(document.pop("created")) is int
    assert document.pop("usage").items() >= usage(10, 4).items()
    assert document == {
        "id": "msg_01A",
        "object": "chat.completion",
        "model": "claude-sonnet-4-6-20260101",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "finish_reason": "stop",
            }
        ],
    }


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def content_of(response: Any) -> Any:
    return response.get_json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([text_block("Hello"), text_block(" there")], "Hello there"),
        ([text_block("Hel"), text_block(""), text_block("lo")], "Hello"),
        ([], ""),
        ([text_block("")], ""),
        (
            [
                {"type": "thinking", "thinking": "hidden", "signature": "hidden"},
                {"type": "redacted_thinking", "data": "hidden"},
                text_block("shown"),
                {"type": "tool_use", "id": "1", "name": "hidden", "input": {}},
                {"type": "not_yet_invented", "text": "hidden"},
                text_block(", too"),
            ],
            "shown, too",
        ),
        ([{"type": "thinking", "thinking": "hidden", "signature": ""}], ""),
        ([{"type": "text", "text": "a", "citations": [{"cited_text": "hidden"}]}], "a"),
        ([text_block("é漢\U0001f600\u2028")], "é漢\U0001f600\u2028"),
    ],
)
def test_the_text_blocks_are_joined_and_nothing_else_is_shown(
    blocks: list[Any], text: str, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, message(content=blocks))
    assert content_of(response) == text
    assert "hidden" not in response.text


REASONS = [
    ("end_turn", "stop"),
    ("stop_sequence", "stop"),
    ("pause_turn", "stop"),
    ("max_tokens", "length"),
    ("model_context_window_exceeded", "length"),
    ("tool_use", "tool_calls"),
    ("refusal", "content_filter"),
    ("not_yet_invented", "not_yet_invented"),
]


@pytest.mark.parametrize(("reason", "expected"), REASONS)
def test_every_stop_reason_is_translated_and_a_new_one_passed_through(
    reason: str, expected: str, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, message(stop_reason=reason))
    assert response.get_json()["choices"][0]["finish_reason"] == expected


def test_a_refusal_before_any_text_is_an_empty_answer_and_no_error(
    wire: responses.RequestsMock,
) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, message(content=[], stop_reason="refusal"))
    assert content_of(response) == ""
    assert response.get_json()["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({}, 10),
        ({"cache_creation_input_tokens": None, "cache_read_input_tokens": None}, 10),
        ({"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}, 10),
        ({"cache_read_input_tokens": 5}, 15),
        ({"cache_creation_input_tokens": 100}, 110),
        ({"cache_creation_input_tokens": 100, "cache_read_input_tokens": 5}, 115),
        ({"service_tier": "standard", "cache_creation": {"x": 1}, "server_tool_use": None}, 10),
    ],
)
def test_cached_tokens_are_counted_and_the_total_is_the_true_sum(
    more: dict[str, Any], prompt: int, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, message(usage=USAGE | more))
    counted = response.get_json()["usage"]
    assert counted.items() >= usage(prompt, 4).items()
    details = counted.get("prompt_tokens_details", {})
    assert details.get("cached_tokens", 0) == (more.get("cache_read_input_tokens") or 0)


@pytest.mark.parametrize(
    "document",
    [
        *NO_ANSWERS,
        b'{"id": "msg_01A", "content": [{"type": "text", "te',
        [message()],
        *(without(message(), name) for name in ("id", "model", "content", "stop_reason", "usage")),
        *(message(content=wrong) for wrong in (None, "Hello", {}, "", 1, [None], ["Hello"], [[]])),
        *(message(content=[wrong]) for wrong in ({}, {"text": "Hello"})),
        *(message(content=[{"type": "text", "text": wrong}]) for wrong in (1, [], {}, True)),
        *(message(stop_reason=wrong) for wrong in (None, "", 1, [], {}, True)),
        *(message(id=wrong) for wrong in (None, 1, [], {})),
        *(message(model=wrong) for wrong in (None, 1, [], {})),
        *(message(usage=wrong) for wrong in (None, [], "10", 14, {})),
        *(
            message(usage=USAGE | {name: wrong})
            for name in ("input_tokens", "output_tokens")
            for wrong in (None, "10", 1.5, [], {}, True)
        ),
        *(
            message(usage=USAGE | {name: wrong})
            for name in ("cache_read_input_tokens", "cache_creation_input_tokens")
            for wrong in ("10", 1.5, [1], {"a": 1}, True)
        ),
        message(usage={"input_tokens": 10}),
        message(usage={"output_tokens": 10}),
    ],
    ids=lambda document: difference(document, message()),
)
def test_an_answer_of_a_wrong_shape_is_an_error_and_never_an_answer(
    document: Any, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, document)
    code, said = error_of(response, 500)
    assert code == "provider_bad_response"
    assert "Hello" not in said
    assert "html" not in said


@pytest.mark.parametrize("status", [201, 202, 204, 206, 301, 302, 307, 308])
def test_any_status_but_200_is_no_answer(status: int, wire: responses.RequestsMock) -> None:
    elsewhere = {"Location": "https://elsewhere.example/v1/messages"}
    wire.post(ANTHROPIC_URL, status=status, json=message(), headers=elsewhere)
    code, _ = error_of(post(client(), ask(CLAUDE)), 500)
    assert code == "provider_bad_response"
    assert len(wire.calls) == 1


@pytest.mark.parametrize("field", ["logprobs", "new_field", "container", "context_management"])
def test_fields_that_are_new_change_nothing(field: str, wire: responses.RequestsMock) -> None:
    response, _ = answer(wire, ANTHROPIC_URL, message(**{field: {"a": [1]}}))
    assert content_of(response) == "Hello"
    assert field not in response.text


# Streams.

START = {
    "type": "message_start",
    "message": {
        "id": "msg_01A",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6-20260101",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1},
    },
}
STOP = {"type": "message_stop"}


def block_start(block: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(**given: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": given}


def text_delta(text: Any) -> dict[str, Any]:
    return delta(type="text_delta", text=text)


def end(reason: Any = "end_turn", **counts: Any) -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": reason, "stop_sequence": None},
        "usage": {"output_tokens": 4} | counts,
    }


def stream_of(*events: Any, reason: Any = "end_turn", **counts: Any) -> list[Any]:
    """A whole stream around these events, or around "Hello"."""
    inner = events or (block_start(text_block("")), text_delta("Hello"))
    return [START, *inner, {"type": "content_block_stop", "index": 0}, end(reason, **counts), STOP]


def test_a_stream_is_asked_for_and_comes_out_in_openai_s_form(wire: responses.RequestsMock) -> None:
    response = streamed(wire, ANTHROPIC_URL, stream_of())
    assert sent(wire)["stream"] is True
    assert "stream_options" not in sent(wire)
    out = lines(response)
    assert out[-1] == "data: [DONE]"
    documents = chunks(out)
    assert {chunk["id"] for chunk in documents} == {"msg_01A"}
    assert {chunk["model"] for chunk in documents} == {"claude-sonnet-4-6-20260101"}
    assert text_of(out) == "Hello"
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    assert documents[-1]["usage"].items() >= usage(15, 4).items()


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([block_start(text_block("Hel")), text_delta("lo")], "Hello"),
        (
            [
                block_start(text_block("")),
                text_delta("Hello"),
                block_start(text_block(" "), 1),
                text_delta("there"),
            ],
            "Hello there",
        ),
        (
            [{"type": "ping"}, text_delta(""), text_delta("é漢\U0001f600\u2028")],
            "é漢\U0001f600\u2028",
        ),
        (
            [
                block_start({"type": "thinking", "thinking": "hidden", "signature": ""}),
                delta(type="thinking_delta", thinking="hidden"),
                delta(type="signature_delta", signature="hidden"),
                block_start({"type": "redacted_thinking", "data": "hidden"}, 1),
                block_start({"type": "tool_use", "id": "1", "name": "hidden", "input": {}}, 2),
                delta(type="input_json_delta", partial_json="hidden"),
                delta(type="citations_delta", citation={"cited_text": "hidden"}),
                delta(type="not_yet_invented", text="hidden"),
                block_start({"type": "not_yet_invented", "text": "hidden"}, 3),
                {"type": "not_yet_invented", "text": "hidden", "delta": {"text": "hidden"}},
                block_start(text_block(""), 4),
                text_delta("shown"),
            ],
            "shown",
        ),
        ([{"type": "ping"}], ""),
    ],
)
def test_a_stream_s_text_deltas_are_its_text_and_nothing_else_is_shown(
    events: list[Any], text: str, wire: responses.RequestsMock
) -> None:
    response = streamed(wire, ANTHROPIC_URL, stream_of(*events))
    assert text_of(lines(response)) == text
    assert lines(response)[-1] == "data: [DONE]"
    assert "hidden" not in response.text


@pytest.mark.parametrize(("reason", "expected"), REASONS)
def test_every_stop_reason_of_a_stream_is_translated(
    reason: str, expected: str, wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, ANTHROPIC_URL, stream_of(reason=reason)))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks(out)]
    assert [found for found in reasons if found] == [expected]


@pytest.mark.parametrize(
    ("counts", "prompt", "completion"),
    [
        ({}, 15, 4),
        ({"output_tokens": 400}, 15, 400),
        ({"input_tokens": 20}, 25, 4),
        ({"input_tokens": 20, "cache_read_input_tokens": 0}, 20, 4),
        ({"input_tokens": None, "cache_read_input_tokens": None}, 15, 4),
        ({"cache_creation_input_tokens": 100}, 115, 4),
    ],
)
def test_the_last_counts_of_a_stream_override_and_are_never_added(
    counts: dict[str, Any], prompt: int, completion: int, wire: responses.RequestsMock
) -> None:
    documents = chunks(lines(streamed(wire, ANTHROPIC_URL, stream_of(**counts))))
    assert documents[-1]["usage"].items() >= usage(prompt, completion).items()


def test_of_several_message_deltas_the_last_counts(wire: responses.RequestsMock) -> None:
    twice = [START, text_delta("Hello"), end(None, output_tokens=2), end(), STOP]
    out = chunks(lines(streamed(wire, ANTHROPIC_URL, twice)))
    assert out[-1]["usage"]["completion_tokens"] == 4
    assert out[-1]["choices"][0]["finish_reason"] == "stop"
    later = [START, text_delta("Hello"), end(), end(None, output_tokens=6), STOP]
    out = chunks(lines(streamed(wire, ANTHROPIC_URL, later)))
    assert out[-1]["usage"]["completion_tokens"] == 6
    assert out[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "events",
    [
        *NO_STREAMS,
        [{"type": "message_start"}],
        [{"type": "message_start", "message": None}],
        [{"type": "message_start", "message": {"usage": USAGE}}],
        [STOP],
        [text_delta("Hello")],
        [end()],
        [{"type": "error", "error": "x"}],
    ],
    ids=lambda events: repr(events)[:60],
)
def test_a_stream_that_begins_wrong_is_500_and_no_stream(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    response = streamed(wire, ANTHROPIC_URL, events)
    code, _ = error_of(response, 500)
    assert code in ("provider_bad_response", "provider_unavailable")
    assert "Hello" not in response.text


@pytest.mark.parametrize("events", [*ONLY_SIGNS_OF_LIFE, [{"type": "ping"}], [START]])
def test_after_a_sign_of_life_it_is_too_late_for_a_500(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, ANTHROPIC_URL, events))
    assert out[0] == ": ping" or chunks(out)[0]["choices"][0]["delta"]["role"] == "assistant"
    assert code_of(chunks(out)[-1]) == "provider_bad_response"
    assert text_of(out[:-1]) == ""


@pytest.mark.parametrize(
    "events",
    [
        [b"data: {\n\n"],
        [b"data: \xff\n\n"],
        [{}],
        [[]],
        [{"type": "content_block_delta"}],
        [{"type": "content_block_delta", "delta": None}],
        [{"type": "content_block_delta", "delta": {}}],
        [text_delta(None)],
        [text_delta(1)],
        [text_delta(["x"])],
        [delta(type="text_delta")],
        [{"type": "content_block_start"}],
        [block_start({})],
        [block_start({"type": "text", "text": None})],
        [{"type": "message_delta", "delta": None, "usage": {}}, STOP],
        [{"type": "message_delta", "usage": {"output_tokens": 4}}, STOP],
        [STOP],
        [end(None), STOP],
        [end(""), STOP],
        [end(1), STOP],
        [end(["x"]), STOP],
        [end(output_tokens="4"), STOP],
        [end(output_tokens=1.5), STOP],
        [end(output_tokens=True), STOP],
        [end(input_tokens=[]), STOP],
        [end(cache_read_input_tokens="x"), STOP],
        [end()],
        [end(), {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}],
        [],
        ["[DONE]"],
    ],
    ids=lambda events: repr(events)[:60],
)
def test_a_stream_that_goes_wrong_ends_with_one_error_and_without_an_end_mark(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, ANTHROPIC_URL, [START, text_delta("Hello"), *events]))
    *before, last = chunks(out)
    assert out[-1].startswith('data: {"error"')
    assert code_of(last) in ("provider_bad_response", "provider_unavailable")
    assert text_of(out[:-1]) == "Hello"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in before)
    assert not any("[DONE]" in line for line in out)


@pytest.mark.parametrize(
    "rest",
    [[b"data: {\n\n"], [{}], [text_delta("more")], [STOP], [{"type": "ping"}], [START], [b"x"]],
    ids=repr,
)
def test_what_follows_the_end_mark_changes_nothing(
    rest: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, ANTHROPIC_URL, stream_of() + rest))
    assert text_of(out) == "Hello"
    assert out.count("data: [DONE]") == 1
    assert out[-1] == "data: [DONE]"
    assert sum(1 for c in chunks(out) if c["choices"][0]["finish_reason"]) == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded_error", "provider_unavailable"),
        ("api_error", "provider_unavailable"),
        ("rate_limit_error", "provider_rate_limited"),
        ("authentication_error", "provider_auth_failed"),
        ("permission_error", "provider_auth_failed"),
        ("billing_error", "provider_auth_failed"),
        ("invalid_request_error", "provider_rejected_request"),
        ("request_too_large", "provider_rejected_request"),
        ("not_found_error", "model_not_available"),
        ("timeout_error", "provider_timeout"),
        ("not_yet_invented", "provider_unavailable"),
        (None, "provider_unavailable"),
    ],
)
def test_an_error_in_mid_stream_is_told_by_its_cause(
    kind: str | None, code: str, wire: responses.RequestsMock
) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "No."}, "request_id": "req_1"}
    out = lines(streamed(wire, ANTHROPIC_URL, [START, text_delta("Hello"), sse(error, "error")]))
    assert text_of(out[:-1]) == "Hello"
    assert code_of(chunks(out)[-1]) == code


def test_an_error_as_the_first_event_is_500(wire: responses.RequestsMock) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    response = streamed(wire, ANTHROPIC_URL, [sse(error, "error")])
    assert error_of(response, 500)[0] == "provider_unavailable"


def test_the_offline_provider_caps_nothing() -> None:
    assert "X-Adjusted-Parameters" not in post(offline(), ask(CLAUDE, temperature=2)).headers
