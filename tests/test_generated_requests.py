"""Requests nobody thought of: what fits the schema is never our failure, the rest is always 400."""

import json
from typing import Any

import pytest
import responses
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import schemas
from tests.conftest import ask
from tests.inprocess import ANTHROPIC_URL, OPENAI_URL, client, offline, post, sent
from tests.test_anthropic import message
from tests.test_openai import completion

SCHEMA = schemas.DOCUMENTS["request"]
ORACLE = Draft202012Validator(SCHEMA)
ERROR = Draft202012Validator(schemas.DOCUMENTS["response-400"])
ANSWER = Draft202012Validator(schemas.DOCUMENTS["response-200"])
bounded = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
named = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
extras = st.dictionaries(
    st.sampled_from(["tools", "n", "user", "stream_options", "", "é", "a\r\nb: c", "$ref"]),
    anything,
    max_size=2,
)
turn = st.builds(
    lambda more, role, content: more | {"role": role, "content": content},
    st.dictionaries(text, anything, max_size=1),
    st.sampled_from(["system", "user", "assistant"]),
    text,
)
whole = st.integers(1, 10**20)
valid_fields: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(SCHEMA["properties"]["model"]["enum"]),
    "temperature": st.floats(0, 2) | st.integers(0, 2),
    "max_tokens": whole | whole.map(float),
    "stream": st.booleans(),
}
valid = st.builds(
    lambda more, required, optional: more | required | optional,
    extras,
    st.fixed_dictionaries(
        {
            "messages": st.lists(turn, min_size=1, max_size=4),
            "brand_id": named,
            "requested_by": named,
        }
    ),
    st.fixed_dictionaries({}, optional=valid_fields),
)


@st.composite
def nearly_valid(draw: st.DrawFn) -> Any:
    """A valid request with one or two things changed that may or may not matter."""
    body = json.loads(json.dumps(draw(valid)))
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([body, body["messages"], *body["messages"]]))
        if not isinstance(place, dict | list) or not place:
            continue
        name = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if draw(st.booleans()):
            place[name] = draw(anything)
        else:
            del place[name]
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            break
    return body


@settings(bounded, max_examples=1000)
@given(valid | nearly_valid() | anything)
@example(ask(max_tokens=2**64))
@example(ask(max_tokens=-(2**64)))
@example(ask(max_tokens=10**400))
@example(ask(temperature=-(10**400)))
@example(ask(temperature=-0.0))
@example(ask(temperature=2.0000000000000004))
@example(ask(max_tokens=1e300))
@example(ask(model=None))
def test_the_compiled_validator_and_jsonschema_agree(body: Any) -> None:
    try:
        schemas.check_request(body)
    except schemas.Violation:
        assert not ORACLE.is_valid(body)
    else:
        assert ORACLE.is_valid(body)


@pytest.mark.parametrize("depth", [300, 900])
def test_what_the_schema_does_not_name_is_not_judged_however_deep(depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    served(ask(tools=nested))
    refused(ask(tools=nested, temperature=3))


def refused(body: Any) -> None:
    response = post(offline(), body)
    assert response.status_code == 400, response.text
    assert response.mimetype == "application/json"
    ERROR.validate(response.get_json())
    assert response.get_json()["error"] == "invalid_input"


def served(body: Any) -> None:
    response = post(offline(), body)
    assert response.status_code == 200, response.text
    if body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        ANSWER.validate(response.get_json())


@bounded
@given(valid)
def test_a_request_that_fits_the_schema_is_served(body: dict[str, Any]) -> None:
    assert ORACLE.is_valid(body)
    served(body)


@bounded
@given(nearly_valid())
@example(ask(temperature=True))
@example(ask(max_tokens=1.0))
@example(ask(max_tokens=1.5))
@example(ask(stream=0))
@example(ask(temperature=10**300))
@example(ask(messages=[{"role": "user", "content": "x"}, {"role": "user"}]))
def test_a_request_is_served_if_it_fits_the_schema_and_400_if_not(body: Any) -> None:
    if ORACLE.is_valid(body):
        served(body)
    else:
        refused(body)


@bounded
@given(anything)
def test_a_body_that_is_any_json_is_400(body: Any) -> None:
    assert not ORACLE.is_valid(body)
    refused(body)


@bounded
@given(st.binary(max_size=60))
@example(b"\x00")
@example(b'"\\ud800"')
def test_a_body_of_any_bytes_is_400(body: bytes) -> None:
    response = post(offline(), body)
    assert response.status_code == 400
    ERROR.validate(response.get_json())


@bounded
@given(valid, st.randoms(use_true_random=False))
def test_a_body_with_any_byte_changed_is_never_a_failure_of_ours(body: Any, chance: Any) -> None:
    data = bytearray(json.dumps(body, ensure_ascii=chance.random() < 0.5).encode())
    data[chance.randrange(len(data))] = chance.randrange(256)
    assert post(offline(), bytes(data)).status_code in (200, 400)


@bounded
@given(valid)
def test_a_request_that_fits_the_schema_reaches_a_real_provider_in_its_form(
    body: dict[str, Any],
) -> None:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as wire:
        wire.post(ANTHROPIC_URL, json=message())
        wire.post(OPENAI_URL, json=completion())
        response = post(client(), body | {"stream": False})
        if response.status_code == 400:
            assert response.get_json()["message"].startswith("messages must end with a user")
            assert len(wire.calls) == 0
            return
        assert response.status_code == 200, response.text
        forwarded = sent(wire)
    # OpenAI's models take the limit under the newer of its two names.
    forwarded |= {"max_tokens": forwarded.pop("max_completion_tokens", forwarded.get("max_tokens"))}
    allowed = {"model", "messages", "temperature", "max_tokens", "system"}
    assert set(forwarded) <= allowed
    assert all(set(turn) == {"role", "content"} for turn in forwarded["messages"])
    if "max_tokens" in body:
        assert forwarded["max_tokens"] == int(body["max_tokens"])
    if forwarded["model"].startswith("claude"):
        assert 0 <= forwarded["temperature"] <= 1
        assert all(turn["content"].strip() for turn in forwarded["messages"])
        assert {turn["role"] for turn in forwarded["messages"]} <= {"user", "assistant"}
    else:
        given_turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
        assert [(t["role"], t["content"]) for t in forwarded["messages"]] == given_turns


@bounded
@given(anything)
def test_the_service_s_own_judgment_of_an_answer_is_the_schema_s(document: Any) -> None:
    body = completion(choices=[{"index": 0, "message": document, "finish_reason": "stop"}])
    for candidate in (document, body):
        try:
            schemas.check_answer(candidate)
        except schemas.Violation:
            assert not ANSWER.is_valid(candidate)
        else:
            assert ANSWER.is_valid(candidate)
