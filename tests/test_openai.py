"""OpenAI's Chat Completions API: what is sent there, and what is made of its answers."""

from typing import Any

import pytest
import responses

from tests.conftest import GPT, OPENAI_KEY, ask, chunks, text_of
from tests.inprocess import (
    NO_ANSWERS,
    NO_STREAMS,
    ONLY_SIGNS_OF_LIFE,
    OPENAI_URL,
    answer,
    client,
    code_of,
    difference,
    error_of,
    lines,
    post,
    sent,
    streamed,
    without,
)

SNAPSHOT = "gpt-4o-2024-08-06"
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def choice(content: Any = "Hello", reason: Any = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None, "annotations": []} | more
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}


def completion(**changes: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-A",
        "object": "chat.completion",
        "created": 1790000000,
        "model": SNAPSHOT,
        "choices": [choice()],
        "usage": USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_x",
    } | changes


def forwarded(wire: responses.RequestsMock, **request: Any) -> dict[str, Any]:
    """The body that OpenAI gets for a request."""
    response, body = answer(wire, OPENAI_URL, completion(), **request)
    assert response.status_code == 200, response.text
    return body


# What is sent.


def test_a_request_is_sent_in_openai_s_form_and_with_nothing_else(
    wire: responses.RequestsMock,
) -> None:
    assert forwarded(wire, text="Hi", max_tokens=7, temperature=1.5) == {
        "model": GPT,
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 1.5,
        "max_completion_tokens": 7,
    }


def test_no_max_tokens_is_made_up(wire: responses.RequestsMock) -> None:
    body = forwarded(wire)
    assert "max_tokens" not in body
    assert "max_completion_tokens" not in body


def test_max_tokens_is_sent_as_a_whole_number(wire: responses.RequestsMock) -> None:
    sent_tokens = forwarded(wire, max_tokens=8.0)["max_completion_tokens"]
    assert (sent_tokens, type(sent_tokens)) == (8, int)


@pytest.mark.parametrize("temperature", [0, 0.7, 1, 1.01, 2, 2.0])
def test_a_temperature_is_never_changed(temperature: float, wire: responses.RequestsMock) -> None:
    response, body = answer(wire, OPENAI_URL, completion(), temperature=temperature)
    assert body["temperature"] == temperature
    assert "X-Adjusted-Parameters" not in response.headers


def test_every_turn_stays_where_and_what_it_is(wire: responses.RequestsMock) -> None:
    history = [
        {"role": "assistant", "content": "1"},
        {"role": "system", "content": "2"},
        {"role": "user", "content": ""},
        {"role": "user", "content": " \n"},
        {"role": "system", "content": "3"},
        {"role": "user", "content": 'é漢\U0001f600\u2028\x00"\\'},
        {"role": "assistant", "content": "4"},
    ]
    assert forwarded(wire, messages=history)["messages"] == history


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_goes_along_and_the_caller_s_data_does_not(
    stream: bool, wire: responses.RequestsMock
) -> None:
    wire.post(OPENAI_URL, json=completion())
    caller = {"Cookie": "a=caller", "X-Caller": "caller", "User-Agent": "caller", "Referer": "c"}
    body = ask(brand_id="loop", requested_by="caller", stream=stream, user="caller")
    post(client(), body, caller)
    request = wire.calls[0].request
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == f"Bearer {OPENAI_KEY}"
    assert headers["content-type"] == "application/json"
    assert "caller" not in f"{headers}{request.body!r}"
    assert "loop" not in f"{request.body!r}"
    assert "test-token" not in f"{headers}{request.body!r}"


def test_a_stream_is_asked_for_with_its_usage(wire: responses.RequestsMock) -> None:
    streamed(wire, OPENAI_URL, stream_of())
    body = sent(wire)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert sorted(body) == ["messages", "model", "stream", "stream_options", "temperature"]


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"])
def test_every_gpt_model_goes_there_by_its_own_name(
    model: str, wire: responses.RequestsMock
) -> None:
    assert forwarded(wire, model=model)["model"] == model


def test_an_alias_renames_one_model_upstream_and_no_other(wire: responses.RequestsMock) -> None:
    wire.post(OPENAI_URL, json=completion(model="gpt-4.1"))
    renaming = client(MODEL_ALIASES="gpt-4-turbo=gpt-4.1, gpt-3.5-turbo=gpt-4.1-mini")
    for model, expected in (
        ("gpt-4-turbo", "gpt-4.1"),
        ("gpt-3.5-turbo", "gpt-4.1-mini"),
        ("gpt-4o", "gpt-4o"),
    ):
        assert post(renaming, ask(model)).get_json()["model"] == "gpt-4.1"
        assert sent(wire)["model"] == expected


# Full answers.


def test_a_full_answer_uses_the_provider_s_full_form(wire: responses.RequestsMock) -> None:
    response, body = answer(wire, OPENAI_URL, completion())
    assert not body.get("stream")
    assert "stream_options" not in body
    document = response.get_json()
    assert document.pop("usage").items() >= USAGE.items()
    assert document == {
        "id": "chatcmpl-A",
        "object": "chat.completion",
        "created": 1790000000,
        "model": SNAPSHOT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "finish_reason": "stop",
            }
        ],
    }


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
        ({"content": None}, ""),
        ({"content": ""}, ""),
        ({"content": None, "tool_calls": [{"id": "1"}]}, ""),
        ({"content": "é漢\U0001f600\u2028"}, "é漢\U0001f600\u2028"),
        ({"content": "x", "audio": None, "annotations": [{"a": "hidden"}]}, "x"),
    ],
)
def test_a_refusal_is_text_and_content_that_is_null_is_none(
    message: dict[str, Any], text: str, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, OPENAI_URL, completion(choices=[choice(**message)]))
    assert response.get_json()["choices"][0]["message"]["content"] == text
    assert "hidden" not in response.text


def test_content_and_refusal_may_be_left_out(wire: responses.RequestsMock) -> None:
    bare = {"index": 0, "message": {"role": "assistant"}, "finish_reason": "stop"}
    response, _ = answer(wire, OPENAI_URL, completion(choices=[bare]))
    assert response.get_json()["choices"][0]["message"]["content"] == ""


REASONS = ["stop", "length", "content_filter", "tool_calls", "function_call", "not_yet_invented"]


@pytest.mark.parametrize("reason", REASONS)
def test_every_finish_reason_is_passed_through(reason: str, wire: responses.RequestsMock) -> None:
    response, _ = answer(wire, OPENAI_URL, completion(choices=[choice(reason=reason)]))
    assert response.get_json()["choices"][0]["finish_reason"] == reason


def test_the_total_is_the_true_sum_and_cached_tokens_are_part_of_the_prompt(
    wire: responses.RequestsMock,
) -> None:
    counts = USAGE | {"total_tokens": 99, "prompt_tokens_details": {"cached_tokens": 8}}
    response, _ = answer(wire, OPENAI_URL, completion(usage=counts))
    found = response.get_json()["usage"]
    assert found.items() >= USAGE.items()
    assert found["prompt_tokens_details"]["cached_tokens"] == 8


@pytest.mark.parametrize("details", [None, {}, {"audio_tokens": 0}, {"cached_tokens": None}])
def test_details_of_the_usage_may_be_missing(details: Any, wire: responses.RequestsMock) -> None:
    counts = USAGE | {"prompt_tokens_details": details}
    response, _ = answer(wire, OPENAI_URL, completion(usage=counts))
    assert response.get_json()["usage"].items() >= USAGE.items()


def test_created_is_made_up_where_the_provider_sends_none(wire: responses.RequestsMock) -> None:
    for wrong in (None, "now", 1.5, []):
        response, _ = answer(wire, OPENAI_URL, completion(created=wrong))
        assert type(response.get_json()["created"]) is int


@pytest.mark.parametrize(
    "document",
    [
        *NO_ANSWERS,
        b'{"id": "chatcmpl-A", "choices": [{"ind',
        [completion()],
        *(without(completion(), name) for name in ("id", "model", "choices", "usage")),
        *(completion(choices=wrong) for wrong in (None, [], {}, "Hello", 1, [None], ["x"], [[]])),
        completion(choices=[{}]),
        completion(choices=[{"message": {"role": "assistant", "content": "Hello"}}]),
        completion(choices=[{"finish_reason": "stop"}]),
        *(
            completion(choices=[choice() | {"message": wrong}])
            for wrong in (None, "Hello", [], 1, ["Hello"])
        ),
        *(completion(choices=[choice(wrong)]) for wrong in (1, 0, True, False, [], {}, ["Hello"])),
        completion(choices=[choice([{"type": "text", "text": "Hello"}])]),
        *(
            completion(choices=[choice(None, refusal=wrong)])
            for wrong in (1, True, ["x"], {"a": 1})
        ),
        *(completion(choices=[choice(reason=wrong)]) for wrong in (None, "", 1, [], {}, True)),
        *(completion(id=wrong) for wrong in (None, 1, [], {})),
        *(completion(model=wrong) for wrong in (None, 1, [], {})),
        *(completion(usage=wrong) for wrong in (None, [], "10", 14, {})),
        *(
            completion(usage=USAGE | {name: wrong})
            for name in ("prompt_tokens", "completion_tokens")
            for wrong in (None, "10", 1.5, [], {}, True)
        ),
        *(
            completion(usage=USAGE | {"prompt_tokens_details": {"cached_tokens": wrong}})
            for wrong in ("8", 1.5, [], True)
        ),
        *(completion(usage=USAGE | {"prompt_tokens_details": wrong}) for wrong in ("8", 8, ["x"])),
    ],
    ids=lambda document: difference(document, completion()),
)
def test_an_answer_of_a_wrong_shape_is_an_error_and_never_an_answer(
    document: Any, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, OPENAI_URL, document)
    code, said = error_of(response, 500)
    assert code == "provider_bad_response"
    assert "Hello" not in said
    assert "html" not in said


@pytest.mark.parametrize("status", [201, 202, 204, 301, 302, 303, 307, 308])
def test_any_status_but_200_is_no_answer(status: int, wire: responses.RequestsMock) -> None:
    elsewhere = {"Location": "https://elsewhere.example/v1/chat/completions"}
    wire.post(OPENAI_URL, status=status, json=completion(), headers=elsewhere)
    assert error_of(post(client(), ask()), 500)[0] == "provider_bad_response"
    assert len(wire.calls) == 1


# Streams.


def chunk(*choices: Any, **changes: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-A",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": SNAPSHOT,
        "choices": list(choices),
        "usage": None,
    } | changes


def part(content: Any = "Hello", reason: Any = None, **more: Any) -> dict[str, Any]:
    return {"index": 0, "delta": {"content": content} | more, "finish_reason": reason}


FIRST = chunk(part("", role="assistant", refusal=None))
LAST = chunk({"index": 0, "delta": {}, "finish_reason": "stop"})
COUNTS = chunk(usage=USAGE)


def stream_of(*events: Any) -> list[Any]:
    """A whole stream around these events, or around "Hello"."""
    return [FIRST, *(events or (chunk(part()),)), LAST, COUNTS, "[DONE]"]


def test_a_stream_comes_out_in_the_same_form(wire: responses.RequestsMock) -> None:
    out = lines(streamed(wire, OPENAI_URL, stream_of()))
    assert out[-1] == "data: [DONE]"
    documents = chunks(out)
    assert {(d["id"], d["created"], d["model"], d["object"]) for d in documents} == {
        ("chatcmpl-A", 1790000000, SNAPSHOT, "chat.completion.chunk")
    }
    assert text_of(out) == "Hello"
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    assert documents[-1]["usage"].items() >= USAGE.items()


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([chunk(part("Hel")), chunk(part("lo"))], "Hello"),
        ([chunk(part("")), chunk(part(None)), chunk(part("x"))], "x"),
        ([chunk({"index": 0, "delta": {}}), chunk({"index": 0, "delta": None})], ""),
        ([chunk({"index": 0})], ""),
        ([chunk(part("é漢\U0001f600\u2028"))], "é漢\U0001f600\u2028"),
        ([chunk(part(None, refusal="I can")), chunk(part(None, refusal="not."))], "I cannot."),
        ([chunk(part("x"), obfuscation="hidden")], "x"),
        ([chunk(part("x"), {"index": 1, "delta": {"content": "hidden"}})], "x"),
        ([chunk(part(None, tool_calls=[{"name": "hidden"}]))], ""),
        ([chunk(part("x", reasoning_content="hidden"), new_field="hidden")], "x"),
        ([chunk(), chunk(part("x"))], "x"),
        ([b": keep-alive\n\n", b"event: x\ndata\n\n", chunk(part("x"))], "x"),
    ],
)
def test_a_stream_s_content_is_its_text_and_nothing_else_is_shown(
    events: list[Any], text: str, wire: responses.RequestsMock
) -> None:
    response = streamed(wire, OPENAI_URL, stream_of(*events))
    assert text_of(lines(response)) == text
    assert lines(response)[-1] == "data: [DONE]"
    assert "hidden" not in response.text


@pytest.mark.parametrize("reason", REASONS)
def test_every_finish_reason_of_a_stream_is_passed_through(
    reason: str, wire: responses.RequestsMock
) -> None:
    events = [FIRST, chunk(part("x", reason)), COUNTS, "[DONE]"]
    documents = chunks(lines(streamed(wire, OPENAI_URL, events)))
    reasons = [document["choices"][0]["finish_reason"] for document in documents]
    assert [found for found in reasons if found] == [reason]


def test_usage_may_come_with_the_finishing_chunk(wire: responses.RequestsMock) -> None:
    events = [FIRST, chunk(part("x", "stop"), usage=USAGE), "[DONE]"]
    out = lines(streamed(wire, OPENAI_URL, events))
    assert chunks(out)[-1]["usage"].items() >= USAGE.items()
    assert out[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    "events",
    [
        *NO_STREAMS,
        [chunk(None)],
        [chunk("x")],
        [{"error": {"message": "x", "type": "server_error", "param": None, "code": None}}],
        [{"error": "x"}],
        [{"error": {"message": "x", "type": "server_error"}}, "[DONE]"],
    ],
    ids=lambda events: repr(events)[:60],
)
def test_a_stream_that_begins_wrong_is_500_and_no_stream(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    response = streamed(wire, OPENAI_URL, events)
    code, _ = error_of(response, 500)
    assert code in ("provider_bad_response", "provider_unavailable")


@pytest.mark.parametrize(
    "events",
    [*ONLY_SIGNS_OF_LIFE, [{"id": "chatcmpl-A"}], [chunk()], [{"choices": [part()]}]],
    ids=lambda events: repr(events)[:60],
)
def test_after_a_sign_of_life_it_is_too_late_for_a_500(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, OPENAI_URL, events))
    assert out[0] == ": ping" or chunks(out)[0]["choices"][0]["delta"]["role"] == "assistant"
    assert code_of(chunks(out)[-1]) == "provider_bad_response"
    assert text_of(out[:-1]) == ""


@pytest.mark.parametrize(
    "events",
    [
        [b"data: {\n\n"],
        [b"data: \xff\n\n"],
        [[]],
        [{}],
        [chunk(choices=None)],
        [chunk(None)],
        [chunk({"index": 0, "delta": "x"})],
        [chunk(part(1))],
        [chunk(part(["x"]))],
        [chunk(part(0))],
        [chunk(part(False))],
        [chunk(part(None, refusal=1))],
        [chunk(part("", 1)), COUNTS, "[DONE]"],
        [chunk(part("", ["stop"])), COUNTS, "[DONE]"],
        [COUNTS, "[DONE]"],
        [LAST, chunk(usage=USAGE | {"completion_tokens": "2"}), "[DONE]"],
        [LAST, chunk(usage=USAGE | {"prompt_tokens": 1.5}), "[DONE]"],
        [LAST, chunk(usage=USAGE | {"prompt_tokens": True}), "[DONE]"],
        ["[DONE]"],
        [],
    ],
    ids=lambda events: repr(events)[-60:],
)
def test_a_stream_that_goes_wrong_ends_with_one_error_and_without_an_end_mark(
    events: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, OPENAI_URL, [FIRST, chunk(part()), *events]))
    *before, last = chunks(out)
    assert out[-1].startswith('data: {"error"')
    assert code_of(last) == "provider_bad_response"
    assert text_of(out[:-1]) == "Hello"
    assert all(document["choices"][0]["finish_reason"] is None for document in before)
    assert not any("[DONE]" in line for line in out)


@pytest.mark.parametrize(
    "rest",
    [[b"data: {\n\n"], [{}], [chunk(part("more"))], ["[DONE]"], [LAST], [{"error": "x"}], [b"x"]],
    ids=lambda rest: repr(rest)[:60],
)
def test_what_follows_the_end_mark_changes_nothing(
    rest: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, OPENAI_URL, stream_of() + rest))
    assert text_of(out) == "Hello"
    assert out.count("data: [DONE]") == 1
    assert out[-1] == "data: [DONE]"
    assert sum(1 for d in chunks(out) if d["choices"][0]["finish_reason"]) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "server_error", "code": None}, "provider_unavailable"),
        ({"type": "server_error", "code": "rate_limit_exceeded"}, "provider_rate_limited"),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, "provider_auth_failed"),
        ({"type": "invalid_request_error", "code": None}, "provider_rejected_request"),
        (
            {"type": "invalid_request_error", "code": "context_length_exceeded"},
            "provider_rejected_request",
        ),
        ({"type": "invalid_request_error", "code": "model_not_found"}, "model_not_available"),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, "provider_auth_failed"),
        ({"type": "not_yet_invented", "code": 500}, "provider_unavailable"),
        ({}, "provider_unavailable"),
        ("just text", "provider_unavailable"),
        (["list"], "provider_unavailable"),
    ],
)
@pytest.mark.parametrize("after", [[], ["[DONE]"], [LAST, COUNTS, "[DONE]"]])
def test_an_error_in_mid_stream_is_told_by_its_cause_whatever_follows(
    after: list[Any], error: Any, code: str, wire: responses.RequestsMock
) -> None:
    if isinstance(error, dict) and error:
        error = {"message": "No.", "param": None} | error
    error = error or {"message": ""}
    out = lines(streamed(wire, OPENAI_URL, [FIRST, chunk(part()), {"error": error}, *after]))
    assert text_of(out[:-1]) == "Hello"
    assert code_of(chunks(out)[-1]) == code
    assert 'finish_reason": "' not in out[-1]
    assert not any("[DONE]" in line for line in out)
