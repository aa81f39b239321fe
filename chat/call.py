"""One chat completion, from a valid request to its answer and its usage record."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import schemas
from chat import answers
from core import errors, records, watchdog
from core.access import Caller
from core.errors import CallerLeft, ServiceError
from core.settings import Settings
from providers.base import Call, ChatRequest, EventStream, Finish, Start
from providers.http import connect


class ChatService:
    """What the calls of one process share: the providers, and the slots that bound its load."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.providers = connect(settings)
        self.slots = threading.BoundedSemaphore(settings.call_slots)


class ChatCall:
    """One call: `admit()` first, then `full()` or `stream()`, and `close()` whatever comes.

    These raise ServiceError, or CallerLeft; either is in the usage record by then.
    """

    def __init__(
        self,
        service: ChatService,
        request: dict[str, Any],
        caller: Caller,
        request_id: str,
        caller_socket: socket.socket | None,
    ) -> None:
        settings = service.settings
        timeout_s = settings.stream_timeout_s if request["stream"] else settings.total_timeout_s
        self._service = service
        self._request = request
        self._caller = caller
        self._provider = service.providers[request["model"]]
        self._call = Call(watchdog.watch(caller_socket, timeout_s))
        self._record = records.Record(request_id, caller.name, self._provider.name, request)
        self._body: dict[str, Any] = {}
        self._has_slot = False
        self._batches: EventStream | None = None

    def admit(self) -> dict[str, Any]:
        """The parameters that the model's provider needs changed; raises for a call refused."""
        with self._recorded():
            if not self._caller.may_use(self._request["brand_id"]):
                text = "brand_id is not one of the brands that this token is bound to."
                raise ServiceError(errors.BRAND_NOT_ALLOWED, text)
            prepared = self._provider.prepare(self._chat_request())
            self._body = prepared.body
            self._has_slot = self._service.slots.acquire(blocking=False)
            if not self._has_slot:
                text = f"All {self._service.settings.call_slots} call slots here are taken."
                raise ServiceError(errors.OVERLOADED, text, retry_after="1")
            return dict(prepared.adjusted)

    def full(self) -> dict[str, Any]:
        """The body of a full answer."""
        with self._recorded():
            answer = self._provider.complete(self._body, self._call)
            body = answers.completion(answer)
            self._note_answer(answer.start, answer.finish)
            self._write_record("ok")
            return body

    def stream(self) -> Iterator[bytes]:
        """Server-sent events; returns when the first has come, so that early failures raise."""
        with self._recorded():
            self._batches = self._provider.stream(self._body, self._call)
            pieces = self._pieces(self._batches)
            first = next(pieces)
        return self._to_its_end(first, pieces)

    def close(self) -> None:
        """Give back all that the call holds; a stream that was not finished was left."""
        self._write_record("client_disconnect")
        if self._batches is not None:
            self._batches.close()
        self._call.watch.close()
        if self._has_slot:
            self._has_slot = False
            self._service.slots.release()

    def _chat_request(self) -> ChatRequest:
        model, max_tokens = self._request["model"], self._request.get("max_tokens")
        return ChatRequest(
            self._service.settings.model_aliases.get(model, model),
            schemas.named_messages(self._request),
            self._request["temperature"],
            # 5.0 is an integer for JSON Schema, but not for the providers.
            None if max_tokens is None else int(max_tokens),
        )

    def _to_its_end(self, first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
        try:
            with self._recorded():
                yield from chain([first], pieces)
        except CallerLeft:
            pass
        except ServiceError as error:
            yield answers.error_event(error)
        finally:
            self.close()

    def _pieces(self, batches: EventStream) -> Iterator[bytes]:
        """Server-sent events; all that came in one read leaves in one write."""
        chunks = answers.Chunks(wants_usage(self._request), self._service.settings.max_answer_bytes)
        for batch in batches:
            text = ""
            try:
                for event in batch:
                    text += chunks.write(event)
            except ServiceError:
                if text:
                    yield text.encode()  # what came before the failure is the caller's
                raise
            if chunks.has_text:
                self._record.note_text()
            if chunks.start and chunks.finish:
                self._note_answer(chunks.start, chunks.finish)
                # Before [DONE], so that a caller who leaves at that moment loses no record.
                self._write_record("ok")
                text += answers.DONE
            yield text.encode()

    def _note_answer(self, start: Start, finish: Finish) -> None:
        self._record.note(answered_model=start.model, finish_reason=finish.reason)
        if finish.usage is not None:
            self._record.note(
                prompt_tokens=finish.usage.prompt_tokens,
                completion_tokens=finish.usage.completion_tokens,
                total_tokens=finish.usage.total_tokens,
            )

    def _write_record(self, status: str, code: str | None = None) -> None:
        self._record.note(
            attempts=self._call.attempts, provider_request_id=self._call.provider_request_id
        )
        self._record.write(status, code)

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Whatever fails inside is written down, and comes out as ServiceError or CallerLeft."""
        try:
            yield
        except CallerLeft:
            self._write_record("client_disconnect")
            raise
        except ServiceError as error:
            self._write_record("error", error.kind.code)
            raise
        except Exception as crash:
            records.log_crash(self._record.request_id, crash)
            self._write_record("error", errors.INTERNAL_ERROR.code)
            raise ServiceError(errors.INTERNAL_ERROR, "An unexpected error.") from None


def wants_usage(request: dict[str, Any]) -> bool:
    """Whether a stream's usage shall come as OpenAI's extra last chunk."""
    options = request.get("stream_options")
    return (
        request["stream"] is True
        and isinstance(options, dict)
        and options.get("include_usage") is True
    )
