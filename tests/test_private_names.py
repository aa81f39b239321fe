"""What the service uses of its libraries beyond what they promise: one list, held to be true.

When an upgrade breaks a name here, the reason beside it says what was lost.
"""

import ast
import inspect
import io
import socket
from importlib import import_module
from typing import Any

import pytest

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
    "urllib3.connection.HTTPConnection.response_class": (None, "one write for what came together"),
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
}
# Attributes that exist in objects only.
FIELDS = {
    "http.client.HTTPResponse": ("fp", "chunked", "chunk_left"),
    "urllib3.poolmanager.PoolManager": ("pool_classes_by_scheme",),
    "urllib3.connection.HTTPConnection": ("host", "port", "sock", "timeout", "socket_options"),
}
LIBRARIES = ("urllib3", "requests", "http")
ROOMS = ("providers.http.",)


def found(dotted: str) -> Any:
    module, owner, name = dotted.rsplit(".", 2)
    return inspect.getattr_static(getattr(import_module(module), owner), name)


@pytest.mark.parametrize("dotted", NAMES)
def test_the_name_is_there_and_takes_what_it_took(dotted: str) -> None:
    parameters, _reason = NAMES[dotted]
    there = found(dotted)
    if parameters is not None:
        assert f"{' '.join(inspect.signature(there).parameters)} ".startswith(f"{parameters} ")


@pytest.mark.parametrize("dotted", FIELDS)
def test_the_fields_are_there(dotted: str) -> None:
    module, owner = dotted.rsplit(".", 1)
    kind = getattr(import_module(module), owner)
    made_of: dict[str, tuple[Any, ...]] = {
        "HTTPResponse": (socket.socketpair()[0],),
        "HTTPConnection": ("localhost",),
    }
    there = kind(*made_of.get(owner, ()))
    assert [name for name in FIELDS[dotted] if not hasattr(there, name)] == []
    if owner == "HTTPResponse":
        assert isinstance(there.fp, io.BufferedReader)


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
