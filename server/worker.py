"""gunicorn's threaded worker with time limits, threads only for whole heads, and a clean stop."""

import contextlib
import errno
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from gunicorn.http.errors import NoMoreData
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from core import records, watchdog
from core.settings import load
from server.connections import Connection
from server.refusals import refuse

# Calls still running this long before the end of the grace get an error event, not a torn body.
ERRORS_BEFORE_END_S = 4
# The way back through gunicorn's main loop costs a tenth of a request's CPU, so a thread first
# waits so long for its connection's next one.
NEXT_REQUEST_S = 0.02
# A worker hesitates so long for each connection that it has before it takes one more: the one with
# the fewest is the first. Without it, one of two workers was seen to take 31 of 32 callers.
HESITATION_S = 10e-6
MAX_HESITATION_S = 1e-3
# No descriptor is left, and the connection stays in the queue: asking again at once would spin.
NO_DESCRIPTOR_PAUSE_S = 0.02
NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
LOAD_INTERVAL_S = 60.0


class Worker(ThreadWorker):
    """Reads heads in the main loop and handles requests in threads."""

    cpu: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # For a request's head, then its body, to arrive, and for a write to be taken.
        self.arrival_timeout_s = load().arrival_timeout_s
        self.max_keepalived = self.worker_connections  # the oldest makes room for a new one
        self._tell_load_at = time.monotonic() + LOAD_INTERVAL_S

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Nothing: gunicorn would warn of few connections, but here the idle ones make room."""

    def notify(self) -> None:
        """Tell the master that this worker lives and, once a minute, the operator what it does."""
        super().notify()
        if time.monotonic() < self._tell_load_at:
            return
        self._tell_load_at = time.monotonic() + LOAD_INTERVAL_S
        for name, value in records.log_load().items():
            if self.cfg.statsd_host:  # gunicorn's log sends it
                self.log.gauge(f"gateway.{name}.{self.pid}", value)

    # Connections: in the main loop, without waiting for any of them.

    def accept(self, listener: Any) -> bool:
        """Whether a connection was waiting. It gets a thread when its first head is complete."""
        if self.alive and self.cfg.workers > 1:
            time.sleep(min(HESITATION_S * self.nr_conns, MAX_HESITATION_S))
        try:
            sock, address = listener.accept()
            server = listener.getsockname()
            conn = Connection(self.cfg, sock, address, server, self.arrival_timeout_s)
        except OSError as error:  # none is there, it is gone again, or there is no descriptor left
            if error.errno in NO_DESCRIPTOR and not self._close_oldest_idle():
                time.sleep(NO_DESCRIPTOR_PAUSE_S)
            return False
        self.nr_conns += 1
        self._make_room()
        self._receive(conn)
        return True

    def _receive(self, conn: Connection) -> None:
        """Take what has come of a request's head; the rest of it has a time of its own."""
        if conn.receive():
            self._serve(conn)
        else:
            self._wait_for(conn, self.arrival_timeout_s, self._serve, conn.receive)

    def _serve(self, conn: Connection) -> None:
        """Answer the caller in a thread, which must not wait until earlier answers are taken."""
        if not conn.has_request:
            self._close(conn)
        elif conn.is_ready(select.POLLOUT):
            self._find_thread(conn)
        else:
            self._wait_for(conn, self.arrival_timeout_s, self._find_thread, event=EVENT_WRITE)

    def _find_thread(self, conn: Connection) -> None:
        # Where the system gives no more threads, the work is queued by then: one of them takes it.
        with contextlib.suppress(RuntimeError):
            self.tpool.submit(self._handle, conn)

    def _keep(self, conn: Connection) -> None:
        if conn.has_request:
            self._serve(conn)
        else:
            keep_s = self.cfg.keepalive
            self._wait_for(conn, keep_s, self._receive, waiting=self.keepalived_conns)
        self._make_room()

    def _linger(self, conn: Connection) -> None:
        """Close it when the caller has read the answer, without a thread that waits for that."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is closed already
            self._close(conn)
        else:
            self._wait_for(conn, self.arrival_timeout_s, self._close, conn.discard)
        self._make_room()

    def _wait_for(
        self,
        conn: Connection,
        timeout_s: float,
        then: Callable[[Connection], None],
        is_over: Callable[[], bool] = lambda: True,
        *,
        event: int = EVENT_READ,
        waiting: deque[Connection] | None = None,
    ) -> None:
        """Have `then` called after an event at which `is_over`; what takes longer is closed."""
        among = self.pending_conns if waiting is None else waiting

        def on_event(sock: socket.socket) -> None:
            if sock.fileno() >= 0 and is_over():  # not closed in this very turn of the loop
                self.poller.unregister(sock)
                among.remove(conn)
                then(conn)

        if not self.alive:
            timeout_s = min(timeout_s, STOP_KEEPALIVE_LINGER)
        conn.timeout = time.monotonic() + timeout_s  # murder_pending() and murder_keepalived()
        among.append(conn)
        self.poller.register(conn.sock, event, on_event)

    def _make_room(self) -> None:
        """Called whenever one more connection is there, or idle: else none would be accepted."""
        if self.nr_conns >= self.worker_connections:
            self._close_oldest_idle()

    def _close_oldest_idle(self) -> bool:
        """Whether there was one."""
        waiting = self.keepalived_conns or self.pending_conns
        if waiting:
            conn = waiting.popleft()
            self.poller.unregister(conn.sock)
            self._close(conn)
            return True
        return False

    def _close(self, conn: Connection) -> None:
        self.nr_conns -= 1
        conn.close()

    # Requests: each in a thread.

    def _handle(self, conn: Connection) -> None:
        """Answer, and have the main loop go on with the connection."""
        then = self._linger
        try:
            if self._answer(conn):
                then = self._keep
        except (StopIteration, NoMoreData, ConnectionError, BlockingIOError):
            pass  # the answer failed halfway, or its caller has left or takes nothing of it
        except OSError:
            self.log.exception("Socket error processing request.")
        except Exception as error:
            with contextlib.suppress(OSError):
                conn.sock.sendall(refuse(error))
        finally:
            self.method_queue.defer(then, conn)

    def _answer(self, conn: Connection) -> bool:
        """Whether the connection stays open, after one request or several in quick succession."""
        while True:
            request = conn.next_request()
            if not self.handle_request(request, conn):
                return False
            if pipelined := request.unreader.take_buffered():
                conn.take(pipelined)
            if self._is_busy():
                return True
            if not conn.has_request and conn.is_ready(select.POLLIN, NEXT_REQUEST_S):
                conn.receive()
            if not (conn.has_request and conn.is_ready(select.POLLOUT)):
                return True

    def _is_busy(self) -> bool:
        """Whether this thread has better to do than wait: as many are busy as there may be."""
        idle = len(self.keepalived_conns) + len(self.pending_conns)
        return not self.alive or self.nr_conns - idle >= self.cfg.threads

    # The stop.

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not (enabled or self.alive):
            self._stop()

    def _stop(self) -> None:
        """Take the connections that are queued, then close the listeners (gunicorn #922)."""
        grace_s = self.cfg.graceful_timeout - ERRORS_BEFORE_END_S
        watchdog.stop_at(time.monotonic() + max(0, grace_s))
        for listener in self.sockets:
            while self.accept(listener):
                pass
            listener.close()
        limit = time.monotonic() + STOP_KEEPALIVE_LINGER
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, limit)
