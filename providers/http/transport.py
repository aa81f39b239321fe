"""The one HTTP door to the providers: what is sent, what failed and why, what is tried again."""

import contextlib
import io
import json
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Self, TypeVar

import requests
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError

from core import errors
from core.errors import CallerLeft, Kind, ServiceError
from core.settings import Settings
from core.watchdog import Cause
from providers.base import Call, Event, EventStream
from providers.http.connections import Adapter, Sending, in_this_thread
from providers.http.failures import (
    RETRYABLE_STATUSES,
    ErrorObject,
    Failure,
    RetryBudget,
    kind_of_status,
    retry_after_s,
)
from providers.http.sse import Decoder, EventTooLong

MAX_ATTEMPTS = 3
# A longer wait is the caller's to decide on: SDKs honour the Retry-After that is passed on.
MAX_WAIT_S = 2.0
MAX_ERROR_BYTES = 64_000
READ_BYTES = io.DEFAULT_BUFFER_SIZE
# The end of a stream's body follows its end mark at once, or the connection is not worth keeping.
END_OF_BODY_S = 0.1

_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# What was parsed from JSON holds no circles; looking for them takes a seventh of the time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


T = TypeVar("T")
# What reading a document of another shape than expected raises.
WRONG_SHAPE = (LookupError, TypeError, AttributeError, ValueError)


class StreamReader(ABC):
    """One provider's stream, turned into our events one by one; it keeps what is to come last."""

    is_done = False

    @abstractmethod
    def take(self, data: str, exchange: "Exchange") -> Iterable[Event]:
        """The events in one server-sent event; raises one of WRONG_SHAPE for what is none."""


class Endpoint:
    """One provider's address. All its failures are ServiceError, or CallerLeft."""

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str | None],
        *,
        request_id_header: str,
        settings: Settings,
    ) -> None:
        self.name = name
        self.request_id_header = request_id_header
        self.settings = settings
        self.secrets = (settings.anthropic_api_key, settings.openai_api_key)
        self.has_key = None not in headers.values()
        self.budget = RetryBudget()
        # The adapter itself and no Session: no cookies, no .netrc, no proxy variables, and no
        # redirects, which would carry prompt and key to another host (requests strips
        # Authorization there, but not x-api-key).
        self.adapter = Adapter(pool_maxsize=settings.threads)
        self.url = url
        self.headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "chat-completions-gateway",
            **{name: value for name, value in headers.items() if value is not None},
        }

    def complete(self, body: dict[str, Any], call: Call, read: Callable[[Any], T]) -> T:
        """What `read` makes of the provider's full answer to `body`, which is parsed JSON."""
        with Exchange(self, call, body, is_stream=False) as exchange:
            document = exchange.read_json()
            try:
                return read(document)
            except WRONG_SHAPE:
                exchange.fail("sent an answer of an unknown shape")

    def stream(self, body: dict[str, Any], call: Call, reader: StreamReader) -> EventStream:
        """The events that `reader` makes of the streamed answer, a list for each read."""
        with Exchange(self, call, body, is_stream=True) as exchange:
            for batch in exchange:
                events: list[Event] = []
                try:
                    for data in batch:
                        events += reader.take(data, exchange)
                        if reader.is_done:
                            break
                except WRONG_SHAPE:
                    exchange.fail("sent an event of an unknown shape")
                finally:
                    if events:  # what came before a failure is the caller's
                        yield events
                if reader.is_done:
                    exchange.finish()
                    return
            exchange.fail("ended its stream without its end mark")


class Exchange:
    """A request and its 200 answer, from `with`, which sends it, to the end of the block.

    Iterating gives the data of its server-sent events, those of one read at a time.
    """

    def __init__(
        self, endpoint: Endpoint, call: Call, body: dict[str, Any], *, is_stream: bool
    ) -> None:
        self._endpoint = endpoint
        self._call = call
        self._data = _encode(body).encode()
        self._is_stream = is_stream
        self._sending: Sending
        self._response: BaseHTTPResponse

    def __enter__(self) -> Self:
        if not self._endpoint.has_key:
            text = f"This service has no key for {self._endpoint.name}; its operators can set one."
            raise ServiceError(errors.PROVIDER_NOT_CONFIGURED, text)
        self._endpoint.budget.note_call()
        may_reconnect = True
        while True:
            self._raise_if_ended()
            self._call.attempts += 1
            try:
                self._send()
                return self
            except Failure as failure:
                if may_reconnect and self._was_stale(failure):
                    # The provider closed it while it was idle (urllib3 #944): not a failed
                    # request. The pool may hold more such connections, so it is emptied.
                    may_reconnect = False
                    self._call.attempts -= 1
                    self._endpoint.adapter.close()
                else:
                    self._call.watch.sleep(self._wait_for_retry_s(failure))

    def __exit__(self, *_exc: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[Iterator[str]]:
        decoder = Decoder()
        while read := self._read():
            yield self._events(decoder, read)

    def read_json(self) -> Any:
        """The whole body, parsed."""
        limit = self._endpoint.settings.max_answer_bytes
        body = self._read_up_to(limit + 1)
        if len(body) > limit:
            self.fail(f"sent an answer of more than {limit} bytes")
        return self.parse(body)

    def parse(self, text: str | bytes) -> Any:
        """`text` as JSON."""
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            self.fail("sent what is not JSON")

    def finish(self) -> None:
        """Take the end of the body that follows the last event, to keep the connection."""
        # A body of known length has given its connection back already; another call may have it.
        if self._sending.sock is not None and self._response.connection is not None:
            with contextlib.suppress(HTTPError, OSError):
                self._sending.sock.settimeout(END_OF_BODY_S)
                self._response.read1(READ_BYTES)

    def fail(self, text: str, kind: Kind = errors.PROVIDER_BAD_RESPONSE) -> NoReturn:
        """Raise the ServiceError that says "<provider> <text>"."""
        self._fail(Failure(kind, text))

    def fail_with(self, document: Any) -> NoReturn:
        """Raise the ServiceError for `document`, a provider's error object in mid-stream."""
        error = ErrorObject(document)
        self.fail(f"broke off{error.describe(error.kind, self._endpoint.secrets)}", error.kind)

    def _was_stale(self, failure: Failure) -> bool:
        return (
            failure.unanswered
            and self._sending.on_used_connection
            and self._call.watch.cause is None
        )

    def _send(self) -> None:
        settings, time_left_s = self._endpoint.settings, self._call.watch.time_left_s
        # A full answer is rightly silent until it is there, so only the total bounds it; the
        # watchdog keeps the total, and the second on top leaves the verdict to it.
        silence_s = time_left_s + 1
        if self._is_stream:
            silence_s = min(silence_s, settings.read_timeout_s)
        self._sending = in_this_thread.sending = Sending(self._call.watch, silence_s)
        request = requests.PreparedRequest()
        request.method, request.url = "POST", self._endpoint.url
        request.body = self._data
        # A plain dict: requests' own takes 10 us longer to copy and go through.
        headers = {**self._endpoint.headers, "Content-Length": str(len(self._data))}
        request.headers = headers  # type: ignore[assignment]
        try:
            self._response = self._endpoint.adapter.send(
                request,
                stream=True,
                timeout=(settings.connect_timeout_s, silence_s),
                verify=settings.upstream_ca_bundle or True,
                proxies=_proxies(settings),
            ).raw
        except (requests.RequestException, HTTPError) as error:
            raise self._unanswered(error) from None
        answered = self._response.headers
        self._call.provider_request_id = _plain_id(answered.get(self._endpoint.request_id_header))
        if self._response.status != 200:
            with contextlib.closing(self._response):
                raise self._refused()
        if answered.get("Content-Encoding", "identity").lower() != "identity":
            self._response.close()
            raise Failure(errors.PROVIDER_BAD_RESPONSE, "sent a compressed answer unasked")

    def _unanswered(self, error: Exception) -> Failure:
        if isinstance(error, requests.ReadTimeout):
            return self._silent()
        if isinstance(error, requests.ConnectTimeout):
            limit_s = self._endpoint.settings.connect_timeout_s
            text = f"took no connection within {limit_s:g} s"
            return Failure(errors.PROVIDER_TIMEOUT, text, retryable=True)
        if isinstance(error, requests.exceptions.SSLError):
            return Failure(errors.PROVIDER_UNAVAILABLE, "failed the TLS handshake")
        cause = error.args[0] if error.args else None
        if isinstance(cause, ProtocolError) and isinstance(cause.args[-1], TimeoutError):
            return self._silent()  # it took the request's first part only
        if isinstance(cause, ProtocolError) and isinstance(cause.args[-1], OSError):
            text = "closed the connection without an answer"
            return Failure(errors.PROVIDER_UNAVAILABLE, text, retryable=True, unanswered=True)
        if isinstance(error, requests.ConnectionError) and not isinstance(cause, ProtocolError):
            return Failure(errors.PROVIDER_UNAVAILABLE, "cannot be reached", retryable=True)
        return Failure(errors.PROVIDER_BAD_RESPONSE, "sent what is not an HTTP answer")

    def _refused(self) -> Failure:
        status, headers = self._response.status, self._response.headers
        error = ErrorObject(None)
        if status >= 400:  # others mean no words by their body, if they have one at all
            with contextlib.suppress(ServiceError):
                error = ErrorObject(self.parse(self._read_up_to(MAX_ERROR_BYTES)))
        kind = kind_of_status(status)
        text = f"answered {status}{error.describe(kind, self._endpoint.secrets)}"
        if status // 100 == 3:
            text += ", a redirect, which is never followed"
        return Failure(
            kind,
            text,
            retryable=status in RETRYABLE_STATUSES,
            forbidden=headers.get("x-should-retry") == "false" or error.is_out_of_credit,
            wait_s=retry_after_s(headers),
        )

    def _silent(self) -> Failure:
        if not self._is_stream:
            return Failure(errors.PROVIDER_TIMEOUT, self._too_slow())
        limit_s = self._endpoint.settings.read_timeout_s
        return Failure(errors.PROVIDER_TIMEOUT, f"sent nothing for {limit_s:g} s")

    def _too_slow(self) -> str:
        settings = self._endpoint.settings
        if self._is_stream:
            return f"did not end its stream within {settings.stream_timeout_s:g} s"
        return (
            f"did not finish its answer within {settings.total_timeout_s:g} s: ask for a stream "
            '("stream": true) for long answers, or for a shorter one with max_tokens'
        )

    def _events(self, decoder: Decoder, read: bytes) -> Iterator[str]:
        try:
            yield from decoder.feed(read)
        except EventTooLong:
            self.fail("sent an event that is too long")
        except UnicodeDecodeError:
            self.fail("sent an event that is not UTF-8")

    def _read(self) -> bytes:
        """What has come, at least one byte; b"" at the end of the body."""
        try:
            read = self._response.read1(READ_BYTES)
        except ReadTimeoutError:
            self._fail(self._silent())
        except (HTTPError, OSError, ValueError):
            kind = errors.PROVIDER_UNAVAILABLE if self._is_stream else errors.PROVIDER_BAD_RESPONSE
            self.fail("cut its answer off", kind)
        if not read:
            self._raise_if_ended()
        return read

    def _read_up_to(self, limit: int) -> bytes:
        body = bytearray()
        while len(body) < limit and (read := self._read()):
            body += read
        return bytes(body[:limit])

    def _wait_for_retry_s(self, failure: Failure) -> float:
        """Seconds until the next attempt; raises the failure's ServiceError if there is none."""
        retries = self._call.attempts - 1
        wait_s = failure.wait_s
        if wait_s is None:
            wait_s = random.uniform(0.5, 1.0) * min(MAX_WAIT_S, 0.5 * 2**retries)
        may_retry = (
            failure.retryable
            and self._call.watch.cause is None
            and self._call.attempts < MAX_ATTEMPTS
            and wait_s <= min(MAX_WAIT_S, self._call.watch.time_left_s)
            and self._endpoint.budget.take()
        )
        if not may_retry:
            self._fail(failure)
        return wait_s

    def _fail(self, failure: Failure) -> NoReturn:
        self._raise_if_ended()
        text = f"{self._endpoint.name} {failure.text}"
        if self._call.attempts > 1:
            text += f", at the last of {self._call.attempts} attempts"
        if self._call.provider_request_id:
            text += f"; its request id is {self._call.provider_request_id}"
        retry_after = None if failure.wait_s is None else str(math.ceil(failure.wait_s))
        # Three attempts here times three of an SDK would be nine.
        tried_enough = self._call.attempts > 1 and retry_after is None
        raise ServiceError(
            failure.kind,
            text + ".",
            retry_after=retry_after,
            is_final=failure.forbidden or tried_enough,
        ) from None

    def _raise_if_ended(self) -> None:
        match self._call.watch.cause:
            case Cause.CALLER_LEFT:
                raise CallerLeft
            case Cause.STOPPING:
                text = "This process is stopping before the answer was complete; send it again."
                raise ServiceError(errors.STOPPING, text, retry_after="1")
            case Cause.TIME_IS_UP:
                text = f"{self._endpoint.name} {self._too_slow()}."
                raise ServiceError(errors.PROVIDER_TIMEOUT, text)


def _proxies(settings: Settings) -> dict[str, str]:
    proxy = settings.upstream_proxy
    return {"http": proxy, "https": proxy} if proxy else {}


def _plain_id(value: str | None) -> str | None:
    return value if value and _PLAIN_ID.fullmatch(value) else None
