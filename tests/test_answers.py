"""What becomes of a provider's texts and numbers that are odd, whichever provider sent them."""

from typing import Any

import pytest
import responses

from tests.conftest import CLAUDE, GPT, ask, text_of
from tests.inprocess import (
    ANTHROPIC_URL,
    OPENAI_URL,
    answer,
    client,
    error_of,
    lines,
    post,
    streamed,
)
from tests.upstream import anthropic_message, joined, openai_completion, sse, wire_of

MODELS = pytest.mark.parametrize("model", [CLAUDE, GPT])
URL = {CLAUDE: ANTHROPIC_URL, GPT: OPENAI_URL}
HALF, OTHER_HALF, EMOJI = "\ud83d", "\ude00", "\U0001f600"


def full(model: str, text: str) -> dict[str, Any]:
    return anthropic_message(text) if model == CLAUDE else openai_completion(text)


@MODELS
@pytest.mark.parametrize(
    ("text", "expected"),
    [(f"Hi {HALF}", "Hi \ufffd"), (f"{OTHER_HALF} é", "\ufffd é"), (f"é {EMOJI}", f"é {EMOJI}")],
)
def test_half_a_surrogate_pair_in_an_answer_is_replaced(
    model: str, text: str, expected: str, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, URL[model], full(model, text))
    assert response.status_code == 200, response.text
    assert response.get_json()["choices"][0]["message"]["content"] == expected


@MODELS
@pytest.mark.parametrize("field", ["id", "model"])
def test_half_a_surrogate_pair_in_a_name_is_replaced(
    model: str, field: str, wire: responses.RequestsMock
) -> None:
    response, _ = answer(wire, URL[model], full(model, "Hello") | {field: f"x{HALF}"})
    assert response.get_json()[field] == "x\ufffd"


@MODELS
def test_a_surrogate_pair_in_two_chunks_goes_out_as_it_came(
    model: str, wire: responses.RequestsMock
) -> None:
    out = lines(streamed(wire, URL[model], wire_of(model, f"Hi {HALF}", OTHER_HALF)))
    assert out[-1] == "data: [DONE]"
    text = text_of(out)
    assert text.encode("utf-16", "surrogatepass").decode("utf-16") == f"Hi {EMOJI}"


@MODELS
@pytest.mark.parametrize("field", ["input_tokens", "output_tokens"])
def test_a_number_of_tokens_that_is_none_is_not_an_answer(
    model: str, field: str, wire: responses.RequestsMock
) -> None:
    document = full(model, "Hello")
    name = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}[field]
    document["usage"][field if model == CLAUDE else name] = 10**4299
    response, _ = answer(wire, URL[model], document)
    assert error_of(response, 500)[0] == "provider_bad_response"


def test_usage_of_another_shape_is_not_an_answer(wire: responses.RequestsMock) -> None:
    start = {"type": "message_start", "message": {"id": "x", "model": "y", "usage": "abc"}}
    response = streamed(wire, ANTHROPIC_URL, [sse(start)])
    assert error_of(response, 500)[0] == "provider_bad_response"


def test_a_time_that_is_none_is_not_passed_on(wire: responses.RequestsMock) -> None:
    response, _ = answer(wire, OPENAI_URL, openai_completion("Hello") | {"created": True})
    assert response.get_json()["created"] > 1_700_000_000


@pytest.mark.parametrize("character", ["x", "é", EMOJI])
def test_the_cap_on_answers_counts_the_bytes_of_a_stream(
    character: str, wire: responses.RequestsMock
) -> None:
    whole = character * (1000 // len(character.encode()))
    for text, is_whole in ((whole, True), (whole + "x", False)):
        body = joined(wire_of(GPT, text))
        wire.post(OPENAI_URL, body=body, content_type="text/event-stream")
        out = lines(post(client(MAX_ANSWER_BYTES="1000"), ask(stream=True)))
        assert (out[-1] == "data: [DONE]") is is_whole
