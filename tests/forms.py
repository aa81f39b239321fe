"""What providers, and others that speak their wires, were seen to send: each form by its name.

A last message `script: "azure"` asks the upstream server for one; `python -m tests.upstream
--forms` lists them. Where a form is not for the provider or the mode that was asked for, the
answer is a plain one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.upstream import (
    CUT,
    STALL,
    Part,
    Received,
    Reply,
    anthropic_events,
    body,
    events,
    openai_completion,
    say,
    sse,
)

REJECTED, AUTH, MISSING = "provider_rejected_request", "provider_auth_failed", "model_not_available"
LIMITED, DOWN, BAD = "provider_rate_limited", "provider_unavailable", "provider_bad_response"
WORDS = "Ask for at most 5 pears."


@dataclass(frozen=True)
class Form:
    """A form, and how a call ends that meets it: well (None), or with this code."""

    about: str
    make: Callable[[dict[str, Any]], Reply | None]
    code: str | None = None
    wires: str = "openai"
    modes: str = "stream"

    def reply(self, request: Received) -> Reply:
        wire = "anthropic" if request.is_anthropic else "openai"
        mode = "stream" if request.json.get("stream") else "full"
        is_meant = wire in self.wires and mode in self.modes
        return (is_meant and self.make(request.json)) or say("Hello", " there")


# OpenAI's wire.

HEAD = {"id": "chatcmpl-A", "object": "chat.completion.chunk", "created": 1790000000}
NO_HEAD = {"id": "", "created": 0, "model": ""}
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


def chunk(content: Any = None, reason: Any = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**HEAD, "model": "gpt-4o-2024-08-06", "choices": [choice], "usage": None} | more


HELLO, THERE, STOP = chunk("Hello"), chunk(" there"), chunk(reason="stop")
USED = chunk(choices=[], usage=USAGE)
WHOLE = (HELLO, THERE, STOP, USED, "[DONE]")


def stream(*items: Any) -> Callable[[dict[str, Any]], Reply]:
    """A stream of these documents; bytes, waits and steps are as they are."""
    parts = [item if isinstance(item, bytes | float | Part) else sse(item) for item in items]
    return lambda _body: events(*parts)


def document(found: Any, status: int = 200, **headers: str) -> Callable[[dict[str, Any]], Reply]:
    return lambda _body: body(json.dumps(found), status, **headers)


def with_usage(usage: Any) -> Callable[[dict[str, Any]], Reply]:
    """A stream with this usage on its chunks, and the true one in the last."""
    return stream(*({**c, "usage": usage} for c in (HELLO, THERE, STOP)), USED, "[DONE]")


def error(code: Any, message: str = WORDS, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message} | more}


def refusing(
    message: str, name: str, status: int = 400
) -> Callable[[dict[str, Any]], Reply | None]:
    """Refuses bodies with this parameter."""
    refusal = json.dumps(error(None, message, type="invalid_request_error"))
    return lambda asked: body(refusal, status) if name in asked else None


def reasoning(asked: dict[str, Any]) -> Reply | None:
    if "max_tokens" in asked:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model."
    elif asked.get("temperature", 1) != 1:
        message = "Unsupported value: 'temperature' does not support that with this model."
    else:
        return None
    return body(json.dumps(error("unsupported_parameter", message)), 400)


# Anthropic's wire.

START, BLOCK, _PING, *REST = anthropic_events(["Hello", " there"])
assert isinstance(START, bytes)
OTHER_START = START.replace(b"msg_01A", b"msg_02B")
THOUGHT = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta"}})


def claude_error(kind: str, message: str = WORDS) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_7"}


BOTH = "openai anthropic"
EACH = "stream full"
CREDIT = "Your credit balance is too low to access the API."
FORMS = {
    # models that take other parameters
    "reasoning-model": Form("refuses max_tokens and temperature", reasoning, modes=EACH),
    "new-claude": Form(
        "refuses temperature",
        refusing("`temperature` is deprecated for this model.", "temperature"),
        wires="anthropic",
        modes=EACH,
    ),
    "older-server": Form(
        "knows only max_tokens",
        refusing("Unknown parameter: 'max_completion_tokens'.", "max_completion_tokens"),
        modes=EACH,
    ),
    # heads
    "azure": Form("begins without id and model", stream(chunk(choices=[], **NO_HEAD), *WHOLE)),
    "null-head": Form("begins with nulls", stream(chunk("", id=None, model=None), *WHOLE)),
    "start-twice": Form("begins twice", stream(START, START, BLOCK, *REST), wires="anthropic"),
    "glued": Form(
        "another answer begins inside",
        stream(START, BLOCK, REST[0], OTHER_START, BLOCK, *REST),
        BAD,
        "anthropic",
    ),
    # fields that carry nothing
    "empty-usage": Form("usage of {} first", with_usage({})),
    "null-counts": Form("counts of null first", with_usage(dict.fromkeys(USAGE))),
    "zero-counts": Form("counts of 0 first", with_usage(dict.fromkeys(USAGE, 0))),
    "no-usage": Form("no usage at all", stream(HELLO, THERE, STOP, "[DONE]")),
    "whole-floats": Form(
        "counts like 10.0",
        stream(HELLO, THERE, STOP, USED | {"usage": {k: float(n) for k, n in USAGE.items()}}),
    ),
    "null-choices": Form("choices of null", stream(chunk(choices=None), *WHOLE)),
    "null-events": Form("events of null", stream(None, HELLO, None, THERE, None, *WHOLE[2:])),
    "null-index": Form(
        "index of null",
        stream(*({**c, "choices": [c["choices"][0] | {"index": None}]} for c in WHOLE[:3]), USED),
    ),
    # ends
    "no-done": Form("ends without [DONE]", stream(*WHOLE[:-1])),
    "done-in-spaces": Form("spaces around [DONE]", stream(*WHOLE[:-1], "  [DONE] ")),
    "no-reason": Form("ends without a finish reason", stream(HELLO, THERE), BAD),
    "cut": Form("is cut after its reason", stream(*WHOLE[:3], CUT), DOWN),
    # signs of life
    "comments": Form("waits with comments", stream(*[b": PROCESSING\n\n", 0.1] * 4, *WHOLE)),
    "reasoning": Form(
        "thinks in deltas of its own",
        stream(
            *[chunk(choices=[{"index": 0, "delta": {"reasoning_content": "hm"}}]), 0.1] * 4, *WHOLE
        ),
    ),
    "empty-deltas": Form("waits with empty deltas", stream(*[chunk(""), 0.1] * 4, *WHOLE)),
    "thinking": Form(
        "thinks first", stream(START, *[THOUGHT, 0.1] * 4, BLOCK, *REST), wires="anthropic"
    ),
    "silence": Form("says nothing", stream(STALL), "provider_timeout", BOTH),
    # errors, where they stand
    "error-in-body": Form(
        "429 in a 200", document(error(429), retry_after="30"), LIMITED, BOTH, EACH
    ),
    "error-as-text": Form("a code in a string", document(error("404")), MISSING, BOTH, EACH),
    "error-first": Form("an error as the first event", stream(error(401)), AUTH, BOTH),
    "error-amid": Form("an error amid the text", stream(HELLO, 0.1, error(400)), REJECTED),
    "error-in-choice": Form(
        "an error inside a choice",
        stream(
            HELLO,
            0.1,
            chunk(choices=[{"index": 0, "finish_reason": "error", "delta": {}} | error(502)]),
            USED,
            "[DONE]",
        ),
        DOWN,
    ),
    "overloaded-amid": Form(
        "an error event",
        stream(START, BLOCK, 0.1, claude_error("overloaded_error")),
        DOWN,
        "anthropic",
    ),
    # errors, as they are written
    "flat": Form(
        "a flat error",
        document({"object": "error", "message": WORDS, "type": "x", "code": 400}, 400),
        REJECTED,
        BOTH,
        EACH,
    ),
    "detail": Form(
        "FastAPI's errors",
        document({"detail": [{"loc": ["body", "pears"], "msg": WORDS}]}, 422),
        REJECTED,
        BOTH,
        EACH,
    ),
    "plain": Form("an error of text", document({"error": WORDS}, 404), MISSING, BOTH, EACH),
    # whose business it is
    "no-credit": Form(
        "no credit left",
        document(claude_error("invalid_request_error", CREDIT), 400),
        AUTH,
        BOTH,
        EACH,
    ),
    "no-quota": Form("no quota left", document(error("insufficient_quota"), 429), AUTH, BOTH, EACH),
    "flagged": Form(
        "flagged input",
        document(error(403, "Your input was flagged.", metadata={"reasons": ["x"]}), 403),
        REJECTED,
        BOTH,
        EACH,
    ),
    "no-access": Form(
        "no access to the model", document(error("model_not_found"), 403), MISSING, BOTH, EACH
    ),
    # full answers
    "choice-failed": Form(
        "an error inside the choice",
        document(
            openai_completion("Hello")
            | {"choices": [{"finish_reason": "error", "message": {}} | error(502)]}
        ),
        DOWN,
        modes="full",
    ),
    "uncounted": Form(
        "usage of null", document(openai_completion("Hello") | {"usage": None}), BAD, modes="full"
    ),
    # waits
    "float-wait": Form(
        "Retry-After: 30.5", document(error(None), 429, retry_after="30.5"), LIMITED, BOTH, EACH
    ),
    "senseless-wait": Form(
        "a garbage retry-after-ms beside a good Retry-After",
        document(error(None), 429, retry_after_ms="soon", retry_after="30"),
        LIMITED,
        BOTH,
        EACH,
    ),
}
