"""Where limits are counted, and what happens while that place is out of reach.

A store that fails, or does not answer soon, is left alone for a while: nothing it does can fail
a call, or make one wait long.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from core import records

# How long a store may keep a call waiting, and for how long it is then left alone.
PATIENCE_S = 0.035
ASK_AGAIN_S = 5.0
# Counts outlive their window, for clocks differ and may be set back.
KEPT_S = 3600
UNLIMITED = 2**53 - 1  # the largest number that Lua's, which are floats, can count to


class Counter(NamedTuple):
    """What one limit counts in one window, which ends at a time in seconds since 1970."""

    ends: int
    key: str
    most: int = UNLIMITED
    adds: int = 0


class Backend(Protocol):
    """An open connection to a store."""

    patience_s: float

    def take(self, counters: list[Counter], now: float) -> int | None:
        """None, having added to all of them; or, having added nothing, the first that is full."""

    def known(self, now: float) -> dict[tuple[int, str], int]:
        """What has been counted, by the end and key of its counter."""

    def delete(self, counters: list[Counter]) -> None:
        """Have them count from nothing."""


class Store:
    """A store that may be out of reach: then nothing is counted, and nothing is full."""

    def __init__(self, connect: Callable[[], Backend]) -> None:
        self.connect = connect
        self._backend: Backend | None = None
        self._forget()
        # A worker connects as soon as it is there, so that its first calls need not wait.
        os.register_at_fork(after_in_child=self._start_again)

    def open(self) -> None:
        """Connect now, however long it takes; a line says if it cannot be done."""
        try:
            self._backend = self.connect()
        except Exception as error:  # as in take()
            self._tell_gone(reason_of(error))

    def take(self, counters: list[Counter], now: float) -> int | None:
        """As Backend.take(); None, too, where the store is out of reach."""
        backend = self._backend or self._first_connection()
        if backend is None:
            return None
        try:
            full = backend.take(counters, now)
        except Exception as error:  # whatever it is, it must not fail the call
            self._lose(backend, error)
            return None
        # An answer that was on its way when another call lost the connection brings nothing back.
        if self._gone_since is not None and self._backend is backend:
            self._tell_back()
        return full

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._backend = None
        self._connecting: threading.Thread | None = None
        self._ask_again_at = 0.0
        self._gone_since: float | None = None

    def _start_again(self) -> None:
        # A connection must not be used, nor even closed, by two processes: SQLite's locks and
        # a server's answers belong to the parent.
        self._parent_s = self._backend
        self._forget()
        self._begin_to_connect()

    def _first_connection(self) -> Backend | None:
        """The connection, if it is there soon; no call waits for a store that has been lost."""
        self._begin_to_connect()
        connecting = self._connecting
        if self._gone_since is None:
            if connecting is not None:
                connecting.join(PATIENCE_S)
            if self._backend is None:
                self._tell_gone("no connection yet")
        return self._backend

    def _begin_to_connect(self) -> None:
        with self._lock:
            busy = self._connecting is not None and self._connecting.is_alive()
            if self._backend is None and not busy and time.monotonic() >= self._ask_again_at:
                self._ask_again_at = time.monotonic() + ASK_AGAIN_S
                # In a thread, for looking up a name has no time limit.
                thread = threading.Thread(target=self.open, daemon=True)
                with contextlib.suppress(RuntimeError):  # the system gives no more threads
                    thread.start()
                    self._connecting = thread

    def _lose(self, backend: Backend, error: Exception) -> None:
        with self._lock:
            if self._backend is not backend:
                return  # another call has said so
            self._backend = None
            self._ask_again_at = time.monotonic() + ASK_AGAIN_S
        self._tell_gone(reason_of(error))

    def _tell_gone(self, reason: str) -> None:
        with self._lock:
            first, self._gone_since = self._gone_since is None, self._gone_since or time.monotonic()
        if first:
            records.log("limits_store", state="gone", reason=reason, effect="calls pass uncounted")

    def _tell_back(self) -> None:
        with self._lock:
            gone_since, self._gone_since = self._gone_since, None
        if gone_since is not None:
            records.log("limits_store", state="back", after_s=round(time.monotonic() - gone_since))


def reason_of(error: Exception) -> str:
    """What is wrong, in words that hold no secret: SQLite's are fixed, others may quote a URL."""
    return str(error) if type(error).__module__ == "sqlite3" else type(error).__name__
