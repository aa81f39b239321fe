"""requests' connections, made so that the watchdog can shut one down while a call waits on it."""

import functools
import socket
import threading
from dataclasses import dataclass
from ssl import SSLSocket
from typing import Any

from requests import PreparedRequest, Response
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from core.watchdog import Watch, shut_down
from providers.http.response import ProviderResponse

# A provider that vanished without a word is noticed after 2 minutes, though a full answer may
# rightly be silent for much longer.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]
if hasattr(socket, "TCP_KEEPIDLE"):
    _SOCKET_OPTIONS += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 20),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]


@dataclass(slots=True)
class Sending:
    """A request on its way, and the connection that it got."""

    watch: Watch
    read_timeout_s: float
    sock: socket.socket | None = None
    on_used_connection: bool = False


class _InThisThread(threading.local):
    # urllib3 picks the connection deep inside one blocking call, so this is how a connection
    # learns for whom it works.
    sending: Sending


in_this_thread = _InThisThread()


class _Connection(HTTPConnection):
    response_class = ProviderResponse

    _watch: Watch | None = None
    _is_used = False
    _unsent: bytearray | None = None

    def connect(self) -> None:
        super().connect()
        self._is_used = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        sending = in_this_thread.sending
        if self.sock is None:
            self.connect()
        sending.sock, sending.on_used_connection = self.sock, self._is_used
        self._is_used = True
        self._watch = sending.watch
        self._watch.on_end(functools.partial(self._cut, self._watch, self.sock))
        # urllib3 would go on applying the connect timeout until the request is sent.
        self.timeout = sending.read_timeout_s
        # Head and body leave in one write instead of two.
        self._unsent = bytearray()
        super().request(*args, **kwargs)
        whole, self._unsent = self._unsent, None
        self.send(whole)

    def send(self, data: Any) -> None:
        if self._unsent is None:
            super().send(data)
        else:
            self._unsent += data

    def _cut(self, watch: Watch, sock: socket.socket) -> None:
        if self._watch is watch:  # else the pool has given the connection to another call
            shut_down(sock)


class _TLSConnection(_Connection, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        # Bytes that nobody asked for may have been decrypted already, where urllib3's poll of the
        # socket does not see them: the next caller would take them for the answer.
        return super().is_connected and not (
            isinstance(self.sock, SSLSocket) and self.sock.pending()
        )


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class Adapter(HTTPAdapter):
    """requests' own adapter over watched connections: for one address, shared by all threads."""

    _pool: Any = None
    _url: str | None = None

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, socket_options=_SOCKET_OPTIONS, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def build_response(self, req: PreparedRequest, resp: BaseHTTPResponse) -> Response:
        # Only the raw answer is read: no cookies, no encoding to guess.
        response = Response()
        response.request, response.raw, response.status_code = req, resp, resp.status
        return response

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # There is one address and one set of TLS settings, so neither the pool nor what to ask it
        # for need be looked up.
        if self._pool is None or self._pool.pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **kwargs)
        return self._pool

    def request_url(self, *args: Any, **kwargs: Any) -> str:
        if self._url is None:
            self._url = super().request_url(*args, **kwargs)
        return self._url

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager
