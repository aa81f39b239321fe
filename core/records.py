"""What is written down: one JSON line on standard output for each call, and for each mishap.

Never prompts, answers, tokens, keys or an exception's own words, which may hold any of them.
"""

import contextlib
import json
import os
import random
import socket
import stat
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

# A record stays below 4096 bytes (PIPE_BUF), so that the lines of several workers that share
# one pipe cannot run into each other: somebody else's word may take 6 bytes a unit as JSON.
MAX_NAME_UNITS = 96  # of UTF-16: an emoji is two
_STDOUT = 1


def new_request_id() -> str:
    """32 hexadecimal digits for a request that brings no id of its own: unique, not secret."""
    return random.randbytes(16).hex()


class Output:
    """Where lines go: a descriptor, written to without ever waiting for whoever reads it.

    A line that would have to wait is dropped and counted; the next one that gets through is
    followed by an event `lost_lines` with their number.
    """

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._send: Callable[[bytes], int] | None = None

    def write(self, line: str) -> None:
        """Write a line, newline included, in one piece."""
        self._send = self._send or _unblocked(self._descriptor)
        try:
            self._send(line.encode())
        except OSError:  # full, or nobody is there
            self.lost += 1
            return
        if self.lost:
            lost, self.lost = self.lost, 0
            log("lost_lines", count=lost)


def _unblocked(descriptor: int) -> Callable[[bytes], int]:
    """A way to write that fails where it would wait.

    O_NONBLOCK on the descriptor itself would hold for every process that shares it, a shell for
    one; a pipe or a terminal opened once more has flags of its own.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(descriptor))
        return partial(_send_at_once, sock)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        with contextlib.suppress(OSError):  # not on every system, nor with every owner
            return partial(os.write, os.open(f"/dev/fd/{descriptor}", flags))
    return partial(os.write, descriptor)


def _send_at_once(sock: socket.socket, data: bytes) -> int:
    return sock.send(data, getattr(socket, "MSG_DONTWAIT", 0))


_output = Output(_STDOUT)


# JSON in ASCII: no field can break out of its line or forge another. None holds a circle.
_encode = json.JSONEncoder(check_circular=False).encode


def log(event: str, **fields: Any) -> None:
    """Write one line."""
    _output.write(_encode({"event": event, "time": _now(), **fields}) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_crash(request_id: str, error: BaseException) -> None:
    """Write down the type and place of an error that nobody expected."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = [f"{at.filename.rpartition('/')[2]}:{at.lineno} in {at.name}" for at in frame]
    log("crash", request_id=request_id, type=type(error).__name__, place="".join(place))


def log_refused(request_id: str, code: str, status: int, caller: str | None, **more: Any) -> None:
    """Write down a request that was refused before it was a call, and so has no usage record."""
    log("refused", request_id=request_id, code=code, status=status, caller=short(caller), **more)


# What a process has in hand, each number read from its owner.
GAUGES: dict[str, Callable[[], int]] = {"lost_lines": lambda: _output.lost}


def log_load() -> dict[str, int]:
    """What GAUGES say now, written down where it is not all zero."""
    values = {name: read() for name, read in GAUGES.items()}
    if any(values.values()):
        log("load", **values)
    return values


def short(value: object) -> str | None:
    """`value`, cut to what a record has room for, and made Unicode; None if it is no text."""
    if not isinstance(value, str):
        return None
    cut = value[:MAX_NAME_UNITS]
    if cut.isascii():
        return cut
    units = cut.encode("utf-16-le", "surrogatepass")[: 2 * MAX_NAME_UNITS]
    return units.decode("utf-16-le", "replace")


class Record:
    """The usage record of one call, from its start to the one time it is written.

    Its fields are set as they become known; those never set stay null, for they are not guessed.
    """

    def __init__(self, provider: str, request: dict[str, Any], **fields: str | None) -> None:
        self._started = time.monotonic()
        self.is_written = False
        self.fields: dict[str, Any] = {
            "event": "usage",
            "time": None,
            **fields,
            "brand_id": short(request["brand_id"]),
            "requested_by": short(request["requested_by"]),
            "model": request["model"],
            "answered_model": None,
            "provider": provider,
            "stream": request["stream"],
            "status": None,
            "code": None,
            "finish_reason": None,
            "prompt_tokens": None,
            "completion_tokens": None,
            "total_tokens": None,
            "cached_tokens": None,
            "reasoning_tokens": None,
            "unpriced": None,
            "adjusted": None,
            "attempts": 0,
            "upstream_status": None,
            "cause": None,
            "duration_ms": None,
            "first_token_ms": None,
            "provider_request_id": None,
        }

    def note_text(self) -> None:
        """Called whenever a stream brought text: the first time counts."""
        if self.fields["first_token_ms"] is None:
            self.fields["first_token_ms"] = self._ms()

    def write(self, status: str, code: str | None) -> None:
        """Write it, with how the call ended: ok, error (and its code) or client_disconnect."""
        self.is_written = True
        self.fields.update(time=_now(), status=status, code=code, duration_ms=self._ms())
        _output.write(_encode(self.fields) + "\n")

    def _ms(self) -> float:
        return round((time.monotonic() - self._started) * 1000, 1)
