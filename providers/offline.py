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
        return self._answer(body)

    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        answer = self._answer(body)
        yield [answer.start]
        for token in _TOKEN.finditer(answer.text):
            yield [token[0]]
        yield [answer.finish]

    def _answer(self, body: dict[str, Any]) -> Answer:
        said = [message["content"] for message in body["messages"]]
        asked = [m["content"] for m in body["messages"] if m["role"] == "user"] or said
        text = INTRODUCTION + asked[-1]
        count = end = 0
        # One by one: a list of all would take a gigabyte for 8 MB of short words.
        for token in _TOKEN.finditer(text):
            if count == body["max_tokens"]:
                break
            count, end = count + 1, token.end()
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        usage = Usage(sum(1 for each in said for _ in _TOKEN.finditer(each)), count)
        reason = "stop" if end == len(text) else "length"
        start = Start(f"offline-{digest[:24]}", body["model"], 0)
        return Answer(start, text[:end], Finish(reason, usage))
