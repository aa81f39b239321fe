"""gunicorn's threaded worker with time limits, threads only for whole heads, and a clean stop."""

import contextlib
import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, ThreadWorker

from core import records, watchdog
from core.settings import load
from server.connections import Connection
from server.refusals import refuse
from server.signals import let_stop_signals_through
from server.threads import Threads

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

    def init_process(self) -> None:
        if self.cpu is not None:
            with contextlib.suppress(OSError):  # a cpuset may have shrunk: then any CPU will do
                os.sched_setaffinity(0, {self.cpu})
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        let_stop_signals_through()

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads)

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
        self._wait_for(conn, self.arrival_timeout_s, self.on_pending_socket_readable)
        return True

    def on_client_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        """A kept connection's next request begins: it has as long as a new one's."""
        self._receive(conn, self.keepalived_conns)

    def on_pending_socket_readable(self, conn: Connection, client: socket.socket) -> None:
        self._receive(conn, self.pending_conns)

    def _receive(self, conn: Connection, waiting: deque[Connection]) -> None:
        if conn.sock.fileno() < 0:  # closed in this very turn of the loop
            return
        is_open = conn.receive()
        if is_open and not conn.has_request and waiting is self.pending_conns:
            return
        self.poller.unregister(conn.sock)
        waiting.remove(conn)
        if not is_open:
            self._close(conn)
        elif conn.has_request:
            self.enqueue_req(conn)
        else:
            self._wait_for(conn, self.arrival_timeout_s, self.on_pending_socket_readable)

    def enqueue_req(self, conn: Connection) -> None:
        """A thread only for a caller who takes what was sent: it would wait with its answer."""
        if conn.takes_answers():
            super().enqueue_req(conn)
        else:
            write = selectors.EVENT_WRITE
            self._wait_for(conn, self.arrival_timeout_s, self._enqueue_at_last, write)

    def _enqueue_at_last(self, conn: Connection, client: socket.socket) -> None:
        if client.fileno() >= 0:
            self.poller.unregister(client)
            self.pending_conns.remove(conn)
            super().enqueue_req(conn)

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        if fs.cancelled() or fs.exception() or fs.result() is not False:
            super().finish_request(conn, fs)
        else:
            self._linger(conn)
        self._make_room()

    def _linger(self, conn: Connection) -> None:
        # gunicorn would now wait for the peer in its main loop, for up to 2 s, and all other
        # connections with it. In the poller, it costs neither them nor a thread.
        linger_s = self.arrival_timeout_s if self.alive else STOP_KEEPALIVE_LINGER
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it is closed already
            self._close(conn)
        else:
            self._wait_for(conn, linger_s, self._discard)

    def _discard(self, conn: Connection, client: socket.socket) -> None:
        if client.fileno() >= 0 and not conn.discard():
            self.poller.unregister(client)
            self.pending_conns.remove(conn)
            self._close(conn)

    def _wait_for(
        self,
        conn: Connection,
        timeout_s: float,
        ready: Callable[..., None],
        event: int = selectors.EVENT_READ,
    ) -> None:
        """Have the poller call `ready`, and murder_pending() close what takes longer."""
        conn.timeout = time.monotonic() + timeout_s
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, event, partial(ready, conn))

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

    def handle(self, conn: Connection) -> bool:
        """Whether the connection stays open, after one request or several in quick succession."""
        while not conn.is_head_too_large:
            if not super().handle(conn):
                return False
            conn.begin_request()
            if self._is_busy():
                return True
            if not conn.has_request:
                conn.sock.settimeout(NEXT_REQUEST_S)
                if not conn.receive():
                    return False
            if not (conn.has_request and conn.takes_answers()):
                return True
        self.handle_error(None, conn.sock, conn.client, LimitRequestHeaders("the whole head"))
        return False

    def _is_busy(self) -> bool:
        """Whether this thread has better to do than wait: as many are busy as there may be."""
        idle = len(self.keepalived_conns) + len(self.pending_conns)
        return not self.alive or self.nr_conns - idle >= self.cfg.threads

    def handle_request(self, req: Any, conn: Connection) -> Any:
        try:
            return super().handle_request(req, conn)
        except BlockingIOError:  # the caller has taken nothing of the answer for too long
            return False

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        with contextlib.suppress(OSError):
            client.setblocking(True)
            client.sendall(refuse(exc))

    # The stop.

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive:
            self._refuse_connections()

    def _refuse_connections(self) -> None:
        """Take the connections that are queued, then close the listeners (gunicorn #922)."""
        for listener in self.sockets:
            while self.accept(listener):
                pass
            listener.close()
        limit = time.monotonic() + STOP_KEEPALIVE_LINGER
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, limit)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:  # a second SIGTERM puts nothing off
            grace_s = self.cfg.graceful_timeout - ERRORS_BEFORE_END_S
            watchdog.stop_at(time.monotonic() + max(0, grace_s))
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        watchdog.stop_at(time.monotonic())
        super().handle_quit(sig, frame)
