"""A request's body on its way in: its coding, its size, and the time it may take."""

import socket
from collections.abc import Mapping
from typing import IO, Any

from core import errors, watchdog
from core.errors import ServiceError
from core.settings import Settings


def receive(
    environ: Mapping[str, Any], caller_socket: socket.socket | None, settings: Settings
) -> bytes:
    """The whole body of a WSGI request; raises ServiceError where it does not come."""
    coding = environ.get("HTTP_CONTENT_ENCODING") or "identity"
    framing = environ.get("HTTP_TRANSFER_ENCODING")
    if coding.lower() != "identity" or (framing and framing.lower() != "chunked"):
        text = "The body must not be compressed: send it without Content-Encoding."
        raise ServiceError(errors.UNSUPPORTED_ENCODING, text)
    limit, told = settings.max_body_bytes, environ.get("CONTENT_LENGTH") or "0"
    length = int(told.lstrip("0")[:18] or 0) if told.isdecimal() else 0  # int() takes 4,300 digits
    body: bytes | None = b""
    if length <= limit and (length or framing):
        with watchdog.watch_arrival(caller_socket, settings.arrival_timeout_s):
            body = _arrived(environ["wsgi.input"], length or limit + 1)
    if max(length, len(body or b"")) > limit:
        raise ServiceError(errors.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.")
    if body is None or len(body) < length:
        text = "The body ended or stalled before it was complete, or its chunks are malformed."
        raise ServiceError(errors.INCOMPLETE_BODY, text)
    return body


def _arrived(stream: IO[bytes], most: int) -> bytes | None:
    """`most` bytes of the body, or as far as it came; None if its framing is broken."""
    body = bytearray()
    try:
        while len(body) < most and (read := stream.read(most - len(body))):
            body += read
    except Exception:  # the server's own, of which it has many
        return None
    return bytes(body)
