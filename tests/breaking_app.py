"""A WSGI application that breaks in mid-answer, to see that the server outlives it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"ok"] if environ["PATH_INFO"] == "/healthz" else _broken()


def _broken() -> Iterator[bytes]:
    yield b"Hel"
    raise ValueError("words that nobody should log")
