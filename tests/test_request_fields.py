"""What a request says by other ways than the schema's own fields: headers, and newer names."""

import pytest
import responses

from tests.conftest import CLAUDE, GPT, ask
from tests.inprocess import (
    OPENAI_URL,
    client,
    error_of,
    offline,
    post,
    sent,
    without,
)

BOTH = {"X-Brand-Id": "loop", "X-Requested-By": "me"}
COMPLETION = {
    "id": "chatcmpl-A",
    "model": "gpt-4o-2024-08-06",
    "created": 1,
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


def nameless() -> dict[str, object]:
    return without(without(ask(), "brand_id"), "requested_by")


def test_brand_and_requester_may_come_in_headers(capfd: pytest.CaptureFixture[str]) -> None:
    assert post(offline(), nameless(), BOTH).status_code == 200
    assert '"brand_id": "loop", "requested_by": "me"' in capfd.readouterr().out


def test_what_the_body_says_wins_over_the_headers(capfd: pytest.CaptureFixture[str]) -> None:
    assert post(offline(), ask(brand_id="acme"), BOTH).status_code == 200
    assert '"brand_id": "acme"' in capfd.readouterr().out


@pytest.mark.parametrize("name", ["brand_id", "requested_by"])
def test_a_field_that_is_in_neither_place_is_missing(name: str) -> None:
    header = {"brand_id": "X-Brand-Id", "requested_by": "X-Requested-By"}[name]
    message = error_of(post(offline(), nameless(), without(BOTH, header) | {header: ""}), 400)[1]
    assert message == f"{name} is required, in the body or as the header {header}."


def test_a_wrong_field_of_the_body_is_not_mended_by_a_header() -> None:
    assert error_of(post(offline(), ask(brand_id=""), BOTH), 400)[0] == "invalid_input"
    assert error_of(post(offline(), ask(brand_id=None), BOTH), 400)[0] == "invalid_input"


def test_a_header_in_utf_8_is_read_as_that(capfd: pytest.CaptureFixture[str]) -> None:
    name = "Müller 漢".encode().decode("latin-1")
    assert post(offline(), nameless(), BOTH | {"X-Requested-By": name}).status_code == 200
    assert '"requested_by": "M\\u00fcller \\u6f22"' in capfd.readouterr().out


def test_a_token_bound_to_brands_is_held_to_the_brand_of_a_header() -> None:
    headers = BOTH | {"X-Brand-Id": "other", "Authorization": "Bearer bound-token"}
    assert error_of(post(offline(), nameless(), headers), 403)[0] == "brand_not_allowed"


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_completion_tokens": 5}, 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 9),
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
        ({"max_completion_tokens": 5.0}, 5),
    ],
)
def test_the_newer_name_of_the_limit_counts_where_the_older_is_absent(
    fields: dict[str, object], limit: int, wire: responses.RequestsMock
) -> None:
    wire.post(OPENAI_URL, json=COMPLETION)
    response = post(client(), ask(GPT, **fields))
    body = sent(wire)
    assert [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body] == [
        limit
    ]
    ignored = response.headers.get("X-Ignored-Parameters", "")
    assert ignored == ("max_completion_tokens" if "max_tokens" in fields else "")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "5", True, []])
def test_a_wrong_limit_is_refused_under_the_name_it_came_by(wrong: object) -> None:
    message = error_of(post(offline(), ask(max_completion_tokens=wrong)), 400)[1]
    assert message.startswith("max_completion_tokens must be ")


def test_a_change_is_told_in_a_header_only_where_the_caller_asked_for_it() -> None:
    too_warm = post(client(ANTHROPIC_API_KEY=""), ask(CLAUDE, temperature=1.5))
    assert too_warm.get_json()["error"] == "provider_not_configured"
    with responses.RequestsMock() as wire:
        wire.post(
            OPENAI_URL,
            status=400,
            json={"error": {"message": "no", "param": "temperature", "code": "unsupported_value"}},
        )
        wire.post(OPENAI_URL, json=COMPLETION)
        wire.post(OPENAI_URL, json=COMPLETION)
        there = client.__wrapped__(MODEL_ALIASES="gpt-4o=refuses-temperature")
        unasked, asked = post(there, ask(GPT)), post(there, ask(GPT, temperature=0.3))
    assert "X-Adjusted-Parameters" not in unasked.headers
    assert asked.headers["X-Adjusted-Parameters"] == "temperature=default"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/responses", "Responses API is not offered here"),
        ("/v1/responses/", "Responses API is not offered here"),
        ("/chat/completions", "/v1 is missing"),
        ("/models", "/v1 is missing"),
        ("/v1/v1/chat/completions", "the base URL ends with /v1, once"),
        ("/v1/chat/completions/chat/completions", "the base URL ends with /v1, once"),
        ("/v1/chat/completions/v1/models", "the base URL ends with /v1, once"),
        ("/v1/completions", "There is nothing at this path."),
    ],
)
def test_a_path_that_is_not_there_names_what_to_use_instead(path: str, words: str) -> None:
    headers = {"Authorization": "Bearer test-token"}
    message = error_of(offline().post(path, headers=headers, json=ask()), 404)[1]
    assert words in message
    assert "POST /v1/chat/completions" in message


@pytest.mark.parametrize(
    ("header", "trace_id"),
    [
        (f"00-{'ab' * 16}-{'cd' * 8}-01", "ab" * 16),
        (f"01-{'ab' * 16}-{'cd' * 8}-01-more", "ab" * 16),
        (f"00-{'00' * 16}-{'cd' * 8}-01", None),
        (f"ff-{'ab' * 16}-{'cd' * 8}-01", None),
        ("anything", None),
        (None, None),
    ],
)
def test_the_trace_that_a_caller_names_is_in_the_record(
    header: str | None, trace_id: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    post(offline(), ask(), {"traceparent": header} if header else {})
    shown = f'"{trace_id}"' if trace_id else "null"
    assert f'"trace_id": {shown}' in capfd.readouterr().out
