"""OpenAI's Chat Completions API: our values into its form, its answers into ours.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import time
from collections.abc import Iterable
from typing import Any

from core.settings import Settings
from providers.base import (
    Answer,
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


class OpenAI(Provider):
    name = "openai"

    def __init__(self, settings: Settings) -> None:
        key = settings.openai_api_key
        self._endpoint = Endpoint(
            "OpenAI",
            f"{settings.openai_base_url}/chat/completions",
            {"Authorization": key and f"Bearer {key}"},
            request_id_header="x-request-id",
            settings=settings,
        )

    def prepare(self, request: ChatRequest) -> Prepared:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "temperature": request.temperature,
        }
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        return Prepared(body)

    def complete(self, body: dict[str, Any], call: Call) -> Answer:
        return self._endpoint.complete(body, call, _answer)

    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        return self._endpoint.stream(streamed, call, _Reader())


def _answer(completion: dict[str, Any]) -> Answer:
    choice = completion["choices"][0]
    finish = Finish(choice["finish_reason"] or None, _usage(completion.get("usage")))
    return Answer(_start(completion), _text(choice["message"]), finish)


def _start(document: dict[str, Any]) -> Start:
    created = document.get("created")
    return Start(
        document["id"],
        document["model"],
        created if type(created) is int else int(time.time()),
    )


def _text(message: dict[str, Any]) -> str:
    """The text of a message or a delta; a refusal is what the model said instead."""
    said = message.get("content")
    if said is None or said == "":
        said = message.get("refusal")
    return "" if said is None else text(said)


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    return Usage(
        count(usage["prompt_tokens"]),
        count(usage["completion_tokens"]),
        None if cached is None else count(cached),
    )


class _Reader(StreamReader):
    def __init__(self) -> None:
        self._has_started = False
        self._finish_reason: str | None = None
        self._usage: Usage | None = None

    def take(self, data: str, exchange: Exchange) -> Iterable[Event]:
        if data == "[DONE]":
            self.is_done = True
            return [Finish(self._finish_reason, self._usage)]
        chunk = exchange.parse(data)
        if chunk.get("error"):
            exchange.fail_with(chunk)
        events: list[Event] = []
        if not self._has_started:
            self._has_started = True
            events.append(_start(chunk))
        self._usage = _usage(chunk.get("usage")) or self._usage
        for choice in chunk["choices"]:
            if choice.get("index", 0) == 0:
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                events.append(_text(choice.get("delta") or {}))
        return events
