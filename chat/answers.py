"""Answers in OpenAI's form: a chat.completion, and the server-sent events of one in chunks."""

import json
import time
from typing import Any

import schemas
from core import errors
from core.errors import ServiceError
from providers.base import Answer, Event, Finish, Start, Usage

PING = ": ping\n\n"
DONE = "data: [DONE]\n\n"
# So often at most: routers that cut idle connections wait for many times as long.
PING_INTERVAL_S = 1.0
_TEXT = "text"
_encode = json.JSONEncoder().encode
# What a stream is judged with when its provider did not count: such a stream is sent without.
_NOT_COUNTED = Usage(0, 0)


def completion(answer: Answer) -> dict[str, Any]:
    """The body of a 200; raises ServiceError if it does not fit the published schema."""
    start, finish = answer.start, answer.finish
    body = {
        "id": unicode_of(start.id),
        "object": "chat.completion",
        "created": start.created,
        "model": unicode_of(start.model),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": unicode_of(answer.text)},
                "finish_reason": unicode_of(finish.reason),
            }
        ],
        "usage": _usage(finish.usage),
    }
    try:
        schemas.check_answer(body)
    except schemas.Violation as violation:
        text = f"The provider's answer does not fit the published schema: {violation}."
        raise ServiceError(errors.PROVIDER_BAD_RESPONSE, text) from None
    return body


def error_event(error: ServiceError) -> bytes:
    """The event that ends a stream which failed; nothing may follow it.

    In OpenAI's form, not the contract's: its SDKs show their users no other's text.
    """
    code = error.kind.code
    return _data({"error": {"message": error.message, "type": code, "code": code}}).encode()


class Chunks:
    """A stream's server-sent events, written from a provider's; remembers what was streamed.

    With `include_usage`, usage goes out as OpenAI's extra last chunk, else on the finishing one.
    """

    def __init__(self, *, include_usage: bool, max_answer_bytes: int) -> None:
        self.start: Start | None = None
        self.usage: Usage | None = None
        self.finish: Finish | None = None
        self.has_text = False
        self._include_usage = include_usage
        self._room_bytes = max_answer_bytes
        self._around_text = ["", ""]
        self._ping_at = 0.0

    def write(self, event: Event) -> str:
        """`event` as server-sent text, often none; without `[DONE]`, which is left to send.

        Raises ServiceError when the sum of the stream does not fit the published schema.
        """
        match event:
            case "":
                return ""
            case str():
                if self.start is None:
                    raise _no_start()
                self.has_text = True
                size = len(event) if event.isascii() else len(event.encode(errors="replace"))
                self._room_bytes -= size
                if self._room_bytes < 0:
                    text = "The provider's answer is too long."
                    raise ServiceError(errors.PROVIDER_BAD_RESPONSE, text)
                before, after = self._around_text
                return f"{before}{_encode(event)}{after}"
            case Start():
                self.start = event
                # Only the text differs from one chunk of text to the next.
                self._around_text = self._chunk({"content": _TEXT}).rsplit(_encode(_TEXT), 1)
                return self._chunk({"role": "assistant", "content": ""})
            case Usage():
                self.usage = event
                return ""
            case Finish():
                return self._end(event)

    def ping(self) -> str:
        """A sign of life for the caller, or nothing where the last one is not long ago."""
        now = time.monotonic()
        if now < self._ping_at:
            return ""
        self._ping_at = now + PING_INTERVAL_S
        return PING

    def _end(self, finish: Finish) -> str:
        if self.start is None:
            raise _no_start()
        # The text was checked as it came, and is not kept: the schema asks for any string.
        is_counted = finish.usage is not None and finish.usage.total_tokens is not None
        judged = Finish(finish.reason, finish.usage if is_counted else _NOT_COUNTED)
        usage = completion(Answer(self.start, "", judged))["usage"]
        self.finish, self.usage = finish, finish.usage or self.usage
        if not is_counted:
            return self._chunk({}, finish.reason)
        if self._include_usage:
            last = {**self._head(), "choices": [], "usage": usage}
            return self._chunk({}, finish.reason) + _data(last)
        return self._chunk({}, finish.reason, usage)

    def _chunk(
        self, delta: dict[str, str], finish_reason: str | None = None, usage: Any = None
    ) -> str:
        chunk = self._head()
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        if usage or self._include_usage:
            chunk["usage"] = usage
        return _data(chunk)

    def _head(self) -> dict[str, Any]:
        if self.start is None:
            raise _no_start()
        return {
            "id": self.start.id,
            "object": "chat.completion.chunk",
            "created": self.start.created,
            "model": self.start.model,
        }


def _no_start() -> ServiceError:
    text = "The provider's stream brought text before its id and model."
    return ServiceError(errors.PROVIDER_BAD_RESPONSE, text)


def unicode_of(text: Any) -> Any:
    """`text` as Unicode: JSON may hold halves of surrogate pairs, also two that make one.

    Those that stand alone are replaced: no UTF-8 can hold them.
    """
    if not isinstance(text, str) or text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def _data(document: dict[str, Any]) -> str:
    # ASCII, so that no client can take a U+2028 in the text for the end of a line.
    return f"data: {_encode(document)}\n\n"
