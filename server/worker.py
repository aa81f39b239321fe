"""gunicorn's threaded worker, with a few manners added."""

import contextlib
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.instrument.statsd import Statsd
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from core import errors, records, watchdog
from core.settings import load

# A request's line and headers in all: gunicorn looks through all of them again whenever some come.
MAX_HEAD_BYTES = 65_536
# Calls still running this long before the end of the grace get an error event, not a torn body.
LAST_WORDS_S = 4
# What a refused caller is still sending is taken, up to here: closing on it would reset the
# connection, and the answer would be lost (RFC 9112, section 9.6).
MAX_UNREAD_BYTES = 200_000_000
# The way back through gunicorn's main loop costs a tenth of a request's CPU, so a thread first
# waits so long for its connection's next one.
NEXT_REQUEST_S = 0.02
# A worker hesitates so long for each connection that it has before it takes one more: the one with
# the fewest is the first. Without it, one of two workers was seen to take 31 of 32 callers.
HESITATION_S = 10e-6
MAX_HESITATION_S = 1e-3
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


class Logger(Statsd):
    """gunicorn's log on standard output; crashes in it by type and place, without their words.

    Statsd is gunicorn's logger that also sends metrics when --statsd-host is set.
    """

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setStream(sys.stdout)

    def access(self, *args: Any) -> None:
        if self.sock is not None or self.access_log_enabled:
            super().access(*args)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None:
            records.log_crash("", error)


class Head(Request):
    """A request's head, bounded as a whole and not only by the number and size of its lines."""

    max_buffer_headers = property(lambda _self: MAX_HEAD_BYTES, lambda _self, _value: None)


class Parser(RequestParser):
    """gunicorn's parser, which takes no time over the rest of a body that has none."""

    mesg_class = Head

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> Any:
        reader = self.mesg and self.mesg.body.reader
        if isinstance(reader, LengthReader) and not reader.length:
            return True
        return super().finish_body(deadline, max_bytes)


class Gathering:
    """A caller's socket that sends an answer's head together with what follows it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head: bytes | None = None

    def sendall(self, data: bytes) -> None:
        if self._head is None:
            self._head = data
        else:
            self._sock.sendall(self._head + data)
            self._head = b""

    def flush(self) -> None:
        if self._head:
            self._sock.sendall(self._head)


class Reply(wsgi.Response):
    """gunicorn's response in one write less, which wakes the caller once and not twice."""

    def __init__(self, req: Any, sock: socket.socket, cfg: Any) -> None:
        super().__init__(req, Gathering(sock), cfg)

    def close(self) -> None:
        super().close()
        self.sock.flush()


class Threads(ThreadPoolExecutor):
    """A pool that makes do with the threads it has where the system gives no more."""

    def _adjust_thread_count(self) -> None:
        # By now the work is queued: a thread that is there will take it.
        with contextlib.suppress(RuntimeError):
            super()._adjust_thread_count()


class Connection(TConn):
    """A caller's connection, and the watch over the arrival of its request's headers."""

    arrival: watchdog.Watch
    unread_bytes = MAX_UNREAD_BYTES

    def has_more(self, timeout_s: float) -> bool:
        """Whether another request begins to arrive within so long."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


class Worker(ThreadWorker):
    """gunicorn's threaded worker, with time limits on callers and a clean way to stop."""

    cpu: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = load()

    def init_process(self) -> None:
        if self.cpu is not None:
            os.sched_setaffinity(0, {self.cpu})
        wsgi.Response = Reply  # there is no setting for it
        # Plain attributes: a request takes two dozen, each through two of gunicorn's own calls.
        self.cfg.__dict__ |= {name: item.get() for name, item in self.cfg.settings.items()}
        super().init_process()

    def init_signals(self) -> None:
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def get_thread_pool(self) -> Threads:
        return Threads(self.cfg.threads)

    def accept(self, listener: Any) -> bool:
        """Whether a connection was waiting. It gets a thread when its first bytes are there."""
        if self.alive and self.cfg.workers > 1:
            time.sleep(min(HESITATION_S * self.nr_conns, MAX_HESITATION_S))
        try:
            sock, address = listener.accept()
        except OSError:  # none is there, it is gone again, or there is no descriptor left for it
            return False
        self.nr_conns += 1
        conn = Connection(self.cfg, sock, address, listener.getsockname())
        conn.parser = Parser(self.cfg, sock, address)
        self._poll(conn, self.settings.arrival_timeout_s, self.on_pending_socket_readable)
        return True

    def handle(self, conn: Connection) -> Any:
        """Whether the connection stays open, after one request or several in quick succession."""
        while True:
            with watchdog.watch_arrival(conn.sock, self.settings.arrival_timeout_s) as conn.arrival:
                keeps_alive = super().handle(conn)
            if keeps_alive is not True or self._is_wanted() or not conn.has_more(NEXT_REQUEST_S):
                return keeps_alive

    def _is_wanted(self) -> bool:
        """Whether this thread has better to do than wait: as many are busy as there may be."""
        idle = len(self.keepalived_conns) + len(self.pending_conns)
        return not self.alive or self.nr_conns - idle >= self.cfg.threads

    def finish_request(self, conn: Connection, fs: Future[Any]) -> None:
        if fs.cancelled() or fs.exception() or fs.result() is not False:
            super().finish_request(conn, fs)
            return
        # gunicorn would now wait for the peer in its main loop, for up to 2 s, and all other
        # connections with it. In the poller, it costs neither them nor a thread.
        linger_s = self.settings.arrival_timeout_s if self.alive else STOP_KEEPALIVE_LINGER
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self._poll(conn, linger_s, self._discard)
        except OSError:  # it is closed already
            self.nr_conns -= 1
            conn.close()

    def _discard(self, conn: Connection, sock: socket.socket) -> None:
        """Take what the peer is still sending, until it closes or sends too much."""
        try:
            read = sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            read = b""
        conn.unread_bytes -= len(read)
        if not read or conn.unread_bytes < 0:
            self.poller.unregister(sock)
            self.pending_conns.remove(conn)
            self.nr_conns -= 1
            conn.close()

    def _poll(self, conn: Connection, timeout_s: float, readable: Callable[..., None]) -> None:
        """Have the poller call `readable`, and murder_pending() close what takes longer."""
        conn.timeout = time.monotonic() + timeout_s
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(readable, conn))

    def handle_request(self, req: Any, conn: Connection) -> Any:
        conn.arrival.close()
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn itself refuses, in the contract's shape and logged without words."""
        request_id = records.new_request_id()
        kind = _kind_of(exc)
        if kind is errors.INTERNAL_ERROR:
            records.log_crash(request_id, exc)
        else:
            records.log("refused", request_id=request_id, code=kind.code, type=type(exc).__name__)
        body = json.dumps({"error": kind.code, "message": kind.remedy}).encode()
        head = (
            f"HTTP/1.1 {kind.status} {HTTPStatus(kind.status).phrase}\r\n"
            "Connection: close\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            f"X-Content-Type-Options: nosniff\r\nX-Request-Id: {request_id}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            client.sendall(head.encode() + body)

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
            grace_s = self.settings.grace_timeout_s - LAST_WORDS_S
            watchdog.stop_at(time.monotonic() + max(0, grace_s))
        super().handle_exit(sig, frame)

    def handle_quit(self, sig: int, frame: Any) -> None:
        watchdog.stop_at(time.monotonic())
        super().handle_quit(sig, frame)


def block_stop_signals() -> None:
    """Called before a fork: until the worker handles them, they would be lost (gunicorn #1910)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


os.register_at_fork(
    after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOP_SIGNALS)
)


def _kind_of(error: Exception) -> errors.Kind:
    match error:
        case LimitRequestLine():
            return errors.URI_TOO_LONG
        case LimitRequestHeaders():
            return errors.HEADERS_TOO_LARGE
        case ParseException():
            return errors.MALFORMED_HTTP
    return errors.INTERNAL_ERROR
