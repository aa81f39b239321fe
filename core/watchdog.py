"""One thread a process that ends what would otherwise wait too long.

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
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from core import records

INTERVAL_S = 0.2
# How long an ended call may take to send its error before its caller's socket is shut down as
# well: a caller who stopped reading blocks our write for ever (gunicorn #3155).
ERROR_TIMEOUT_S = 2.0


class Cause(enum.Enum):
    """Why a call was ended before it was done."""

    TIME_IS_UP = enum.auto()
    CALLER_LEFT = enum.auto()
    STOPPING = enum.auto()


class Watch:
    """One call under watch, until `close()`; a context manager. It alone knows its state."""

    __slots__ = ("_cut", "_ended_at", "_lock", "caller", "cause", "deadline", "is_closed")

    def __init__(self, caller: socket.socket | None, deadline: float) -> None:
        self.caller = caller
        self.deadline = deadline
        self.cause: Cause | None = None
        self.is_closed = False
        self._lock = threading.Lock()
        self._cut: Callable[[], None] | None = None
        self._ended_at = 0.0

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
        with self._lock:
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
        with self._lock:
            self.is_closed = True
            self._cut = self.caller = None

    def end(self, cause: Cause) -> None:
        """Have the call end; the first cause counts."""
        with self._lock:
            if not self.is_closed and self.cause is None:
                self.cause = cause
                self._ended_at = time.monotonic()
                if self._cut is not None:
                    self._cut()

    def give_up_on_caller(self) -> None:
        """Shut down the socket of a caller who has not taken the error for too long."""
        with self._lock:
            if self.caller is not None and time.monotonic() > self._ended_at + ERROR_TIMEOUT_S:
                shut_down(self.caller)


class Watchdog:
    """The thread and the watches that it goes through; without any, it sleeps."""

    def __init__(self) -> None:
        self.stop_at: float | None = None
        self._watches: list[Watch] = []
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None

    def watch(self, caller: socket.socket | None, timeout_s: float) -> Watch:
        """A new watch that ends after `timeout_s`, or when `caller` (if given) hangs up."""
        watch = Watch(caller, time.monotonic() + timeout_s)
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                thread.start()  # raises where the system gives no thread; the next call tries again
                self._thread = thread
            self._watches.append(watch)
            if len(self._watches) == 1:
                self._changed.notify()
        return watch

    def _run(self) -> None:
        while True:
            watches: list[Watch] = []
            with _survived():
                watches = self._open_watches()
                for watch in _callers_gone(watches):
                    watch.end(Cause.CALLER_LEFT)
            for watch in watches:
                with _survived():
                    self._check_time(watch)
            with _survived():
                time.sleep(INTERVAL_S)

    def _open_watches(self) -> list[Watch]:
        """A copy of those that are not closed, as soon as there is one."""
        with self._changed:
            while not (still_open := [each for each in self._watches if not each.is_closed]):
                self._watches.clear()
                self._changed.wait()
            self._watches = still_open
            return still_open.copy()

    def _check_time(self, watch: Watch) -> None:
        now = time.monotonic()
        if watch.cause is not None:
            watch.give_up_on_caller()
        elif now >= watch.deadline:
            watch.end(Cause.TIME_IS_UP)
        elif self.stop_at is not None and now >= self.stop_at:
            watch.end(Cause.STOPPING)


@contextlib.contextmanager
def _survived() -> Iterator[None]:
    """All limits rest on one thread, so nothing that goes wrong with one watch may end it."""
    try:
        yield
    except BaseException as error:  # also what others mean to end a thread or process with
        with contextlib.suppress(Exception):
            records.log_crash("", error)


def _callers_gone(watches: Iterable[Watch]) -> list[Watch]:
    callers = [(watch, watch.caller) for watch in watches]
    found = {sock.fileno(): (watch, sock) for watch, sock in callers if sock is not None}
    found.pop(-1, None)  # closed already
    if not hasattr(select, "poll"):  # Windows
        return [watch for watch, sock in found.values() if _has_ended(sock)]
    poll = select.poll()
    for fd in found:
        # Linux tells of a peer that has closed with POLLRDHUP, macOS with POLLHUP.
        poll.register(fd, getattr(select, "POLLRDHUP", select.POLLHUP))
    return [found[fd][0] for fd, _event in poll.poll(0)]


def _has_ended(sock: socket.socket) -> bool:
    try:
        readable, _, _ = select.select([sock], [], [], 0)
        return bool(readable) and not socket.socket.recv(sock, 1, socket.MSG_PEEK)
    except ConnectionError:
        return True


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
