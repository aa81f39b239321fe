"""Models that take other parameters than those of the contract: learned from what they refuse."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import responses
from requests import PreparedRequest
from werkzeug.test import TestResponse

from tests.conftest import CLAUDE, GPT, ask
from tests.inprocess import ANTHROPIC_URL, OPENAI_URL, client, error_of, lines, post
from tests.upstream import (
    anthropic_events,
    anthropic_message,
    joined,
    openai_completion,
    openai_events,
    sse,
)

LIMIT = 50
RAW = '{"error": {"message": "Not here.", "param": "temperature"}}'
Refuses = Callable[[dict[str, Any]], str | dict[str, Any] | None]
UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model."
ONLY_DEFAULT = (
    "Unsupported value: 'temperature' does not support 0.3 with this model. "
    "Only the default (1) value is supported."
)


class Model:
    """A model behind either wire that refuses some bodies, and what it was sent."""

    def __init__(
        self, wire: responses.RequestsMock, model: str, refuses: Refuses, **environ: str
    ) -> None:
        self.model = model
        self.got: list[dict[str, Any]] = []
        self._refuses = refuses
        self._client = client.__wrapped__(**environ)
        self.how = "status"
        url = ANTHROPIC_URL if model == CLAUDE else OPENAI_URL
        wire.add_callback(responses.POST, url, self._answer)

    def ask(self, **parameters: Any) -> TestResponse:
        """A call's answer; the requests that it cost are in `got`."""
        self.got.clear()
        return post(self._client, ask(self.model, **parameters))

    def _answer(self, request: PreparedRequest) -> tuple[int, dict[str, str], bytes]:
        asked = json.loads(request.body or b"")
        self.got.append(asked)
        headers = {"content-type": "text/event-stream"}
        refusal = self._refuses(asked)
        if refusal is not None:
            error = refusal if isinstance(refusal, dict) else {"message": refusal}
            document = {"error": {"type": "invalid_request_error"} | error}
            if self.how == "status":
                return 400, {}, json.dumps(document).encode()
            document["error"]["code"] = 400
            if self.how == "body":
                return 200, {}, json.dumps(document).encode()
            return 200, headers, sse(document)
        if asked.get("stream"):
            told = anthropic_events if self.model == CLAUDE else openai_events
            return 200, headers, joined(told(["Hello"]))
        whole = anthropic_message if self.model == CLAUDE else openai_completion
        return 200, {}, json.dumps(whole("Hello")).encode()


def no(name: str, message: str, **more: Any) -> Refuses:
    """Refuses a body with this parameter."""
    return lambda body: {"message": message, **more} if name in body else None


def reasoning(body: dict[str, Any]) -> str | None:
    """As OpenAI's reasoning models do: one thing at a time."""
    if "max_tokens" in body:
        return UNSUPPORTED.format("max_tokens") + " Use 'max_completion_tokens' instead."
    return ONLY_DEFAULT if body.get("temperature", 1) != 1 else None


def sonnet(body: dict[str, Any]) -> str | None:
    return "`temperature` is deprecated for this model." if "temperature" in body else None


SUCCESSORS = [pytest.param(GPT, reasoning, id="gpt"), pytest.param(CLAUDE, sonnet, id="claude")]
HOW = pytest.mark.parametrize("how", ["status", "body", "first event"])


@HOW
@pytest.mark.parametrize(("model", "refuses"), SUCCESSORS)
def test_what_a_model_refuses_is_left_out_and_remembered(
    model: str, refuses: Refuses, how: str, wire: responses.RequestsMock
) -> None:
    there = Model(wire, model, refuses)
    there.how = how
    stream = how == "first event"
    for requests in (2, 1, 1):
        response = there.ask(temperature=0.3, max_tokens=LIMIT, stream=stream)
        assert response.status_code == 200, response.text
        assert len(there.got) == requests
        assert "temperature" not in there.got[-1]
        limit = "max_tokens" if model == CLAUDE else "max_completion_tokens"
        assert there.got[-1][limit] == LIMIT
        if stream:
            assert lines(response)[-1] == "data: [DONE]"


def test_it_is_remembered_for_that_model_alone(wire: responses.RequestsMock) -> None:
    there = Model(wire, GPT, lambda body: reasoning(body) if body["model"] == GPT else None)
    there.ask(temperature=0.3)
    there.model = "gpt-4o-mini"
    there.ask(temperature=0.3)
    assert [body["temperature"] for body in there.got] == [0.3]


@pytest.mark.parametrize(
    "refuses",
    [
        no("temperature", UNSUPPORTED.format("temperature"), param="temperature"),
        no("temperature", "No.", param="temperature", code="unsupported_value"),
        no("temperature", UNSUPPORTED.format("temperature")),
        no("temperature", "`temperature` may only keep its default here."),
        no("temperature", "temperature: Extra inputs are not permitted"),
        no("temperature", "Temperature: no.", param="temperature"),
        no("temperature", "Unrecognized request argument supplied: temperature"),
        no("temperature", 'The parameter "temperature" is gone.'),
        no("temperature", "This model does not support the 'temperature' parameter."),
        no("temperature", "Unsupported parameter(s): `temperature`"),
        no("temperature", "x-5 models don't support temperature=0.3. Only temperature=1."),
        no("temperature", "The following parameters are not supported: [temperature]"),
        no("temperature", "invalid_request_error: temperature must be 1"),
        no("temperature", "1 validation error for Request\nbody.temperature\n  Extra inputs"),
        no("temperature", 'Invalid JSON. Unknown name "temperature": Cannot find field.'),
        no("temperature", f"x.BadRequestError: Y - {UNSUPPORTED.format('temperature')}"),
        no("temperature", UNSUPPORTED.format("temperature"), param="None"),
        no("temperature", "[{'loc': ('body', 'temperature'), 'msg': 'Extra inputs'}]"),
        no("temperature", "Provider returned error", metadata={"raw": RAW}),
    ],
)
def test_the_parameter_s_name_is_understood_whatever_is_said_of_it(
    refuses: Refuses, wire: responses.RequestsMock
) -> None:
    there = Model(wire, GPT, refuses)
    assert there.ask(temperature=0.3).status_code == 200
    assert len(there.got) == 2


@pytest.mark.parametrize(
    "refusal",
    [
        {
            "message": "Unknown parameter: 'max_completion_tokens'.",
            "param": "max_completion_tokens",
        },
        {"message": "Unrecognized request argument supplied: max_completion_tokens"},
        {"message": [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs"}]},
        {
            "message": [
                {"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs"},
                {"loc": ["body", "pears"], "msg": "Extra inputs"},
            ]
        },
    ],
)
def test_a_server_that_knows_only_max_tokens_gets_it(
    refusal: dict[str, Any], wire: responses.RequestsMock
) -> None:
    there = Model(wire, GPT, lambda body: refusal if "max_completion_tokens" in body else None)
    for requests in (2, 1):
        assert there.ask(max_tokens=LIMIT).status_code == 200
        assert len(there.got) == requests
        assert there.got[-1]["max_tokens"] == LIMIT
        assert "max_completion_tokens" not in there.got[-1]


def test_a_limit_is_never_dropped_and_its_first_refusal_is_told(
    wire: responses.RequestsMock,
) -> None:
    def refuses(body: dict[str, Any]) -> dict[str, Any]:
        if "max_completion_tokens" in body:
            words = "max_completion_tokens is too large: 50. At most 40 pears."
            return {"message": words, "param": "max_completion_tokens"}
        return {"message": UNSUPPORTED.format("max_tokens"), "param": "max_tokens"}

    there = Model(wire, GPT, refuses)
    for _ in range(2):  # and nothing wrong was learned
        code, said = error_of(there.ask(max_tokens=LIMIT), 500)
        assert code == "provider_rejected_request"
        assert "At most 40 pears" in said
        limits = [set(body) & {"max_tokens", "max_completion_tokens"} for body in there.got]
        assert limits == [{"max_completion_tokens"}, {"max_tokens"}]


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "temperature is in the text", "param": "messages"},
        {"message": "messages[0].content: temperature is not allowed"},
        {"message": "Your text is about 'pears', temperature and more."},
        {"message": "The context is too long; lower max_completion_tokens."},
        {"message": "max_tokens is too large", "param": "max_tokens"},
        {"message": "Invalid body: {'messages': [], 'temperature': 0.3}"},
        {"message": "The messages have a 'temperature'."},
        {"message": "top_p: no", "param": "top_p"},
        {"message": ""},
    ],
)
def test_a_refusal_of_anything_else_stays_one(
    refusal: dict[str, Any], wire: responses.RequestsMock
) -> None:
    there = Model(wire, GPT, lambda _body: refusal)
    code, _ = error_of(there.ask(temperature=0.3, max_tokens=LIMIT), 500)
    assert code == "provider_rejected_request"
    assert len(there.got) == 1


def test_learning_takes_nothing_from_the_retries(wire: responses.RequestsMock) -> None:
    """Twenty models are met, twice as many as there are retries to spare."""
    aliases = "gpt-4o=m{0},gpt-4o-mini=n{0},gpt-4-turbo=o{0},gpt-3.5-turbo=p{0}"
    there = Model(wire, GPT, reasoning, MODEL_ALIASES=aliases.format(0))
    for model in ("gpt-4o", "gpt-4o-mini", "gpt-4-turbo", "gpt-3.5-turbo") * 5:
        there.model = model
        assert there.ask(temperature=0.3).status_code == 200


def test_the_operators_fields_are_added_and_replace_no_part_of_the_conversation(
    wire: responses.RequestsMock,
) -> None:
    fields = {
        "gpt-6-luna": {"reasoning_effort": "none", "stream_options": {}, "max_tokens": 9},
        "claude-x": {"thinking": {"type": "between_tools"}, "system": "Be rude."},
    }
    environ = {
        "MODEL_ALIASES": f"{GPT}=gpt-6-luna,{CLAUDE}=claude-x",
        "UPSTREAM_FIELDS": json.dumps(fields),
    }
    there = Model(wire, GPT, lambda _body: None, **environ)
    there.ask(temperature=0.3, max_tokens=5, stream=True)
    assert (
        there.got[0].items()
        >= {
            "model": "gpt-6-luna",
            "reasoning_effort": "none",
            "temperature": 0.3,
            "max_tokens": 9,  # what its operators say, and not both
            "stream_options": {"include_usage": True},
        }.items()
    )
    assert "max_completion_tokens" not in there.got[0]
    there.model = "gpt-4o-mini"
    there.ask()
    assert sorted(there.got[0]) == ["messages", "model", "temperature"]
    claude = Model(wire, CLAUDE, lambda _body: None, **environ)
    claude.ask()
    assert claude.got[0]["thinking"] == {"type": "between_tools"}
    assert "system" not in claude.got[0]
