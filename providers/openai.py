"""OpenAI's Chat Completions API: our values into its form, its answers into ours.

Source: https://platform.openai.com/docs/api-reference/chat. Many others speak it, each a little
differently; what is known of that is read here, too.
"""

import time
from typing import Any

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

NOTHING = Usage()
# Text that comes before the answer's id and model is kept so far.
MAX_EARLY_CHARACTERS = 100_000


class OpenAI(Vendor):
    name = "openai"
    label = "OpenAI"
    request_id_header = "x-request-id"
    client_request_id_header = "X-Client-Request-Id"
    stream_fields = {"stream": True, "stream_options": {"include_usage": True}}
    end_mark = "[DONE]"
    next_page = "?after="
    # Its newer models refuse max_tokens; some servers that speak its wire know nothing else.
    optional = {
        "temperature": None,
        "max_completion_tokens": "max_tokens",
        "max_tokens": "max_completion_tokens",
    }

    def __init__(self, settings: Settings) -> None:
        self.key = settings.openai_api_key
        self.url = f"{settings.openai_base_url}/chat/completions"
        self.models_url = f"{settings.openai_base_url}/models"
        self.headers = {"Authorization": f"Bearer {self.key}"}

    def prepare(self, request: ChatRequest) -> Prepared:
        body: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "temperature": request.temperature,
        }
        if request.max_tokens is not None:
            body["max_completion_tokens"] = request.max_tokens
        return Prepared(body)

    def answer(self, document: Any) -> Answer:
        _raise_if_error(document)
        choice = document["choices"][0]
        reason = _reason(choice)
        usage = _usage(document.get("usage") or {})
        start = Start(document["id"], document["model"], _created(document))
        return Answer(start, _text(choice["message"]), Finish(reason, _told(usage)))

    def reader(self) -> StreamReader:
        return _Reader()


def _raise_if_error(document: Any) -> None:
    has_choices = isinstance(document, dict) and document.get("choices")
    if document.get("error") if has_choices else is_error(document):
        raise ProviderError(document)


def _reason(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason") or None
    if reason == "error" or choice.get("error"):
        raise ProviderError(choice)
    return reason


def _created(document: dict[str, Any]) -> int:
    created = document.get("created")
    return created if type(created) is int and created else int(time.time())


def _text(message: dict[str, Any]) -> str:
    """The text of a message or a delta; a refusal is what the model said instead."""
    content = message.get("content")
    return text(message.get("refusal") if content is None or content == "" else content)


def _told(usage: Usage) -> Usage | None:
    return None if usage == NOTHING else usage


def _usage(counts: Any, known: Usage = NOTHING) -> Usage:
    """What is known with these counts; zeros and nulls do not replace what was."""
    prompt = counts.get("prompt_tokens_details") or {}
    completion = counts.get("completion_tokens_details") or {}
    told = (
        count(counts.get("prompt_tokens")),
        count(counts.get("completion_tokens")),
        count(prompt.get("cached_tokens")),
        count(completion.get("reasoning_tokens")),
    )
    if known is NOTHING:
        return Usage(*told)
    before = [getattr(known, name) for name in Usage.__slots__]
    return Usage(*(new or old or new for new, old in zip(told, before, strict=True)))


class _Reader(StreamReader):
    def __init__(self) -> None:
        self._id = ""
        self._model = ""
        self._has_started = False
        self._early = ""
        self._reason: str | None = None
        self._usage = NOTHING

    def read(self, document: Any) -> list[Event]:
        _raise_if_error(document)
        if not document:
            raise TypeError
        events: list[Event] = [] if self._has_started else self._begin(document)
        if counts := document.get("usage"):
            before, self._usage = self._usage, _usage(counts, self._usage)
            if self._usage != before:
                events.append(self._usage)
        for choice in document.get("choices") or ():
            if not choice.get("index"):  # the first, also where it is null
                self._reason = _reason(choice) or self._reason
                if said := _text(choice.get("delta") or {}):
                    events += self._said(said)
        return events

    def end(self) -> list[Event]:
        if not self._reason or not self._has_started:
            return []
        return [Finish(self._reason, _told(self._usage))]

    def _begin(self, document: dict[str, Any]) -> list[Event]:
        """The head, once its parts have come: first events of others than OpenAI may lack them."""
        self._id = self._id or text(document.get("id"))
        self._model = self._model or text(document.get("model"))
        if not self._id or not self._model:
            return []
        self._has_started = True
        start = Start(self._id, self._model, _created(document))
        return [start, self._early] if self._early else [start]

    def _said(self, said: str) -> list[Event]:
        if self._has_started:
            return [said]
        self._early += said
        if len(self._early) > MAX_EARLY_CHARACTERS:
            raise NotAnAnswer("streamed its text without an id and a model")
        return []
