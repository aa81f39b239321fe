"""Where a host name leads: a lookup that can be given up, as the system's own cannot."""

import socket
import threading
import time
from concurrent.futures import Future
from typing import Any

from core.watchdog import INTERVAL_S, Watch

# Of a name and port, while it lasts: all who want it wait for the same lookup, so that one which
# hangs leaves one thread behind and no more.
_under_way: dict[tuple[str, int], "Future[list[Any]]"] = {}
_lock = threading.Lock()


def lookup(host: str, port: int, watch: Watch, deadline: float) -> list[Any]:
    """What socket.getaddrinfo() says; raises TimeoutError when the call or its time ends before."""
    with _lock:
        found = _under_way.get((host, port))
        if found is None:
            found = Future()
            threading.Thread(target=_look_up, args=(host, port, found), daemon=True).start()
            _under_way[host, port] = found
    while watch.cause is None and (left := deadline - time.monotonic()) > 0:
        try:
            return found.result(min(left, INTERVAL_S))
        except TimeoutError:
            if found.done():
                raise
    raise TimeoutError


def _look_up(host: str, port: int, found: "Future[list[Any]]") -> None:
    try:
        found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except socket.gaierror as error:
        found.set_exception(_lack_of_descriptors() or error)
    except Exception as error:
        found.set_exception(error)
    finally:
        with _lock:
            _under_way.pop((host, port), None)


def _lack_of_descriptors() -> OSError | None:
    # The resolver calls a lack of ours a failure of the name's.
    try:
        socket.socket().close()
    except OSError as error:
        return error
    return None
