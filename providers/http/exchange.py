"""One request to a provider and what comes back: sent, and read as it comes."""

import contextlib
import io
import json
from collections.abc import Iterable
from http.client import HTTPException
from typing import Any, Self

import requests
from urllib3 import BaseHTTPResponse

from core.settings import Settings
from providers.base import Call, Vendor
from providers.http.connections import Adapter, Sending, in_this_thread
from providers.http.envelopes import plain_id
from providers.http.failures import (
    READING_DOCUMENT,
    READING_STREAM,
    Failure,
    bad_answer,
    failure_of,
)
from providers.http.refusals import refusal
from providers.http.response import ProviderResponse

MAX_ERROR_BYTES = 64_000
READ_BYTES = io.DEFAULT_BUFFER_SIZE
# The end of a stream's body follows its end mark at once, or the connection is not worth keeping.
END_OF_BODY_S = 0.1

# What was parsed from JSON holds no circles; looking for them takes a seventh of the time.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


class Endpoint:
    """A vendor's address, and the connections to it."""

    def __init__(self, vendor: Vendor, settings: Settings, secrets: Iterable[str]) -> None:
        self.vendor = vendor
        self.settings = settings
        self.secrets = tuple(secrets)
        # The adapter itself and no Session: no cookies, no .netrc, no proxy variables, and no
        # redirects, which would carry prompt and key to another host (requests strips
        # Authorization there, but not x-api-key).
        self.adapter = Adapter(pool_maxsize=settings.threads)
        proxy = settings.upstream_proxy
        self.proxies = {"http": proxy, "https": proxy} if proxy else {}
        self.headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "chat-completions-gateway",
            **vendor.headers,
        }


class Exchange:
    """One attempt of a call; a context manager that closes the answer. Raises Failure."""

    _response: BaseHTTPResponse = None  # type: ignore[assignment]  # until send()
    _body: BaseHTTPResponse | ProviderResponse

    def __init__(self, endpoint: Endpoint, call: Call, *, is_stream: bool, is_new: bool) -> None:
        self._endpoint = endpoint
        self._call = call
        self._table = READING_STREAM if is_stream else READING_DOCUMENT
        settings, time_left_s = endpoint.settings, call.watch.time_left_s
        # A full answer is rightly silent until it is there, so only the total bounds it; the
        # watchdog keeps the total, and the second on top leaves the verdict to it.
        silence_s = time_left_s + 1
        if is_stream:
            silence_s = min(silence_s, settings.read_timeout_s)
        self._sending = Sending(call.watch, settings.connect_timeout_s, silence_s, is_new)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back where the body was read to its end, else close it."""
        if self._response is None:
            return
        if self._response.closed:
            self._response.release_conn()
        else:
            self._response.close()

    def send(self, body: dict[str, Any] | None, url: str | None = None) -> None:
        """POST the body, or GET where there is none, and read the head of the answer, a 200."""
        call, endpoint, vendor = self._call, self._endpoint, self._endpoint.vendor
        call.attempts += 1
        call.provider_request_id = call.upstream_status = call.cause = None
        # A plain dict: requests' own takes 10 us longer to copy and go through.
        headers = dict(endpoint.headers)
        if vendor.client_request_id_header and call.request_id:
            headers[vendor.client_request_id_header] = call.request_id
        request = requests.PreparedRequest()
        request.method, request.url = "GET" if body is None else "POST", url or vendor.url
        if body is not None:
            request.body = _encode(body).encode()
            headers["Content-Length"] = str(len(request.body))
        request.headers = headers  # type: ignore[assignment]
        in_this_thread.sending = self._sending
        self._response = endpoint.adapter.send(
            request,
            stream=True,
            timeout=(self._sending.connect_timeout_s, self._sending.read_timeout_s),
            verify=endpoint.settings.upstream_ca_bundle or True,
            proxies=endpoint.proxies,
        ).raw
        # urllib3 enters three context managers for each read, a tenth of a stream's CPU. (Tests'
        # `responses`, which takes the place of the connections, has an answer of urllib3's alone.)
        self._body = self._sending.body or self._response
        answered = self._response.headers
        call.upstream_status = self._response.status
        call.provider_request_id = plain_id(answered.get(vendor.request_id_header))
        if self._response.status != 200:
            raise self._refused(self._response.status)
        if answered.get("Content-Encoding", "identity").lower() != "identity":
            raise bad_answer("sent a compressed answer unasked")

    def read(self) -> bytes:
        """What has come, at least one byte; b"" at the end of the body."""
        try:
            return self._body.read1(READ_BYTES)
        except Exception as error:
            self._response.close()
            raise failure_of(error, self._table, self._sending.read_timeout_s) from None

    def read_document(self, begun: bytes = b"") -> Any:
        """The whole body, parsed, from what was read of it on."""
        limit = self._endpoint.settings.max_answer_bytes
        body = self._read_up_to(limit + 1, begun)
        if len(body) > limit:
            raise bad_answer(f"sent an answer of more than {limit} bytes")
        return parse(body)

    def finish(self) -> None:
        """Take the end of the body that follows the last event, to keep the connection."""
        sock = self._sending.sock
        if sock is not None and not self._response.closed:
            try:
                sock.settimeout(END_OF_BODY_S)
                self._body.read1(READ_BYTES)
            except (HTTPException, OSError):
                self._response.close()  # also where http.client takes a faulty end for one

    def was_stale(self, failure: Failure) -> bool:
        """Whether the provider had closed the connection while nobody used it."""
        return (
            failure.is_unanswered
            and self._sending.is_on_used_connection
            and self._call.watch.cause is None
        )

    def refusal(self, document: Any, status: int | None = None) -> Failure:
        """The failure that an error document is; without a status, it came with a 200."""
        failure = refusal(document, status, self._response.headers, self._endpoint.secrets)
        call = self._call
        call.provider_request_id = call.provider_request_id or failure.request_id
        return failure

    def _refused(self, status: int) -> Failure:
        document = None
        if status >= 400:  # others mean no words by their body, if they have one at all
            with contextlib.suppress(Failure):
                document = parse(self._read_up_to(MAX_ERROR_BYTES))
        return self.refusal(document, status)

    def _read_up_to(self, limit: int, begun: bytes = b"") -> bytes:
        body = bytearray(begun)
        while len(body) < limit and not self._response.closed and (read := self.read()):
            body += read
        return bytes(body[:limit])


def parse(text: str | bytes) -> Any:
    """`text` as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise bad_answer("sent what is not JSON") from None
