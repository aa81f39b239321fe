"""One chat completion, from a valid request to its answer and its usage record."""

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

from chat import answers
from chat.limits import Limits, Price
from chat.request import ChatBody
from chat.slots import Slots
from core import errors, records, watchdog
from core.access import Caller
from core.errors import CallerLeft, ServiceError
from core.settings import Settings
from providers.base import Call, ChatRequest, Start, Usage
from providers.http import connect


class ChatService:
    """What the calls of one process share: the providers, the slots that bound its load, limits."""

    def __init__(self, settings: Settings, price: Price) -> None:
        self.settings = settings
        self.providers = connect(settings)
        names = {caller.name for caller in settings.access_tokens}
        self.slots = Slots(settings.call_slots, len(names))
        self.limits = Limits(settings, price)
        records.GAUGES["calls"] = self.slots.taken


class Stream:
    """Server-sent events, as WSGI takes them; closing it ends its call."""

    def __init__(self, events: Iterator[bytes], close: Callable[[], None]) -> None:
        self._events = events
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._events


class ChatCall:
    """One call; a context manager, in which either `full()` or `stream()` is called, once.

    When its block ends, whatever the call holds is given back, but for a stream: that goes on
    until it is closed. What the block raises is in the usage record by then, and ServiceError or
    CallerLeft. In the end, `adjusted` has the parameters that the model got otherwise than asked.
    """

    def __init__(
        self,
        service: ChatService,
        request: ChatBody,
        caller: Caller,
        caller_socket: socket.socket | None,
        *,
        request_id: str,
        trace_id: str | None,
    ) -> None:
        self._service = service
        self._request = request
        self._caller = caller
        fields, settings = request.fields, service.settings
        timeout_s = settings.stream_timeout_s if fields["stream"] else settings.total_timeout_s
        self._provider = service.providers[fields["model"]]
        self._call = Call(watchdog.watch(caller_socket, timeout_s), caller.name, request_id)
        self._record = records.Record(
            self._provider.name,
            fields,
            request_id=request_id,
            caller=records.short(caller.name),
            token=caller.token_id,
            trace_id=trace_id,
        )
        self._held = ExitStack()
        self._is_streaming = False

    def __enter__(self) -> Self:
        self._held.callback(self._call.watch.close)
        # A stream that nobody took to its end was left by its caller.
        self._held.callback(self._write_record, "client_disconnect")
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        failure = self._recorded(error) if isinstance(error, Exception) else None
        if error is not None or not self._is_streaming:
            self._held.close()
        if failure is not None:
            raise failure from None

    def full(self) -> dict[str, Any]:
        """The body of a full answer."""
        answer = self._provider.complete(self._prepared(), self._call)
        self._note(answer.start, answer.finish.usage, answer.finish.reason)
        body = answers.completion(answer)
        self._write_record("ok")
        return body

    def stream(self) -> Stream:
        """Server-sent events; returns when the first has come, so that early failures raise."""
        pieces = self._pieces(self._prepared())
        first = next(pieces)
        self._is_streaming = True
        return Stream(self._to_its_end(first, pieces), self._held.close)

    @property
    def adjusted(self) -> dict[str, Any]:
        """What the caller asked for and the model got otherwise; None for what was left out."""
        adjusted = self._call.adjusted
        return {name: value for name, value in adjusted.items() if name in self._request.asked}

    def _prepared(self) -> dict[str, Any]:
        """The provider's own form of the request, once the call may be made and has a slot."""
        fields, settings = self._request.fields, self._service.settings
        if not self._caller.may_use(fields["brand_id"]):
            text = "brand_id is not one of the brands that this token is bound to."
            raise ServiceError(errors.BRAND_NOT_ALLOWED, text)
        model, max_tokens = fields["model"], fields.get("max_tokens")
        prepared = self._provider.prepare(
            ChatRequest(
                settings.model_aliases.get(model, model),
                fields["messages"],
                fields["temperature"],
                # 5.0 is an integer for JSON Schema, but not for the providers.
                None if max_tokens is None else int(max_tokens),
            )
        )
        self._call.adjusted |= prepared.adjusted
        self._service.slots.take(self._caller.name)
        self._held.callback(self._service.slots.give_back, self._caller.name)
        self._service.limits.check(self._caller.name, fields["brand_id"])
        return prepared.body

    def _to_its_end(self, first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield first
            yield from pieces
        except Exception as error:
            failure = self._recorded(error)
            if isinstance(failure, CallerLeft):
                # To the server, so that the answer is torn: its end would say that it is complete.
                raise BrokenPipeError(errno.EPIPE, "the caller left") from None
            yield answers.error_event(failure)

    def _pieces(self, body: dict[str, Any]) -> Iterator[bytes]:
        """Server-sent events; all that came in one read leaves in one write."""
        batches = self._provider.stream(body, self._call)
        self._held.callback(batches.close)
        chunks = answers.Chunks(
            include_usage=self._request.include_usage,
            max_answer_bytes=self._service.settings.max_answer_bytes,
        )
        noted = None
        for batch in batches:
            text = ""
            try:
                for event in batch:
                    text += chunks.write(event)
            except ServiceError:
                if text:
                    yield text.encode()  # what came before the failure is the caller's
                raise
            finally:
                known = (chunks.start, chunks.usage, chunks.finish)
                if known != noted:
                    noted = known
                    reason = chunks.finish.reason if chunks.finish else None
                    self._note(chunks.start, chunks.usage, reason)
            if chunks.has_text:
                self._record.note_text()
            if not text or batch[-1] == "":  # nothing, or text that is not the last that came
                text += chunks.ping()
            if chunks.finish:
                # Before [DONE], so that a caller who leaves at that moment loses no record.
                self._write_record("ok")
                text += answers.DONE
            if text:
                yield text.encode()

    def _note(self, start: Start | None, usage: Usage | None, reason: str | None) -> None:
        fields = self._record.fields
        if start is not None:
            fields["answered_model"] = records.short(start.model)
        if reason is not None:
            fields["finish_reason"] = records.short(reason)
        if usage is not None:
            fields["prompt_tokens"] = usage.prompt_tokens
            fields["completion_tokens"] = usage.completion_tokens
            fields["total_tokens"] = usage.total_tokens
            fields["cached_tokens"] = usage.cached_tokens
            fields["reasoning_tokens"] = usage.reasoning_tokens

    def _write_record(self, status: str, code: str | None = None) -> None:
        if self._record.is_written:
            return
        call, fields = self._call, self._record.fields
        brand_id = self._request.fields["brand_id"]
        if not self._service.limits.count(self._caller.name, brand_id, fields):
            fields["unpriced"] = True
        fields["adjusted"] = call.adjusted or None
        fields["attempts"] = call.attempts
        fields["upstream_status"] = call.upstream_status
        fields["cause"] = call.cause
        fields["provider_request_id"] = call.provider_request_id
        self._record.write(status, code)

    def _recorded(self, error: Exception) -> ServiceError | CallerLeft:
        """What the caller is told of an error, once it is written down."""
        if isinstance(error, CallerLeft):
            self._write_record("client_disconnect")
            return error
        if not isinstance(error, ServiceError):
            records.log_crash(self._call.request_id, error)
            error = errors.unexpected()
        self._write_record("error", error.kind.code)
        return error
