"""What a provider's errors mean, wherever they stand and however they are written, and to whom."""

import json
from typing import Any

import pytest
import responses
from werkzeug.test import TestResponse

from tests.conftest import CLAUDE, GPT, ask, chunks, text_of
from tests.inprocess import (
    ANTHROPIC_URL,
    OPENAI_URL,
    client,
    code_of,
    error_of,
    lines,
    post,
    streamed,
)
from tests.upstream import anthropic_events, joined, openai_chunk, openai_completion, openai_events

REJECTED, AUTH, MISSING = "provider_rejected_request", "provider_auth_failed", "model_not_available"
LIMITED, DOWN, LATE = "provider_rate_limited", "provider_unavailable", "provider_timeout"
WORDS = "Ask for at most 5 pears"


def error(code: Any, message: Any = WORDS, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message} | more}


def flat(code: Any, kind: str = "x") -> dict[str, Any]:
    return {"object": "error", "message": f"{WORDS}.", "type": kind, "param": None, "code": code}


def claude(kind: str, message: str = WORDS) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_7"}


def refused(
    wire: responses.RequestsMock, status: int, document: Any, model: str = GPT
) -> TestResponse:
    """Our answer to one of these; a long wait keeps it from being tried again."""
    url = ANTHROPIC_URL if model == CLAUDE else OPENAI_URL
    wire.post(url, json=document, status=status, headers={"Retry-After": "30"})
    return post(client(), ask(model))


VALIDATION = [{"type": "extra_forbidden", "loc": ["body", "pears"], "msg": WORDS, "input": True}]
ENVELOPES = [
    error("x"),
    error(400),
    error(None, {"detail": VALIDATION}),
    [error(400)],
    {"error": WORDS},
    {"error": "Bad Request", "message": WORDS, "status": 400},
    {"message": WORDS, "type": "wrong_format", "code": "x"},
    {"message": {"detail": VALIDATION}, "code": None},
    {"detail": WORDS},
    {"detail": VALIDATION},
    {"detail": {"message": WORDS}},
    {"errors": [{"message": WORDS}]},
    flat(400, "BadRequestError"),
    claude("invalid_request_error"),
    {"error": error(400)},
    {"code": 400, "msg": WORDS},
    error(400, "Provider returned error", metadata={"raw": json.dumps(error(None))}),
    error(400, "Provider returned error", metadata={"raw": WORDS}),
]


@pytest.mark.parametrize("document", ENVELOPES, ids=lambda document: repr(document)[:60])
def test_the_provider_s_words_are_found_in_every_envelope(
    document: Any, wire: responses.RequestsMock
) -> None:
    code, said = error_of(refused(wire, 400, document), 500)
    assert code == REJECTED
    assert WORDS in said
    assert ".." not in said
    assert "; its request id is req_7." in said or said.endswith(f"{WORDS}.")


def test_keys_are_struck_from_words_and_they_stay_short(wire: responses.RequestsMock) -> None:
    keys = "sk-proj-71f0 Bearer abc AIzaSy12 xai-12 gsk_12 csk-12 hf_12 ghp_12 AKIA12 "
    keys += "0123456789abcdef" * 2 + "/a+b=="
    _, said = error_of(refused(wire, 400, error(400, f"No: {keys}, " + "x" * 1000)), 500)
    assert "No:" + " [key]" * 10 + "," in said
    wire.reset()
    told = "api_key=12, api-key: 34 at https://me:56@host/"
    _, said = error_of(refused(wire, 400, error(400, told)), 500)
    assert "[key], [key] at https://[key]@host/" in said
    assert len(said) < 400
    wire.reset()
    model = "claude-sonnet-4-6-20260115-preview"
    assert model in error_of(refused(wire, 400, error(400, f"No {model}")), 500)[1]


CREDIT = "Your credit balance is too low to access the API. Please go to Plans & Billing."
REGAIN = "You have reached your specified {}API usage limits. You will regain access on 2026-12-01."
MEANINGS = [
    # money is the operators' business, whichever status it comes with
    (400, claude("invalid_request_error", CREDIT), AUTH),
    (400, claude("invalid_request_error", REGAIN.format("")), AUTH),
    (400, claude("invalid_request_error", REGAIN.format("workspace ")), AUTH),
    (402, claude("billing_error"), AUTH),
    (402, error(402), AUTH),
    (400, error("billing_hard_limit_reached", type="invalid_request_error"), AUTH),
    (429, error("insufficient_quota", type="insufficient_quota"), AUTH),
    (429, error(None, "You exceeded your current quota, please check your plan."), AUTH),
    (429, error(None, "You have reached your monthly spend limit."), AUTH),
    (403, error(403, "Insufficient credits. Add more."), AUTH),
    (200, error(402, "Insufficient credits. Add more."), AUTH),
    (400, error("budget_exceeded", "Budget has been exceeded!"), AUTH),
    (403, error("insufficient_user_quota"), AUTH),
    (400, error("credit_balance_too_low"), AUTH),
    (429, error("spend_limit_exceeded"), AUTH),
    (400, error(None, "Account balance is insufficient"), AUTH),
    (429, error(None, "Your prepaid credits are depleted"), AUTH),
    (429, error("429", "Insufficient account balance", type="rate_limit_error"), AUTH),
    (429, claude("rate_limit_error", "You have reached your monthly spending cap."), AUTH),
    (200, claude("api_error", CREDIT), AUTH),
    # but not what only mentions it
    (429, error("rate_limit_exceeded", "Add a payment method on the billing page."), LIMITED),
    (400, error(None, "x" * 300 + "credit balance"), REJECTED),
    # a 403 may mean the key, the model or the input
    (403, error(None), AUTH),
    (403, claude("permission_error"), AUTH),
    (403, error("model_not_found"), MISSING),
    (400, error("model_not_found"), MISSING),
    (403, error(403, "Your input was flagged.", metadata={"reasons": ["violence"]}), REJECTED),
    (403, error(403, metadata={"reasons": ["violence"]}), REJECTED),
    (403, error("content_policy_violation"), REJECTED),
    (200, error(403, "Your input was flagged."), REJECTED),
    (403, error(None, "Filtered due to our content management policy."), REJECTED),
    (200, error("unsupported_parameter"), REJECTED),
    # an error with status 200 is what it would be with its own
    (200, error(400), REJECTED),
    (200, error(401), AUTH),
    (200, error("404"), MISSING),
    (200, error(408), LATE),
    (200, error(429), LIMITED),
    (200, error("429"), LIMITED),
    (200, error(429.0), LIMITED),
    (200, error(502), DOWN),
    (200, error("rate_limit_exceeded", type="server_error"), LIMITED),
    (200, error(None, type="RateLimitError"), LIMITED),
    (200, error(None, status="RESOURCE_EXHAUSTED"), LIMITED),
    (200, flat(None, "NotFoundError"), MISSING),
    (200, flat(400), REJECTED),
    (200, {"detail": WORDS, "status_code": 404}, MISSING),
    (200, {"error": "model_not_found", "message": WORDS}, MISSING),
    (200, {"error": {"message": WORDS, "code": None}, "code": 404}, MISSING),
    (200, {"error": error(400)}, REJECTED),
    (200, {"code": 401, "msg": WORDS}, AUTH),
    (200, {"message": {"detail": VALIDATION}, "code": 400}, REJECTED),
    (200, {"detail": WORDS}, DOWN),
    (200, {"error": WORDS}, DOWN),
    (200, claude("overloaded_error"), DOWN),
    (200, [error(401)], AUTH),
    (200, error(True), DOWN),
    (200, error(9**99), DOWN),
    (200, error(-400), DOWN),
    # else the status says it, whatever the words are
    (404, claude("not_found_error"), MISSING),
    (429, error(None), LIMITED),
    (500, error(400), DOWN),
    (503, {"message": WORDS}, DOWN),
]


@pytest.mark.parametrize("model", [GPT, CLAUDE])
@pytest.mark.parametrize(("status", "document", "code"), MEANINGS, ids=repr)
def test_an_error_is_told_as_what_it_is(
    status: int, document: Any, code: str, model: str, wire: responses.RequestsMock
) -> None:
    response = refused(wire, status, document, model)
    told, said = error_of(response, 500)
    assert told == code
    assert len(wire.calls) == 1
    if code in (REJECTED, AUTH, MISSING):
        assert response.headers["X-Should-Retry"] == "false"
    if code not in (REJECTED, MISSING):
        for words in (WORDS, "credit", "regain", "spend", "quota,"):
            assert words not in said


# In streams.

MID_STREAM = [(doc, code) for status, doc, code in MEANINGS if status == 200]
BEGUN = {
    GPT: joined(list(openai_events(["Hel"]))[:2]),
    CLAUDE: joined(list(anthropic_events(["Hel"]))[:4]),
}


@pytest.mark.parametrize("model", [GPT, CLAUDE])
@pytest.mark.parametrize(("document", "code"), MID_STREAM, ids=repr)
def test_an_error_in_mid_stream_is_what_it_would_be_with_its_status(
    document: Any, code: str, model: str, wire: responses.RequestsMock
) -> None:
    url = ANTHROPIC_URL if model == CLAUDE else OPENAI_URL
    events = [BEGUN[model], document, "[DONE]"]
    out = lines(streamed(wire, url, events, model=model))
    assert text_of(out[:-1]) == "Hel"
    assert code_of(chunks(out)[-1]) == code
    assert not any(document["choices"][0]["finish_reason"] for document in chunks(out)[:-1])
    assert "data: [DONE]" not in out
    assert len(wire.calls) == 1


@pytest.mark.parametrize(("document", "code"), [(error(401), AUTH), (flat(400), REJECTED)])
@pytest.mark.parametrize("form", ["event", "body"])
def test_an_error_in_place_of_a_stream_is_a_500(
    document: Any, code: str, form: str, wire: responses.RequestsMock
) -> None:
    if form == "event":
        response = streamed(wire, OPENAI_URL, [document])
    else:
        wire.post(OPENAI_URL, json=document)
        response = post(client(), ask(stream=True))
    assert error_of(response, 500)[0] == code


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ({"finish_reason": "error", "error": {"code": 502, "message": WORDS}}, DOWN),
        ({"finish_reason": "error", "error": {"code": 429, "message": WORDS}}, LIMITED),
        ({"finish_reason": None, "error": {"code": 400, "message": WORDS}}, REJECTED),
        ({"finish_reason": "error"}, DOWN),
    ],
    ids=repr,
)
def test_an_error_inside_a_choice_is_one(
    choice: dict[str, Any], code: str, wire: responses.RequestsMock
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    amid = openai_chunk([{"index": 0, "delta": {"content": ""}} | choice], usage=usage)
    out = lines(streamed(wire, OPENAI_URL, [BEGUN[GPT], amid, "[DONE]"]))
    assert code_of(chunks(out)[-1]) == code
    assert "data: [DONE]" not in out
    wire.reset()
    document = openai_completion("Hel")
    document["choices"][0] |= choice
    assert error_of(refused(wire, 200, document), 500)[0] == code


def test_a_stop_reason_of_error_is_none(wire: responses.RequestsMock) -> None:
    delta = {"type": "message_delta", "delta": {"stop_reason": "error"}, "usage": {}}
    events = [BEGUN[CLAUDE], delta, {"type": "message_stop"}]
    assert code_of(chunks(lines(streamed(wire, ANTHROPIC_URL, events)))[-1]) == DOWN


# Streams and answers that are whole, though they are odd.

HEAD = {"id": "chatcmpl-A", "created": 1790000000, "model": "gpt-4o-2024-08-06"}
NO_HEAD = {"id": "", "created": 0, "model": ""}
COUNTS = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def part(content: Any = None, reason: Any = None, index: Any = 0, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None} | more


HEL, LO, STOP = part("Hel"), part("lo"), part(reason="stop")
USED = part(choices=[], usage=COUNTS)
ODD = {
    "a prelude": [part(choices=[], **NO_HEAD), HEL, LO, STOP, USED],
    "null ids first": [part("", id=None, model=None), HEL, LO, STOP, USED],
    "no model first": [part("", model=""), HEL, LO, STOP, USED],
    "text before the head": [part("Hel", **NO_HEAD), LO, STOP, USED],
    "id and model in turn": [part("Hel", model=""), part("lo", id=""), STOP, USED],
    "no head in between": [HEL, part("", **NO_HEAD), LO, STOP, USED],
    "null choices": [HEL, part(choices=None), LO, STOP, part(choices=None, usage=COUNTS)],
    "null indices": [
        part("Hel", index=None),
        part("lo", index=None),
        part(None, "stop", None),
        USED,
    ],
    "null events": [None, HEL, None, LO, STOP, USED, None],
    "null deltas": [HEL, LO, part(choices=[{"delta": None, "finish_reason": "stop"}]), USED],
    "null errors": [event | {"error": None} for event in (HEL, LO, STOP, USED)],
    "empty usage": [HEL | {"usage": {}}, LO | {"usage": []}, STOP, USED],
    "null counts": [HEL | {"usage": dict.fromkeys(COUNTS)}, LO, STOP, USED],
    "zeros first": [HEL | {"usage": dict.fromkeys(COUNTS, 0)}, LO, STOP, USED],
    "zeros later": [HEL, LO, STOP | {"usage": COUNTS}, USED | {"usage": dict.fromkeys(COUNTS, 0)}],
    "whole floats": [HEL, LO, STOP, USED | {"usage": {k: float(n) for k, n in COUNTS.items()}}],
    "early usage": [event | {"usage": COUNTS} for event in (HEL, LO, STOP)],
    "spaces around the end mark": [HEL, LO, STOP, USED, "  [DONE] "],
}


@pytest.mark.parametrize("events", ODD.values(), ids=ODD)
@pytest.mark.parametrize("end", [["[DONE]"], []], ids=["marked", "unmarked"])
def test_a_whole_stream_survives_what_is_odd(
    end: list[str], events: list[Any], wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, OPENAI_URL, [*events, *end]))
    assert (text_of(out), out[-1]) == ("Hello", "data: [DONE]")
    assert {(d["id"], d["model"]) for d in chunks(out)} == {(HEAD["id"], HEAD["model"])}
    assert [d["usage"] for d in chunks(out) if d.get("usage")] == [COUNTS]


HALF = {"prompt_tokens": 10, "completion_tokens": None}


@pytest.mark.parametrize("usage", [None, {}, [], dict.fromkeys(COUNTS), HALF], ids=repr)
def test_a_stream_without_usage_ends_well_without(usage: Any, wire: responses.RequestsMock) -> None:
    events = [event | {"usage": usage} for event in (HEL, LO, STOP)]
    out = lines(streamed(wire, OPENAI_URL, [*events, "[DONE]"]))
    assert (text_of(out), out[-1]) == ("Hello", "data: [DONE]")
    assert not any(document.get("usage") for document in chunks(out))


def test_the_kinds_of_tokens_are_told_apart(wire: responses.RequestsMock) -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    out = lines(streamed(wire, OPENAI_URL, [HEL, LO, STOP, USED | {"usage": COUNTS | details}]))
    (usage,) = [document["usage"] for document in chunks(out) if document.get("usage")]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}


def test_a_stream_that_never_says_whose_it_is_fails(wire: responses.RequestsMock) -> None:
    nobody = [event | NO_HEAD for event in (HEL, LO, STOP)]
    out = lines(streamed(wire, OPENAI_URL, [*nobody, "[DONE]"]))
    assert code_of(chunks(out)[-1]) == "provider_bad_response"
    wire.reset()
    out = lines(streamed(wire, OPENAI_URL, [part("x" * 60_000, **NO_HEAD)] * 2 + [HEL, STOP]))
    assert code_of(chunks(out)[-1]) == "provider_bad_response"


BLOCK_START, _, *REST = list(anthropic_events(["lo"]))[1:]
START = next(anthropic_events([]))
assert isinstance(START, bytes)
OTHER = START.replace(b"msg_01A", b"msg_02B")


@pytest.mark.parametrize("place", [1, 2, 3])
def test_the_same_beginning_again_is_ignored_and_another_one_fails(
    place: int, wire: responses.RequestsMock
) -> None:
    whole = [START, BLOCK_START, *REST]
    out = lines(streamed(wire, ANTHROPIC_URL, [*whole[:place], START, *whole[place:]]))
    assert (text_of(out), out[-1]) == ("lo", "data: [DONE]")
    assert sum("role" in d["choices"][0]["delta"] for d in chunks(out)) == 1
    wire.reset()
    out = lines(streamed(wire, ANTHROPIC_URL, [*whole[:place], OTHER, *whole[1:]]))
    assert code_of(chunks(out)[-1]) == "provider_bad_response"
    assert "data: [DONE]" not in out


def test_a_beginning_without_an_id_waits_for_the_one_that_has_it(
    wire: responses.RequestsMock,
) -> None:
    assert isinstance(START, bytes)
    empty = START.replace(b"msg_01A", b"")
    out = lines(streamed(wire, ANTHROPIC_URL, [empty, START, BLOCK_START, *REST]))
    assert (text_of(out), out[-1]) == ("lo", "data: [DONE]")


def test_an_event_that_nobody_knows_yet_is_no_error(wire: responses.RequestsMock) -> None:
    notice = {"type": "notice", "message": "You look well.", "detail": "Very."}
    out = lines(streamed(wire, ANTHROPIC_URL, [START, notice, BLOCK_START, *REST]))
    assert (text_of(out), out[-1]) == ("lo", "data: [DONE]")
