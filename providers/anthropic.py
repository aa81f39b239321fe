"""Anthropic's Messages API, version 2023-06-01: our values into its form, its answers into ours.

Sources: https://docs.anthropic.com/en/api/messages and .../api/messages-streaming
"""

import time
from typing import Any

from core import errors
from core.errors import ServiceError
from core.settings import Settings
from providers.base import (
    Answer,
    ChatRequest,
    Event,
    Finish,
    NotAnAnswer,
    Prepared,
    ProviderError,
    Start,
    StreamReader,
    Usage,
    Vendor,
    count,
    is_error,
    text,
)

# The last version that takes `temperature`: 2026-10-21 answers 400 to it.
VERSION = "2023-06-01"
MAX_TEMPERATURE = 1

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
# input_tokens leaves out what was read from or written to the cache.
_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Anthropic(Vendor):
    name = "anthropic"
    label = "Anthropic"
    request_id_header = "request-id"
    optional = {"temperature": None}
    next_page = "&after_id="

    def __init__(self, settings: Settings) -> None:
        self.key = settings.anthropic_api_key
        self.url = f"{settings.anthropic_base_url}/v1/messages"
        self.models_url = f"{settings.anthropic_base_url}/v1/models?limit=1000"
        self.headers = {"x-api-key": self.key or "", "anthropic-version": VERSION}
        self._default_max_tokens = settings.default_max_tokens

    def prepare(self, request: ChatRequest) -> Prepared:
        # Blank text is a 400 at Anthropic, and so is an assistant's turn at the end.
        said = [message for message in request.messages if message["content"].strip()]
        turns = [message for message in said if message["role"] != "system"]
        if not turns or turns[-1]["role"] != "user":
            problem = f"must end with a user message that has text: {request.model} needs one"
            raise ServiceError(errors.INVALID_INPUT, f"messages {problem}")
        body: dict[str, Any] = {
            "model": request.model,
            "max_tokens": request.max_tokens or self._default_max_tokens,
            "temperature": min(request.temperature, MAX_TEMPERATURE),
            "messages": turns,
        }
        if system := [message["content"] for message in said if message["role"] == "system"]:
            body["system"] = "\n".join(system)
        is_capped = request.temperature > MAX_TEMPERATURE
        return Prepared(body, {"temperature": MAX_TEMPERATURE} if is_capped else {})

    def answer(self, document: Any) -> Answer:
        if is_error(document):
            raise ProviderError(document)
        blocks = document["content"]
        if not isinstance(blocks, list):
            raise TypeError
        texts = [text(block.get("text")) for block in blocks if block["type"] == "text"]
        finish = Finish(_reason(document["stop_reason"]), _usage(document.get("usage") or {}))
        return Answer(_start(document), "".join(texts), finish)

    def reader(self) -> StreamReader:
        return _Reader()


def _start(message: dict[str, Any]) -> Start:
    return Start(message["id"], message["model"], int(time.time()))


def _reason(stop_reason: str | None) -> str | None:
    if stop_reason == "error":
        raise ProviderError(None)
    return _FINISH_REASONS.get(stop_reason or "", stop_reason or None)


def _usage(counts: dict[str, Any]) -> Usage | None:
    uncached, cached, written = (count(counts.get(name)) for name in _PROMPT)
    completion = count(counts.get("output_tokens"))
    if uncached is None and completion is None:
        return None
    prompt = None if uncached is None else uncached + (cached or 0) + (written or 0)
    return Usage(prompt, completion, cached)


def _said(part: dict[str, Any], kind: str) -> list[Event]:
    # What is not text (thinking, above all) only shows that work goes on.
    said = text(part.get("text")) if part["type"] == kind else ""
    return [said] if said else []


class _Reader(StreamReader):
    def __init__(self) -> None:
        self._id: str | None = None
        self._counts: dict[str, Any] = {}
        self._stop_reason: str | None = None

    def read(self, document: Any) -> list[Event]:
        if is_error(document):
            raise ProviderError(document)
        match document["type"]:
            case "content_block_delta":
                return _said(document["delta"], "text_delta")
            case "content_block_start":
                return _said(document["content_block"], "text")
            case "message_start":
                return self._begin(document["message"])
            case "message_delta":
                if self._id is None:
                    raise TypeError
                self._count(document.get("usage") or {})
                self._stop_reason = document["delta"].get("stop_reason") or self._stop_reason
                known = _usage(self._counts)
                return [known] if known else []
            case "message_stop":
                if not self._stop_reason:
                    raise TypeError
                return [Finish(_reason(self._stop_reason), _usage(self._counts))]
        return []

    def end(self) -> list[Event]:
        return []  # without its message_stop a stream was cut

    def _begin(self, message: dict[str, Any]) -> list[Event]:
        if self._id is not None:
            if message["id"] != self._id:
                raise NotAnAnswer("began another answer in the middle of this one")
            return []
        start = _start(message)
        if not text(start.id) or not text(start.model):
            return []
        self._id = start.id
        self._count(message.get("usage") or {})
        known = _usage(self._counts)
        # Its output_tokens are a placeholder.
        known = known and Usage(known.prompt_tokens, None, known.cached_tokens)
        return [start, known] if known else [start]

    def _count(self, counts: dict[str, Any]) -> None:
        """Counts replace those that came before, all of a side's together; zeros say nothing."""
        for side in (_PROMPT, ("output_tokens",)):
            given = {name: count(counts.get(name)) for name in side}
            told = {name: number for name, number in given.items() if number is not None}
            if any(told.values()) or not any(self._counts.get(name) for name in side):
                self._counts |= told
