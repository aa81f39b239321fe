"""Where limits are counted, and what happens while that place is out of reach.

A store that fails, or does not answer soon, is left alone for a while: nothing it does can fail
a call, or make one wait long.
"""

import math
import os
import threading
import time
from collections import deque
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


class Look:
    """What waits for a store: counters to be added to, if none of them is full."""

    __slots__ = ("counters", "full", "is_done", "now", "since")

    def __init__(self, counters: list[Counter], now: float) -> None:
        self.counters = counters
        self.now = now
        self.since = time.monotonic()
        self.is_done = False
        self.full: Counter | None = None


class Backend(Protocol):
    """An open connection to a store, for one thread at a time."""

    patience_s: float

    def take(self, looks: list[Look]) -> None:
        """Have each look's counters added to, or the first of them that is full set."""

    def known(self, now: float) -> dict[tuple[int, str], int]:
        """What has been counted, by the end and key of its counter."""

    def delete(self, ends: int, key: str) -> None:
        """Have a counter count from nothing."""


class Store:
    """A store that may be out of reach: then nothing is counted, and nothing is full.

    One thread at a time asks for all that wait: a process needs one connection however busy it is,
    a round trip is made once for all of them, and they pass together where it fails.
    """

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
        except Exception as error:  # as in _answer_all()
            self._lose(reason_of(error))
        self._has_tried.set()

    def take(self, counters: list[Counter], now: float) -> Counter | None:
        """The first that is full, and nothing is added; or None, and all of them are added to.

        Where the store is out of reach, None.
        """
        if self._backend is None:
            self._begin_to_connect()
            # No call waits for a store that has been lost.
            if self._gone_since is None and not self._has_tried.wait(PATIENCE_S):
                self._tell_gone("no connection yet")
        look = Look(counters, now)
        self._waiting.append(look)
        with self._turn:
            if not look.is_done:
                self._answer_all()
        return look.full

    def _answer_all(self) -> None:
        looks = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            if self._backend is not None:
                self._backend.take(looks)
                self._tell_back()
        except Exception as error:  # whatever it is, it must not fail the call
            self._lose(reason_of(error))
        finally:
            for look in looks:
                look.is_done = True

    def _forget(self) -> None:
        self._turn = threading.RLock()
        self._waiting: deque[Look] = deque()
        self._backend = None
        self._has_tried = threading.Event()
        self._ask_again_at = 0.0
        self._gone_since: float | None = None

    def _start_again(self) -> None:
        # A connection must not be used, nor even closed, by two processes: SQLite's locks and
        # a server's answers belong to the parent.
        self._parent_s = self._backend
        self._forget()
        self._begin_to_connect()

    def _begin_to_connect(self) -> None:
        with self._turn:
            if self._backend is None and time.monotonic() >= self._ask_again_at:
                self._ask_again_at = math.inf  # not while it is being asked
                # In a thread, for looking up a name has no time limit.
                try:
                    threading.Thread(target=self.open, daemon=True).start()
                except RuntimeError:  # the system gives no more threads
                    self._lose("no connection yet")

    def _lose(self, reason: str) -> None:
        with self._turn:
            self._backend = None
            self._ask_again_at = time.monotonic() + ASK_AGAIN_S
            self._tell_gone(reason)

    def _tell_gone(self, reason: str) -> None:
        with self._turn:
            if self._gone_since is None:
                self._gone_since = time.monotonic()
                effect = "calls pass uncounted"
                records.log("limits_store", state="gone", reason=reason, effect=effect)

    def _tell_back(self) -> None:
        if self._gone_since is not None:
            after_s = round(time.monotonic() - self._gone_since)
            self._gone_since = None
            records.log("limits_store", state="back", after_s=after_s)


def reason_of(error: Exception) -> str:
    """What is wrong, in words that hold no secret: SQLite's are fixed, others may quote a URL."""
    return str(error) if type(error).__module__ == "sqlite3" else type(error).__name__
