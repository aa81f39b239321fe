"""What can go wrong between sending a request and the end of its answer."""

import errno
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from urllib3.exceptions import HTTPError, ReadTimeoutError

from core import errors
from core.errors import Kind

_LACKING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(eq=False)
class Failure(Exception):
    """An attempt that failed: what to tell the caller, and what speaks for another attempt.

    `text` goes on from the provider's name; `cause` is the record's word for it.
    """

    kind: Kind
    text: str
    cause: str
    is_retryable: bool = False
    is_final: bool = False  # the provider says so
    is_unanswered: bool = False  # the connection was closed before a byte of an answer came
    wait_s: float | None = None  # as the provider says
    request_id: str | None = None  # in its words
    # What a refusal of the request's content says: the parameter that it is about, and its words.
    param: str | None = None
    words: str | None = None


# What a library's exception means, the first row that fits: its classes, and the failure.
# `{:g}` is the limit that held, in seconds.
Table = tuple[tuple[type[Exception] | tuple[type[Exception], ...], Mapping[str, Any]], ...]


def _row(kind: Kind, cause: str, text: str, **more: Any) -> Mapping[str, Any]:
    return {"kind": kind, "cause": cause, "text": text, **more}


_SILENT = _row(errors.PROVIDER_TIMEOUT, "read_timeout", "sent nothing for {:g} s")
_DOWN = errors.PROVIDER_UNAVAILABLE
CONNECTING: Table = (
    (
        TimeoutError,
        _row(
            errors.PROVIDER_TIMEOUT,
            "connect_timeout",
            "took no connection within {:g} s",
            is_retryable=True,
        ),
    ),
    (
        (socket.gaierror, UnicodeError),
        _row(_DOWN, "dns", "cannot be reached: its name leads nowhere", is_retryable=True),
    ),
    (ssl.SSLError, _row(_DOWN, "tls", "failed the TLS handshake")),
    (
        ConnectionRefusedError,
        _row(_DOWN, "refused", "cannot be reached: it refuses connections", is_retryable=True),
    ),
    ((OSError, HTTPError), _row(_DOWN, "unreachable", "cannot be reached", is_retryable=True)),
)
BEFORE_SENDING = frozenset(failure["cause"] for _classes, failure in CONNECTING)
WAITING: Table = (
    (TimeoutError, _SILENT),
    (
        OSError,
        _row(
            _DOWN,
            "cut",
            "closed the connection without an answer",
            is_retryable=True,
            is_unanswered=True,
        ),
    ),
    (
        (HTTPException, HTTPError, ValueError),
        _row(errors.PROVIDER_BAD_RESPONSE, "bad_answer", "sent what is not an HTTP answer"),
    ),
)
_CUT = (HTTPError, HTTPException, OSError, ValueError)
_SILENT_READ = ((ReadTimeoutError, TimeoutError), _SILENT)
READING_STREAM: Table = (_SILENT_READ, (_CUT, _row(_DOWN, "cut", "cut its answer off")))
READING_DOCUMENT: Table = (
    _SILENT_READ,
    (_CUT, _row(errors.PROVIDER_BAD_RESPONSE, "cut", "cut its answer off")),
)


class raised_as:  # noqa: N801 - it reads as a word in a `with`
    """What the libraries raise inside comes out as the Failure that the table says it is."""

    def __init__(self, table: Table, limit_s: float) -> None:
        self._table = table
        self._limit_s = limit_s

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if error is None or isinstance(error, Failure):
            return
        if _is_lack(error) or _is_lack(error.__cause__):
            text = "has no file descriptors or memory left to reach a provider"
            raise Failure(errors.OVERLOADED, text, "local", wait_s=1.0) from None
        for classes, failure in self._table:
            if isinstance(error, classes):
                fields = {**failure, "text": failure["text"].format(self._limit_s)}
                raise Failure(**fields) from None


def _is_lack(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in _LACKING


def bad_answer(text: str) -> Failure:
    """The failure of an answer that is none."""
    return Failure(errors.PROVIDER_BAD_RESPONSE, text, "bad_answer")
