"""One thread a process that cuts short what would otherwise wait too long.

A blocking read cannot look at a clock or at another socket, so this thread does it for all of
them: it ends a call when its time is up, when its caller has left, or when the process stops,
by shutting down the socket that the call's own thread is waiting for. That thread then wakes
with an error and finds the reason in `Watch.cause`.
"""

import contextlib
import enum
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

INTERVAL_S = 0.2
# How long an ended call may take to say goodbye before its caller's socket is shut down as
# well: a caller who stopped reading blocks our write for ever (gunicorn #3155).
GOODBYE_S = 2.0
# Linux tells of a half-closed peer with this event; elsewhere only a full hang-up is seen.
_HANG_UP = getattr(select, "POLLRDHUP", 0)


class Cause(enum.Enum):
    """Why a call was ended before it was done."""

    TIME_IS_UP = enum.auto()
    CALLER_LEFT = enum.auto()
    STOPPING = enum.auto()


class Watch:
    """One call under watch, from `watch()` to `close()`; a context manager."""

    __slots__ = ("_closed", "_cut", "_dog", "_ended_at", "caller", "cause", "deadline")

    def __init__(self, dog: "Watchdog", caller: socket.socket | None, deadline: float) -> None:
        self.caller = caller
        self.deadline = deadline
        self.cause: Cause | None = None
        self._dog = dog
        self._cut: Callable[[], None] | None = None
        self._ended_at = 0.0
        self._closed = False

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def time_left_s(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    def on_end(self, cut: Callable[[], None]) -> None:
        """Have `cut` called when the call is ended; at once if it already was."""
        with self._dog.lock:
            self._cut = cut
            if self.cause is not None:
                cut()

    def sleep(self, seconds: float) -> None:
        """Sleep, but wake early when the call is ended."""
        until = time.monotonic() + seconds
        while self.cause is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, INTERVAL_S))

    def close(self) -> None:
        """Stop watching; after this, nothing of the call is cut any more."""
        self._dog.remove(self)

    def end(self, cause: Cause) -> None:
        with self._dog.lock:
            if self._closed or self.cause is not None:
                return
            self.cause = cause
            self._ended_at = time.monotonic()
            if self._cut is not None:
                self._cut()

    def give_up_on_caller(self) -> None:
        with self._dog.lock:
            if not self._closed and self.caller is not None:
                shut_down(self.caller)

    @property
    def overstays(self) -> bool:
        return self.cause is not None and time.monotonic() > self._ended_at + GOODBYE_S

    def forget(self) -> None:
        self._closed = True
        self._cut = None


class Watchdog:
    """The thread and the calls it looks after; idle, it sleeps until a call comes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.stop_at: float | None = None
        self._wake = threading.Condition(self.lock)
        self._watches: set[Watch] = set()
        self._thread: threading.Thread | None = None

    def watch(self, caller: socket.socket | None, timeout_s: float) -> Watch:
        """A new watch that ends after `timeout_s`, or when `caller` (if given) hangs up."""
        watch = Watch(self, caller, time.monotonic() + timeout_s)
        with self.lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                thread.start()  # raises where the system gives no thread; the next call tries again
                self._thread = thread
            self._watches.add(watch)
            if len(self._watches) == 1:
                self._wake.notify()
        return watch

    def remove(self, watch: Watch) -> None:
        with self.lock:
            self._watches.discard(watch)
            watch.forget()

    def _run(self) -> None:
        while True:
            with self.lock:
                while not self._watches:
                    self._wake.wait()
                watches = list(self._watches)
            self._inspect(watches)
            time.sleep(INTERVAL_S)

    def _inspect(self, watches: list[Watch]) -> None:
        for watch in _callers_gone(watches):
            watch.end(Cause.CALLER_LEFT)
        now = time.monotonic()
        stopping = self.stop_at is not None and now >= self.stop_at
        for watch in watches:
            if now >= watch.deadline:
                watch.end(Cause.TIME_IS_UP)
            elif stopping:
                watch.end(Cause.STOPPING)
            if watch.overstays:
                watch.give_up_on_caller()


def _callers_gone(watches: Iterable[Watch]) -> list[Watch]:
    poll = select.poll()
    by_fd = {}
    for watch in watches:
        fd = watch.caller.fileno() if watch.caller is not None else -1
        if fd >= 0:
            by_fd[fd] = watch
            poll.register(fd, _HANG_UP)
    return [by_fd[fd] for fd, _event in poll.poll(0)]


def shut_down(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Wake whoever waits for `sock` in another thread."""
    # The base class's method, because SSLSocket.shutdown() would take the TLS state away from
    # under the thread that is reading.
    with contextlib.suppress(OSError):
        # (urllib3's TLS through a TLS proxy is no socket, but has one.)
        socket.socket.shutdown(getattr(sock, "socket", sock), how)


_dog = Watchdog()
watch = _dog.watch


def watch_arrival(sock: socket.socket | None, timeout_s: float) -> Watch:
    """A new watch that ends reading from `sock`, if given, when its bytes take too long."""
    arrival = watch(None, timeout_s)
    if sock is not None:
        arrival.on_end(partial(shut_down, sock, socket.SHUT_RD))
    return arrival


def stop_at(moment: float) -> None:
    """End every call at `moment` (of time.monotonic()): the process is about to stop."""
    # Called from a signal handler, so it takes no lock.
    _dog.stop_at = moment
