"""requests' connections, made so that a call's limits hold for them from the name lookup on.

The watchdog can shut one down while a call waits on it, and whatever happens on one is raised as
the Failure that it is.
"""

import contextlib
import functools
import socket
import threading
from dataclasses import dataclass
from ssl import SSLSocket
from types import SimpleNamespace
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from core import watchdog
from core.watchdog import Watch, shut_down
from providers.http.addresses import lookup
from providers.http.failures import CONNECTING, WAITING, failure_of
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
    connect_timeout_s: float
    read_timeout_s: float
    needs_new_connection: bool = False
    sock: socket.socket | None = None  # once connected
    is_on_used_connection: bool = False
    body: ProviderResponse | None = None  # once it is answered


class _InThisThread(threading.local):
    # urllib3 picks the connection deep inside one blocking call, so this is how a connection
    # learns for whom it works.
    sending: Sending


in_this_thread = _InThisThread()


class _Connection(HTTPConnection):
    _watch: Watch | None = None
    _is_used = False

    def connect(self) -> None:
        """Connect, TLS and a proxy's CONNECT included, within the one time that there is for it."""
        sending = in_this_thread.sending
        try:
            with contextlib.ExitStack() as held:
                limit = held.enter_context(watchdog.watch(None, sending.connect_timeout_s))
                self._while_connecting = (limit, held)
                try:
                    super().connect()
                finally:
                    del self._while_connecting
                    # A socket that was shut down may fail in any way, or seem to be connected.
                    if limit.cause is not None or sending.watch.cause is not None:
                        raise TimeoutError
        except Exception as error:
            raise failure_of(error, CONNECTING, sending.connect_timeout_s) from None
        self._is_used = False

    def _new_conn(self) -> socket.socket:
        # urllib3's own looks the name up without any limit, and gives each address all the time.
        sending, (limit, held) = in_this_thread.sending, self._while_connecting
        addresses = lookup(self.host.strip("[]"), self.port, sending.watch, limit.deadline)
        error: OSError = TimeoutError()
        for tried, (family, kind, protocol, _name, address) in enumerate(addresses):
            sock = None
            try:
                sock = socket.socket(family, kind, protocol)
                # TLS takes the descriptor away from `sock`; a second one is kept to shut it down.
                handle = held.enter_context(sock.dup())
                for watch in (limit, sending.watch):
                    watch.on_end(functools.partial(shut_down, handle))
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(max(0.001, limit.time_left_s / (len(addresses) - tried)))
                sock.connect(address)
            except OSError as failure:
                error = failure
                if sock is not None:
                    sock.close()
            else:
                sock.settimeout(sending.connect_timeout_s)
                return sock
        raise error

    def request(self, *args: Any, **kwargs: Any) -> None:
        sending = in_this_thread.sending
        if self.sock is None:
            self.connect()
        sending.sock, sending.is_on_used_connection = self.sock, self._is_used
        self._is_used = True
        self._watch = sending.watch
        self._watch.on_end(functools.partial(self._cut, self._watch, self.sock))
        # urllib3 would go on applying the connect timeout until the request is sent.
        self.timeout = sending.read_timeout_s
        try:
            super().request(*args, **kwargs)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the provider has closed, but its answer (413, say) may have come already
        except Exception as error:
            raise failure_of(error, WAITING, sending.read_timeout_s) from None

    def response_class(  # type: ignore[override]  # http.client calls it, class or not
        self, *args: Any, **kwargs: Any
    ) -> ProviderResponse:
        """What http.client reads an answer with."""
        in_this_thread.sending.body = ProviderResponse(*args, **kwargs)
        return in_this_thread.sending.body

    def getresponse(self) -> Any:
        sending = in_this_thread.sending
        try:
            answer = super().getresponse()
        except Exception as error:
            raise failure_of(error, WAITING, sending.read_timeout_s) from None
        # http.client knows no length in "89, 89", which is one (RFC 9110, section 8.6).
        sending.body.length = answer.length_remaining  # type: ignore[union-attr]
        return answer

    @property
    def is_connected(self) -> bool:
        # Bytes that nobody asked for may have been decrypted already, where urllib3's poll of the
        # socket does not see them: the next caller would take them for the answer.
        return (
            super().is_connected
            and not in_this_thread.sending.needs_new_connection
            and not (isinstance(self.sock, SSLSocket) and self.sock.pending())
        )

    def _cut(self, watch: Watch, sock: socket.socket) -> None:
        if self._watch is watch:  # else the pool has given the connection to another call
            shut_down(sock)


class _TLSConnection(_Connection, HTTPSConnection):
    pass


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

    def build_response(self, req: PreparedRequest, resp: BaseHTTPResponse) -> Any:
        # Only what is read of it: no cookies, no encoding to guess.
        return SimpleNamespace(request=req, raw=resp, status_code=resp.status, headers=resp.headers)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        # There is one address and one set of TLS settings, so neither the pool nor what to ask it
        # for need be looked up.
        if self._pool is None:
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
