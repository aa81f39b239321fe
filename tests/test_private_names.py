"""What the service uses of its libraries beyond what they promise: one list, held to be true.

When an upgrade breaks a name here, the reason beside it says what was lost.
"""

import ast
import inspect
import io
import re
import socket
from importlib import import_module
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.unreader import IterUnreader
from gunicorn.workers.gthread import ThreadWorker

from server.connections import Connection
from tests.test_doors import sources

# "module.Class.name": its parameters (None for what is no method), and what it is used for.
NAMES: dict[str, tuple[str | None, str]] = {
    "urllib3.connection.HTTPConnection._new_conn": (
        "self",
        "a name lookup that can be given up, and one time limit for all addresses",
    ),
    "urllib3.connection.HTTPConnection.connect": ("self", "proxy and TLS within the same limit"),
    "urllib3.connection.HTTPConnection.request": (
        # (The last of its parameters are not of interest.)
        "self method url body headers",
        "the watchdog learns the socket that a call waits for",
    ),
    "urllib3.connection.HTTPConnection.getresponse": ("self", "failures told as what they are"),
    "urllib3.connection.HTTPConnection.is_connected": (
        None,
        "no connection is used again that holds bytes nobody asked for",
    ),
    "urllib3.connection.HTTPConnection.response_class": (None, "answers read where http.client is"),
    "urllib3.connectionpool.HTTPConnectionPool.ConnectionCls": (None, "watched connections"),
    "requests.adapters.HTTPAdapter.init_poolmanager": (
        "self connections maxsize block pool_kwargs",
        "watched connections",
    ),
    "requests.adapters.HTTPAdapter.proxy_manager_for": (
        "self proxy proxy_kwargs",
        "watched connections",
    ),
    "requests.adapters.HTTPAdapter.build_response": (
        "self req resp",
        "no cookies kept, no encoding guessed",
    ),
    "requests.adapters.HTTPAdapter.get_connection_with_tls_context": (
        "self request verify proxies cert",
        "the one pool is not looked up for each call",
    ),
    "requests.adapters.HTTPAdapter.request_url": (
        "self request proxies",
        "the one path is not taken apart for each call",
    ),
    "http.client.HTTPResponse.begin": ("self", "interim answers are passed over"),
    "http.client.HTTPResponse.read1": ("self n", "one write for what came together"),
    # The server: connections in the main loop,
    "gunicorn.workers.gthread.ThreadWorker.accept": ("self listener", "heads read without waiting"),
    "gunicorn.workers.gthread.ThreadWorker.murder_keepalived": (
        "self",
        "time limits without threads, for kept connections",
    ),
    "gunicorn.workers.gthread.ThreadWorker.murder_pending": (
        "self",
        "time limits without threads, for all others that wait",
    ),
    "gunicorn.workers.gthread.PollableMethodQueue.defer": (
        "self callback args",
        "the way back to it from a thread",
    ),
    "gunicorn.workers.gthread.ThreadWorker.check_config": (
        "cls cfg log",
        "no warning that is wrong",
    ),
    # requests in threads,
    "gunicorn.workers.gthread.ThreadWorker.handle_request": (
        "self req conn",
        "several requests of one connection in one go, each checked as below",
    ),
    "gunicorn.http.message.Message.should_close": ("self", "one request, one answer"),
    "gunicorn.http.message.Message.force_close": ("self", "`Connection: keep-alive, close`"),
    "gunicorn.http.unreader.SocketUnreader.chunk": (
        "self size_hint",
        "heads read without waiting, a body that ends early",
    ),
    "gunicorn.http.unreader.Unreader.take_buffered": ("self", "heads read without waiting"),
    # and the stop.
    "gunicorn.workers.base.Worker.notify": ("self", "what a worker has in hand, once a minute"),
    "gunicorn.workers.gthread.ThreadWorker.set_accept_enabled": (
        "self enabled",
        "a stop refuses new callers at once and tells those whose calls cannot finish",
    ),
}
# Attributes that exist in objects only.
FIELDS = {
    "http.client.HTTPResponse": ("fp", "chunked", "chunk_left", "length"),
    "urllib3.response.HTTPResponse": ("length_remaining",),
    "urllib3.poolmanager.PoolManager": ("pool_classes_by_scheme",),
    "urllib3.connection.HTTPConnection": ("host", "port", "sock", "timeout", "socket_options"),
    "gunicorn.workers.gthread.ThreadWorker": (
        *("alive", "cfg", "sockets", "poller", "tpool", "method_queue", "nr_conns"),
        *("worker_connections", "keepalived_conns", "pending_conns", "max_keepalived"),
    ),
    "gunicorn.http.message.Request": (
        "headers",
        "version",
        "scheme",
        "body",
        "unreader",
        "_expected_100_continue",
    ),
    "gunicorn.http.body.Body": ("reader", "failed"),
    "gunicorn.http.body.LengthReader": ("length",),
    "gunicorn.http.body.ChunkedReader": ("parser",),
}
LIBRARIES = ("urllib3", "requests", "http", "gunicorn")
ROOMS = ("providers.http.", "server.")


def found(dotted: str) -> Any:
    module, owner, name = dotted.rsplit(".", 2)
    return inspect.getattr_static(getattr(import_module(module), owner), name)


@pytest.mark.parametrize("dotted", NAMES)
def test_the_name_is_there_and_takes_what_it_took(dotted: str) -> None:
    parameters, _reason = NAMES[dotted]
    there = found(dotted)
    there = getattr(there, "__func__", there)  # a class method's
    if parameters is not None:
        assert f"{' '.join(inspect.signature(there).parameters)} ".startswith(f"{parameters} ")


@pytest.mark.parametrize("dotted", FIELDS)
def test_the_fields_are_there(dotted: str) -> None:
    module, owner = dotted.rsplit(".", 1)
    kind = getattr(import_module(module), owner)
    config, sock = Config(), socket.socketpair()[0]
    unreader = IterUnreader([b"GET / HTTP/1.1\r\n\r\n"])
    made_of: dict[str, tuple[Any, ...]] = {
        "HTTPResponse": (sock,),
        "HTTPConnection": ("localhost",),
        "ThreadWorker": (1, 1, [], None, 30, config, None),
        "Request": (config, unreader, ""),
        "Body": (None,),
        "LengthReader": (unreader, 0),
        "ChunkedReader": (None, unreader),
    }
    there = kind(*made_of.get(owner, ()))
    assert [name for name in FIELDS[dotted] if not hasattr(there, name)] == []
    if dotted == "http.client.HTTPResponse":
        assert isinstance(there.fp, io.BufferedReader)


def test_a_connection_has_all_that_gunicorn_s_worker_asks_of_one() -> None:
    """Ours is made from none of gunicorn's, and goes through these methods only."""
    methods = ("handle_request", "murder_keepalived", "murder_pending", "_cap_keepalive")
    written = "".join(inspect.getsource(getattr(ThreadWorker, name)) for name in methods)
    asked = set(re.findall(r"\bconn\.(\w+)", written))
    connection = Connection(Config(), socket.socketpair()[0], "", "", 1.0)
    assert asked >= {"sock", "timeout", "close"}
    assert [name for name in asked if not hasattr(connection, name)] == []


def test_nothing_else_is_overridden() -> None:
    """Whatever a class of ours has in common with a library's that it is made from."""
    overridden = set()
    for module, path in sources().items():
        if not module.startswith(ROOMS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                kind = getattr(import_module(module), node.name)
                for base in kind.__mro__[1:]:
                    if base.__module__.split(".")[0] in LIBRARIES:
                        both = vars(kind).keys() & vars(base).keys()
                        overridden |= {
                            f"{base.__module__}.{base.__name__}.{name}"
                            for name in both
                            if not name.startswith(("__", "_abc_"))
                        }
    # The nearest class that has a name speaks for those above it.
    names = {dotted.rsplit(".", 1)[1] for dotted in NAMES}
    assert {dotted for dotted in overridden if dotted.rsplit(".", 1)[1] not in names} == set()
