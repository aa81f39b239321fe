"""What is written down: one JSON line on standard output for each call, and for each mishap.

Never prompts, answers, tokens, keys or an exception's own words, which may hold any of them.
"""

import contextlib
import json
import os
import random
import time
import traceback
from datetime import UTC, datetime
from typing import Any

# A record stays below 4096 bytes (PIPE_BUF), so that the lines of several workers that share
# one pipe cannot run into each other: somebody else's word may take 6 bytes a unit as JSON.
MAX_NAME_UNITS = 96  # of UTF-16: an emoji is two
_STDOUT = 1


def new_request_id() -> str:
    """32 hexadecimal digits for a request that brings no id of its own: unique, not secret."""
    return random.randbytes(16).hex()


def log(event: str, **fields: Any) -> None:
    """Write one line. JSON in ASCII: no field can break out of it or forge another."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    _write(json.dumps({"event": event, "time": now, **fields}) + "\n")


def log_crash(request_id: str, error: BaseException) -> None:
    """Write down the type and place of an error that nobody expected."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = [f"{at.filename.rpartition('/')[2]}:{at.lineno} in {at.name}" for at in frame]
    log("crash", request_id=request_id, type=type(error).__name__, place="".join(place))


def _write(line: str) -> None:
    # In one piece, and past the locks and buffers of logging. That nobody takes it fails no call.
    with contextlib.suppress(OSError):
        os.write(_STDOUT, line.encode())


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    short = value[:MAX_NAME_UNITS]
    if short.isascii():
        return short
    units = short.encode("utf-16-le", "surrogatepass")[: 2 * MAX_NAME_UNITS]
    return units.decode("utf-16-le", "replace")


class Record:
    """The usage record of one call, from its start to the one time it is written."""

    def __init__(
        self, request_id: str, caller: str, provider: str, request: dict[str, Any]
    ) -> None:
        self.request_id = request_id
        self._started = time.monotonic()
        self._is_written = False
        self._fields: dict[str, Any] = {
            "request_id": request_id,
            "caller": _short(caller),
            "brand_id": _short(request["brand_id"]),
            "requested_by": _short(request["requested_by"]),
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
            "attempts": 0,
            "duration_ms": None,
            "first_token_ms": None,
            "provider_request_id": None,
        }

    def note_text(self) -> None:
        """Called whenever a stream brought text: the first time counts."""
        if self._fields["first_token_ms"] is None:
            self._fields["first_token_ms"] = self._ms()

    def note(self, **fields: Any) -> None:
        """Set fields of the record; those never set stay null, for they are never guessed."""
        self._fields |= {name: _short(value) for name, value in fields.items()}

    def write(self, status: str, code: str | None = None) -> None:
        """Write it, the first time only; `status` is ok, error or client_disconnect."""
        if not self._is_written:
            self._is_written = True
            self.note(status=status, code=code, duration_ms=self._ms())
            log("usage", **self._fields)

    def _ms(self) -> float:
        return round((time.monotonic() - self._started) * 1000, 1)
