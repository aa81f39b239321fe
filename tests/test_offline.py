"""The offline provider: answers that come from nowhere, and say so."""

import re
from typing import Any

import pytest

from providers.offline import Offline
from tests.conftest import CLAUDE, GPT, ask, chunks, text_of
from tests.inprocess import client, error_of, lines, offline, post


def answer(**request: Any) -> dict[str, Any]:
    document: dict[str, Any] = post(offline(), ask(**request)).get_json()
    return document


def text(document: dict[str, Any]) -> str:
    content: str = document["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("model", [CLAUDE, GPT, "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo"])
def test_every_model_is_answered_and_the_answer_says_that_no_model_was_asked(model: str) -> None:
    document = answer(model=model, text="Good day, world")
    assert document["model"] == model
    assert "offline" in text(document)
    assert text(document).endswith("Good day, world")


def test_the_same_request_gets_the_same_answer_and_another_one_another() -> None:
    first, again = answer(text="One"), answer(text="One")
    assert first == again
    assert answer(text="Two")["id"] != first["id"]
    assert answer(text="One", temperature=0.1)["id"] != first["id"]


def test_another_process_s_answer_would_be_the_same() -> None:
    assert answer(text="One") == post(client(OFFLINE="1", THREADS="6"), ask(text="One")).get_json()


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 1.0])
def test_max_tokens_cuts_the_answer_and_says_length(max_tokens: float) -> None:
    document = answer(text="a b c d e f", max_tokens=max_tokens)
    assert document["choices"][0]["finish_reason"] == "length"
    assert document["usage"]["completion_tokens"] == max_tokens
    assert len(text(document).split()) == max_tokens


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    whole = answer(text="a b c")
    count = whole["usage"]["completion_tokens"]
    for limit in (count, count + 1, 10**9):
        document = answer(text="a b c", max_tokens=limit)
        assert text(document) == text(whole)
        assert document["choices"][0]["finish_reason"] == "stop"


def test_the_counts_are_of_what_was_asked_and_answered() -> None:
    document = answer(
        messages=[
            {"role": "system", "content": "one two"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "four five six"},
            {"role": "user", "content": "seven"},
        ]
    )
    usage = document["usage"]
    assert usage["prompt_tokens"] == 7
    assert usage["completion_tokens"] == len(text(document).split())
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("asked", ["", " ", "\n\n", "a  b\n c ", " a", "漢字", "\u2028", "\x00"])
def test_any_text_is_played_back_exactly_full_and_streamed(asked: str) -> None:
    whole = text(answer(text=asked))
    assert whole.endswith(asked)
    assert text_of(lines(post(offline(), ask(text=asked, stream=True)))) == whole


def test_a_stream_comes_word_by_word_with_the_same_counts() -> None:
    request = ask(text="Good day, world")
    full = post(offline(), request).get_json()
    out = lines(post(offline(), request | {"stream": True}))
    documents = chunks(out)
    words = [d["choices"][0]["delta"]["content"] for d in documents[1:-1]]
    assert "".join(words) == text(full)
    assert all(len(word.split()) == 1 for word in words)
    assert len(words) == full["usage"]["completion_tokens"]
    assert documents[-1]["usage"] == full["usage"]
    assert {document["id"] for document in documents} == {full["id"]}
    assert out[-1] == "data: [DONE]"


def test_a_stream_honours_max_tokens() -> None:
    out = lines(post(offline(), ask(text="a b c", stream=True, max_tokens=2)))
    assert len(text_of(out).split()) == 2
    assert chunks(out)[-1]["choices"][0]["finish_reason"] == "length"


def test_what_the_last_user_said_is_played_back() -> None:
    turns = [("user", "first"), ("assistant", "second"), ("user", "third"), ("system", "fourth")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert text(answer(messages=messages)).endswith("third")


def test_only_the_environment_can_ask_for_it() -> None:
    keyless = client(ANTHROPIC_API_KEY="", OPENAI_API_KEY="")
    for model in (CLAUDE, GPT):
        response = post(keyless, ask(model, offline=True), {"X-Offline": "1", "OFFLINE": "1"})
        code, message = error_of(response, 500)
        assert code == "provider_not_configured"
        assert re.search("key", message)
        assert response.headers["X-Should-Retry"] == "false"


def test_its_name_is_told_in_the_records() -> None:
    assert Offline.name == "offline"
