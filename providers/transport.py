"""The one HTTP door to the providers: what is sent, what failed and why, what is tried again."""

import contextlib
import json
import math
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, Self, TypeVar

import requests
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.util.retry import Retry

import errors
from errors import CallerLeft, Kind, ServiceError
from providers.base import Call, Event, EventStream
from providers.connections import Adapter, Sending, in_this_thread
from providers.sse import Decoder, EventTooLong
from settings import Settings
from watchdog import Cause

MAX_ATTEMPTS = 3
# A longer wait is the caller's to decide on: SDKs honour the Retry-After that is passed on.
MAX_WAIT_S = 2.0
MAX_ERROR_BYTES = 64_000
MAX_QUOTE_CHARACTERS = 300
READ_BYTES = 65_536
# The end of a stream's body follows its end mark at once, or the connection is not worth keeping.
END_OF_BODY_S = 0.1

_RETRYABLE = frozenset({408, 409, 429, *range(500, 600)})
_KINDS_BY_STATUS = {
    401: errors.PROVIDER_AUTH_FAILED,
    402: errors.PROVIDER_AUTH_FAILED,
    403: errors.PROVIDER_AUTH_FAILED,
    404: errors.MODEL_NOT_AVAILABLE,
    408: errors.PROVIDER_TIMEOUT,
    409: errors.PROVIDER_UNAVAILABLE,
    429: errors.PROVIDER_RATE_LIMITED,
}
_KINDS_BY_HUNDRED = {
    4: errors.PROVIDER_REJECTED_REQUEST,
    5: errors.PROVIDER_UNAVAILABLE,
}
# Both vendors' error codes and types: all that an error in mid-stream has to tell it by.
_KINDS_BY_WORD = {
    "insufficient_quota": errors.PROVIDER_RATE_LIMITED,
    "rate_limit_exceeded": errors.PROVIDER_RATE_LIMITED,
    "rate_limit_error": errors.PROVIDER_RATE_LIMITED,
    "model_not_found": errors.MODEL_NOT_AVAILABLE,
    "not_found_error": errors.MODEL_NOT_AVAILABLE,
    "invalid_api_key": errors.PROVIDER_AUTH_FAILED,
    "authentication_error": errors.PROVIDER_AUTH_FAILED,
    "billing_error": errors.PROVIDER_AUTH_FAILED,
    "permission_error": errors.PROVIDER_AUTH_FAILED,
    "context_length_exceeded": errors.PROVIDER_REJECTED_REQUEST,
    "invalid_request_error": errors.PROVIDER_REJECTED_REQUEST,
    "request_too_large": errors.PROVIDER_REJECTED_REQUEST,
    "timeout_error": errors.PROVIDER_TIMEOUT,
    "overloaded_error": errors.PROVIDER_UNAVAILABLE,
    "api_error": errors.PROVIDER_UNAVAILABLE,
    "server_error": errors.PROVIDER_UNAVAILABLE,
}
# Only where the caller can do something about the cause do the provider's own words help.
_QUOTED = (errors.PROVIDER_REJECTED_REQUEST, errors.MODEL_NOT_AVAILABLE)
_KEY_LIKE = re.compile(r"\b(?:sk-|bearer\s)[^\s\"',;]+", re.IGNORECASE)
_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class RetryBudget:
    """The retries that a process may make: one for every ten calls, and one a second.

    Without it, an outage would triple the load on a provider that is down already.
    """

    SAVED_AT_MOST = 10.0

    def __init__(self) -> None:
        self._saved = self.SAVED_AT_MOST
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def note_call(self) -> None:
        with self._lock:
            self._saved = min(self.SAVED_AT_MOST, self._saved + 0.1)

    def take(self) -> bool:
        """Whether a retry may be made; if so, it is taken from the budget."""
        with self._lock:
            now = time.monotonic()
            self._saved = min(self.SAVED_AT_MOST, self._saved + now - self._at)
            self._at = now
            may = self._saved >= 1
            self._saved -= may
            return may


class _Failure(Exception):
    """An attempt that failed: what to tell the caller, and what speaks for another attempt."""

    def __init__(
        self,
        kind: Kind,
        text: str,
        *,
        retryable: bool = False,
        forbidden: bool = False,
        unanswered: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.retryable = retryable and not forbidden
        self.forbidden = forbidden
        self.unanswered = unanswered
        self.wait_s = wait_s


T = TypeVar("T")
# What reading a document of another shape than expected raises.
WRONG_SHAPE = (LookupError, TypeError, AttributeError)


class StreamReader(ABC):
    """One provider's stream, turned into our events one by one; it keeps what is to come last."""

    END_MARK: str
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
        self.has_key = None not in headers.values()
        self.budget = RetryBudget()
        # The adapter itself and no Session: no cookies, no .netrc, no proxy variables, and no
        # redirects, which would carry prompt and key to another host (requests strips
        # Authorization there, but not x-api-key).
        self.adapter = Adapter(pool_maxsize=settings.threads)
        self.request = requests.Request(
            "POST",
            url,
            headers={
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "chat-completions-gateway",
                **headers,
            },
        ).prepare()

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
                except WRONG_SHAPE:
                    yield from filter(None, [events])
                    exchange.fail("sent an event of an unknown shape")
                except ServiceError:
                    yield from filter(None, [events])  # what came before is the caller's
                    raise
                yield from filter(None, [events])
                if reader.is_done:
                    exchange.finish()
                    return
            exchange.fail(f"ended its stream without {reader.END_MARK}")


class Exchange:
    """A request and its 200 answer, from `with`, which sends it, to the end of the block.

    Iterating gives the data of its server-sent events, a list for each read that completes any.
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
            self._call.attempts += 1
            try:
                self._send()
                return self
            except _Failure as failure:
                if may_reconnect and failure.unanswered and self._sending.on_used_connection:
                    # The provider closed it while it was idle (urllib3 #944): not a failed
                    # request. The pool may hold more such connections, so it is emptied.
                    may_reconnect = False
                    self._call.attempts -= 1
                    self._endpoint.adapter.close()
                else:
                    self._call.watch.sleep(self._wait_for_retry_s(failure))

    def __exit__(self, *_exc: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[list[str]]:
        decoder = Decoder()
        while read := self._read():
            try:
                events = decoder.feed(read)
            except EventTooLong:
                self.fail("sent an event that is too long")
            except UnicodeDecodeError:
                self.fail("sent an event that is not UTF-8")
            if events:
                yield events

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
        if self._sending.sock is not None:
            with contextlib.suppress(HTTPError, OSError):
                self._sending.sock.settimeout(END_OF_BODY_S)
                self._response.read1(1)

    def fail(self, text: str, kind: Kind = errors.PROVIDER_BAD_RESPONSE) -> NoReturn:
        """Raise the ServiceError that says "<provider> <text>"."""
        self._fail(_Failure(kind, text))

    def fail_with(self, document: Any) -> NoReturn:
        """Raise the ServiceError for `document`, a provider's error object in mid-stream."""
        words, message = _error_of(document)
        kind = _KINDS_BY_WORD[words[0]] if words else errors.PROVIDER_UNAVAILABLE
        self.fail("broke off" + _in_brackets(words) + self._quote(kind, message), kind)

    def _send(self) -> None:
        settings, time_left_s = self._endpoint.settings, self._call.watch.time_left_s
        # A full answer is rightly silent until it is there, so only the total bounds it; the
        # watchdog keeps the total, and the second on top leaves the verdict to it.
        silence_s = time_left_s + 1
        if self._is_stream:
            silence_s = min(silence_s, settings.read_timeout_s)
        self._sending = in_this_thread.sending = Sending(self._call.watch, silence_s)
        request = self._endpoint.request.copy()
        request.body = self._data
        request.headers["Content-Length"] = str(len(self._data))
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
        headers = self._response.headers
        self._call.provider_request_id = _plain_id(headers.get(self._endpoint.request_id_header))
        if self._response.status != 200:
            with contextlib.closing(self._response):
                raise self._refused()
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            self._response.close()
            raise _Failure(errors.PROVIDER_BAD_RESPONSE, "sent a compressed answer unasked")

    def _unanswered(self, error: Exception) -> _Failure:
        if isinstance(error, requests.ReadTimeout):
            return self._silent()
        if isinstance(error, requests.ConnectTimeout):
            limit_s = self._endpoint.settings.connect_timeout_s
            text = f"took no connection within {limit_s:g} s"
            return _Failure(errors.PROVIDER_TIMEOUT, text, retryable=True)
        if isinstance(error, requests.exceptions.SSLError):
            return _Failure(errors.PROVIDER_UNAVAILABLE, "failed the TLS handshake")
        cause = error.args[0] if error.args else None
        if isinstance(cause, ProtocolError) and isinstance(cause.args[-1], OSError):
            text = "closed the connection without an answer"
            return _Failure(errors.PROVIDER_UNAVAILABLE, text, retryable=True, unanswered=True)
        if isinstance(error, requests.ConnectionError) and not isinstance(cause, ProtocolError):
            return _Failure(errors.PROVIDER_UNAVAILABLE, "cannot be reached", retryable=True)
        return _Failure(errors.PROVIDER_BAD_RESPONSE, "sent what is not an HTTP answer")

    def _refused(self) -> _Failure:
        status, headers = self._response.status, self._response.headers
        words: list[str] = []
        message = ""
        with contextlib.suppress(ServiceError):
            words, message = _error_of(self.parse(self._read_up_to(MAX_ERROR_BYTES)))
        kind = _KINDS_BY_STATUS.get(
            status, _KINDS_BY_HUNDRED.get(status // 100, errors.PROVIDER_BAD_RESPONSE)
        )
        note = " with a redirect, which is never followed" if status // 100 == 3 else ""
        return _Failure(
            kind,
            f"answered {status}{_in_brackets(words)}{note}{self._quote(kind, message)}",
            retryable=status in _RETRYABLE,
            forbidden=headers.get("x-should-retry") == "false" or "insufficient_quota" in words,
            wait_s=_retry_after_s(headers),
        )

    def _silent(self) -> _Failure:
        if not self._is_stream:
            return _Failure(errors.PROVIDER_TIMEOUT, self._too_slow())
        limit_s = self._endpoint.settings.read_timeout_s
        return _Failure(errors.PROVIDER_TIMEOUT, f"sent nothing for {limit_s:g} s")

    def _too_slow(self) -> str:
        settings = self._endpoint.settings
        if self._is_stream:
            return f"did not end its stream within {settings.stream_timeout_s:g} s"
        return (
            f"did not finish its answer within {settings.total_timeout_s:g} s: ask for a stream "
            '("stream": true) for long answers, or for a shorter one with max_tokens'
        )

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

    def _wait_for_retry_s(self, failure: _Failure) -> float:
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

    def _fail(self, failure: _Failure) -> NoReturn:
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

    def _quote(self, kind: Kind, message: str) -> str:
        """A provider's message on one line, without anything that looks like a key."""
        if kind not in _QUOTED or not message:
            return ""
        settings = self._endpoint.settings
        for secret in filter(None, (settings.anthropic_api_key, settings.openai_api_key)):
            message = message.replace(secret, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        return f": {_KEY_LIKE.sub('[key]', line)[:MAX_QUOTE_CHARACTERS]}"


def _proxies(settings: Settings) -> dict[str, str]:
    proxy = settings.upstream_proxy
    return {"http": proxy, "https": proxy} if proxy else {}


def _error_of(document: Any) -> tuple[list[str], str]:
    """The known words (code, type) and the message of a provider's error object."""
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return [], ""
    said = (error.get("code"), error.get("type"))
    words = [word for word in said if isinstance(word, str) and word in _KINDS_BY_WORD]
    message = error.get("message")
    return words, message if isinstance(message, str) else ""


def _in_brackets(words: list[str]) -> str:
    return f" ({words[0]})" if words else ""


def _plain_id(value: str | None) -> str | None:
    return value if value and _PLAIN_ID.fullmatch(value) else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the provider says, in OpenAI's milliseconds or the standard's forms."""
    try:
        if "retry-after-ms" in headers:
            wait_s = float(headers["retry-after-ms"]) / 1000
            return wait_s if 0 <= wait_s < math.inf else None
        if "Retry-After" in headers:
            return Retry().parse_retry_after(headers["Retry-After"])
    except (HTTPError, ValueError, OverflowError):  # neither form
        pass
    return None
