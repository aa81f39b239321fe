"""Anthropic's Messages API, version 2023-06-01: our values into its form, its answers into ours.

Sources: https://docs.anthropic.com/en/api/messages and .../api/messages-streaming
"""

import time
from collections.abc import Iterable
from typing import Any

from core import errors
from core.errors import ServiceError
from core.settings import Settings
from providers.base import (
    Answer,
    Beat,
    Call,
    ChatRequest,
    Event,
    EventStream,
    Finish,
    Prepared,
    Provider,
    Start,
    Usage,
    count,
    text,
)
from providers.http.transport import Endpoint, Exchange, StreamReader

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


class Anthropic(Provider):
    name = "anthropic"

    def __init__(self, settings: Settings) -> None:
        self._default_max_tokens = settings.default_max_tokens
        self._endpoint = Endpoint(
            "Anthropic",
            f"{settings.anthropic_base_url}/v1/messages",
            {"x-api-key": settings.anthropic_api_key, "anthropic-version": VERSION},
            request_id_header="request-id",
            settings=settings,
        )

    def prepare(self, request: ChatRequest) -> Prepared:
        # Blank text is a 400 at Anthropic, and so is an assistant's turn at the end.
        said = [message for message in request.messages if message["content"].strip()]
        turns = [message for message in said if message["role"] != "system"]
        if not turns or turns[-1]["role"] != "user":
            text = f"messages must end with a user message that has text: {request.model} needs one"
            raise ServiceError(errors.INVALID_INPUT, text)
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

    def complete(self, body: dict[str, Any], call: Call) -> Answer:
        return self._endpoint.complete(body, call, _answer)

    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        return self._endpoint.stream({**body, "stream": True}, call, _Reader())


def _answer(message: dict[str, Any]) -> Answer:
    blocks = message["content"]
    if not isinstance(blocks, list):
        raise TypeError
    texts = [text(block["text"]) for block in blocks if block["type"] == "text"]
    finish = _finish(message["stop_reason"], message["usage"])
    return Answer(_start(message), "".join(texts), finish)


def _start(message: dict[str, Any]) -> Start:
    return Start(message["id"], message["model"], int(time.time()))


def _finish(stop_reason: str | None, usage: dict[str, Any]) -> Finish:
    # input_tokens leaves out what was written to or read from the cache.
    cached, written = (
        0 if usage.get(name) is None else count(usage[name])
        for name in ("cache_read_input_tokens", "cache_creation_input_tokens")
    )
    prompt_tokens = count(usage["input_tokens"]) + written + cached
    return Finish(
        _FINISH_REASONS.get(stop_reason or "", stop_reason or None),
        Usage(prompt_tokens, count(usage["output_tokens"]), cached),
    )


class _Reader(StreamReader):
    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}
        self._stop_reason: str | None = None

    def take(self, data: str, exchange: Exchange) -> Iterable[Event]:
        event = exchange.parse(data)
        match event["type"]:
            case "content_block_delta":
                delta = event["delta"]
                # What is not text (thinking, above all) shows the caller only that work goes on.
                return [text(delta["text"]) if delta["type"] == "text_delta" else Beat.PING]
            case "content_block_start":
                block = event["content_block"]
                return [text(block["text"])] if block["type"] == "text" else []
            case "message_start":
                self._usage.update(event["message"]["usage"])
                return [_start(event["message"])]
            case "message_delta":
                # Cumulative, so it overrides; nulls say nothing.
                usage = event.get("usage") or {}
                self._usage.update({name: n for name, n in usage.items() if n is not None})
                self._stop_reason = event["delta"].get("stop_reason") or self._stop_reason
            case "message_stop":
                self.is_done = True
                return [_finish(self._stop_reason, self._usage)]
            case "ping":
                return [Beat.PING]
            case "error":
                exchange.fail_with(event)
        return []
