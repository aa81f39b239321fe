"""The providers behind HTTP: what is asked, what is tried again, and how a failure is worded."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from core import errors
from core.errors import CallerLeft, ServiceError
from core.settings import Settings
from core.watchdog import Cause
from providers.base import Answer, Call, ChatRequest, Event, EventStream, Prepared, Provider, Vendor
from providers.http.exchange import Endpoint, Exchange
from providers.http.failures import BEFORE_SENDING, Failure
from providers.http.retries import RetryBudget, wait_before_retry_s
from providers.http.streams import batches, unreadable
from providers.http.successors import Fitting, Refused

T = TypeVar("T")
# What carries the conversation, and how it is answered: not the operators' to replace.
FIXED_FIELDS = ("model", "messages", "system", "stream", "stream_options")


class HTTPProvider(Provider):
    """A vendor's models."""

    def __init__(self, vendor: Vendor, settings: Settings, secrets: Iterable[str]) -> None:
        self.name = vendor.name
        self._vendor = vendor
        self._settings = settings
        self._endpoint = Endpoint(vendor, settings, secrets)
        self._budget = RetryBudget()
        self._refused = Refused(vendor.optional)

    def prepare(self, request: ChatRequest) -> Prepared:
        prepared = self._vendor.prepare(request)
        added = self._settings.upstream_fields.get(request.model, {})
        for name, value in added.items():
            if name not in FIXED_FIELDS:
                prepared.body.pop(self._vendor.optional.get(name) or name, None)
                prepared.body[name] = value
        return prepared

    def complete(self, body: dict[str, Any], call: Call) -> Answer:
        def answer(exchange: Exchange) -> Answer:
            with exchange:
                document = exchange.read_document()
                try:
                    return self._vendor.answer(document)
                except Exception as error:
                    raise unreadable(error, exchange) from None

        return self._first(answer, body, call, is_stream=False)

    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        def begin(exchange: Exchange) -> tuple[Exchange, list[Event], EventStream]:
            events = batches(exchange, self._vendor)
            return exchange, next(events), events

        streamed = {**body, **self._vendor.stream_fields}
        exchange, first, rest = self._first(begin, streamed, call, is_stream=True)
        with exchange:
            yield first
            try:
                yield from rest
            except Failure as failure:
                raise self._told(failure, call, is_stream=True) from None

    def _first(
        self, read: Callable[[Exchange], T], body: dict[str, Any], call: Call, *, is_stream: bool
    ) -> T:
        """What `read` makes of the first exchange that does not fail."""
        if not self._vendor.key:
            text = f"This service has no key for {self._vendor.label}; its operators can set one."
            raise ServiceError(errors.PROVIDER_NOT_CONFIGURED, text)
        self._budget.note_call(call.caller)
        fitting = Fitting(self._refused, body, call)
        retries, was_stale = 0, False
        while True:
            exchange = Exchange(self._endpoint, call, is_stream=is_stream, is_new=was_stale)
            try:
                exchange.send(fitting.body)
                first = read(exchange)
                fitting.succeeded()
                return first
            except BaseException as error:
                exchange.close()
                if not isinstance(error, Failure):
                    raise
                failure = error
            if exchange.was_stale(failure) and not was_stale:
                # The provider closed it while it was idle (urllib3 #944): not a failed request.
                # Others in the pool may be like it, so the next connection is a new one.
                was_stale = True
                call.attempts -= 1
            elif call.watch.cause is not None or not fitting.refit(failure):
                wait_s = wait_before_retry_s(failure, call, retries, self._budget)
                if wait_s is not None:
                    call.watch.sleep(wait_s)
                if wait_s is None or call.watch.cause is not None:
                    raise self._told(failure, call, is_stream=is_stream, retries=retries)
                retries += 1

    def _told(
        self, failure: Failure, call: Call, *, is_stream: bool, retries: int = 0
    ) -> ServiceError | CallerLeft:
        """The failure as the caller hears of it."""
        match call.watch.cause:
            case Cause.CALLER_LEFT:
                return CallerLeft()
            case Cause.STOPPING:
                call.cause = "stopping"
                text = "This process is stopping before the answer was complete; send it again."
                return ServiceError(errors.STOPPING, text, retry_after="1")
            case Cause.TIME_IS_UP:
                return self._timed_out(failure, call, is_stream)
        call.cause = failure.cause
        text = f"{self._vendor.label} {failure.text}"
        if failure.kind is errors.OVERLOADED:
            text = f"This process {failure.text}"
        if call.attempts > 1:
            text += f", at the last of {call.attempts} attempts"
        if call.provider_request_id:
            text += f"; its request id is {call.provider_request_id}"
        retry_after = None if failure.wait_s is None else str(math.ceil(failure.wait_s))
        # Three attempts here times three of an SDK would be nine.
        tried_enough = retries > 0 and retry_after is None
        return ServiceError(
            failure.kind,
            text + ".",
            retry_after=retry_after,
            is_final=failure.is_final or tried_enough,
        )

    def _timed_out(self, failure: Failure, call: Call, is_stream: bool) -> ServiceError:
        settings = self._settings
        limit_s = settings.stream_timeout_s if is_stream else settings.total_timeout_s
        call.cause = failure.cause
        if failure.cause in BEFORE_SENDING:
            text = f"took no connection within the {limit_s:g} s that a call may take"
        else:
            call.cause = "total_timeout"
            text = f"did not end its stream within {limit_s:g} s"
            if not is_stream:
                text = (
                    f"did not finish its answer within {limit_s:g} s: ask for a stream "
                    '("stream": true) for long answers, or for a shorter one with max_tokens'
                )
        return ServiceError(errors.PROVIDER_TIMEOUT, f"{self._vendor.label} {text}.")
