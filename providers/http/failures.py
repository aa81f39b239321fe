"""What can go wrong between sending a request and the end of its answer."""

import errno
import socket
import ssl
from dataclasses import dataclass, replace
from http.client import HTTPException

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


_DOWN, _LATE = errors.PROVIDER_UNAVAILABLE, errors.PROVIDER_TIMEOUT
_BAD = errors.PROVIDER_BAD_RESPONSE
_ANY = (HTTPError, HTTPException, OSError, ValueError)

# What the libraries' exceptions mean, the first row that fits; `{:g}` is the limit that held, in
# seconds.
Table = tuple[tuple[type[Exception] | tuple[type[Exception], ...], Failure], ...]
# fmt: off
CONNECTING: Table = (
    (TimeoutError, Failure(
        _LATE, "took no connection within {:g} s", "connect_timeout", is_retryable=True)),
    ((socket.gaierror, UnicodeError), Failure(
        _DOWN, "cannot be reached: its name leads nowhere", "dns", is_retryable=True)),
    (ssl.SSLError, Failure(_DOWN, "failed the TLS handshake", "tls")),
    (ConnectionRefusedError, Failure(
        _DOWN, "cannot be reached: it refuses connections", "refused", is_retryable=True)),
    (_ANY, Failure(_DOWN, "cannot be reached", "unreachable", is_retryable=True)),
)
_SILENT = ((ReadTimeoutError, TimeoutError), Failure(
    _LATE, "sent nothing for {:g} s", "read_timeout"))
WAITING: Table = (
    _SILENT,
    (OSError, Failure(
        _DOWN, "closed the connection without an answer", "cut",
        is_retryable=True, is_unanswered=True)),
    (_ANY, Failure(_BAD, "sent what is not an HTTP answer", "bad_answer")),
)
READING_STREAM: Table = (_SILENT, (_ANY, Failure(_DOWN, "cut its answer off", "cut")))
READING_DOCUMENT: Table = (_SILENT, (_ANY, Failure(_BAD, "cut its answer off", "cut")))
# fmt: on
BEFORE_SENDING = frozenset(failure.cause for _classes, failure in CONNECTING)


def failure_of(error: Exception, table: Table, limit_s: float) -> Exception:
    """The Failure that the table says an exception of the libraries is; other errors themselves."""
    if isinstance(error, Failure):
        return error
    if _is_lack(error) or _is_lack(error.__cause__):
        text = "has no file descriptors, threads or memory left"
        return Failure(errors.OVERLOADED, text, "local", wait_s=1.0)
    for classes, failure in table:
        if isinstance(error, classes):
            return replace(failure, text=failure.text.format(limit_s))
    return error


def _is_lack(error: BaseException | None) -> bool:
    # (Python says RuntimeError where the system gives no thread.)
    lacks = isinstance(error, OSError) and error.errno in _LACKING
    return lacks or isinstance(error, RuntimeError | MemoryError)


def bad_answer(text: str) -> Failure:
    """The failure of an answer that is none."""
    return Failure(_BAD, text, "bad_answer")
