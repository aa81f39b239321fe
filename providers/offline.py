"""Answers without network, clock or randomness: for a first look, and for callers' own tests."""

import hashlib
import json
import re
from typing import Any

from providers.base import (
    Answer,
    Call,
    ChatRequest,
    EventStream,
    Finish,
    Prepared,
    Provider,
    Start,
    Usage,
)

INTRODUCTION = "This is the offline provider, no model was called. You said: "
# A token is a word with the space before it.
_TOKEN = re.compile(r"\s*\S+|\s+$")


class Offline(Provider):
    name = "offline"

    def prepare(self, request: ChatRequest) -> Prepared:
        return Prepared(
            {
                "model": request.model,
                "messages": request.messages,
                "temperature": request.temperature,
                "max_tokens": request.max_tokens,
            }
        )

    def complete(self, body: dict[str, Any], call: Call) -> Answer:
        start, *texts, finish = self._events(body)
        return Answer(start, "".join(texts), finish)

    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        for event in self._events(body):
            yield [event]

    def _events(self, body: dict[str, Any]) -> list[Any]:
        said = [message["content"] for message in body["messages"]]
        asked = [m["content"] for m in body["messages"] if m["role"] == "user"] or said
        tokens = _TOKEN.findall(INTRODUCTION + asked[-1])
        sent = tokens[: body["max_tokens"]]
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        usage = Usage(sum(len(_TOKEN.findall(text)) for text in said), len(sent))
        reason = "stop" if len(sent) == len(tokens) else "length"
        return [Start(f"offline-{digest[:24]}", body["model"], 0), *sent, Finish(reason, usage)]
