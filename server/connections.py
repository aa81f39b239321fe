"""A caller's connection, and its requests as this service reads them.

A request's head is taken in without waiting, so that a connection needs a thread only when its
head is complete.
"""

import contextlib
import re
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import InvalidChunkSize, InvalidHeader, LimitRequestHeaders, NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader

# A request's line and headers in all.
MAX_HEAD_BYTES = 65_536
# What a refused caller is still sending is taken, up to here: closing on it would reset the
# connection, and the answer would be lost (RFC 9112, section 9.6).
MAX_UNREAD_BYTES = 200_000_000
# A chunk costs 2.7 us of CPU to read, however small it is: one-byte chunks 2.7 s a MB.
SMALL_CHUNK_BYTES, MAX_SMALL_CHUNKS = 64, 100_000
RECEIVE_BYTES = 65_536
# The system calls a socket writable with a third of this free, of the double that it makes of it:
# more than any answer that asks for no token.
SEND_BUFFER_BYTES = 262_144

_HOST = re.compile(r"[\w.~!$&'()*+,;=%:\[\]-]*", re.ASCII)  # RFC 3986, section 3.2
_LONE_LINE_FEED = re.compile(rb"(?<!\r)\n")


class CheckedRequest(Request):
    """A request that closes its connection where gunicorn would go on: see `should_close()`."""

    def __init__(self, cfg: Any, source: "Connection", number: int) -> None:
        super().__init__(cfg, SocketUnreader(source), source.client, number)
        host = None
        for name, value in self.headers:
            if name == "CONNECTION" and "close" in re.split(r"[\t ,]+", value.lower()):
                self.force_close()
            elif name == "HOST":
                host = value
            elif name == "X-FORWARDED-PROTO" and "https" in value.lower():
                # Only shown, in the reference page's examples. gunicorn would take two lines that
                # differ, as a CDN and a router behind it send them, for an attack.
                self.scheme = "https"
        if (host is None and self.version >= (1, 1)) or not _HOST.fullmatch(host or ""):
            raise InvalidHeader("HOST", req=self)  # RFC 9112, section 3.2
        # gunicorn would invite every body, so that who waits as RFC 9110, section 10.1.1, means it
        # would still send 8 MB for a 401.
        source.is_body_invited = not self._expected_100_continue
        self._expected_100_continue: bool = False
        if isinstance(self.body.reader, ChunkedReader):
            self.body.reader.parser = _bounded(self.body.reader.parser)

    def should_close(self) -> bool:
        """Also with a body that nobody has read: what comes of it is not the next request.

        Read after the answer, as gunicorn does, its faults would be met with a second answer,
        which a proxy that shares its connections gives to the next caller.
        """
        reader = self.body.reader
        unread = reader.parser if isinstance(reader, ChunkedReader) else reader.length
        return bool(unread) or self.body.failed or super().should_close()


def _bounded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    left = MAX_SMALL_CHUNKS
    for chunk in chunks:
        left -= len(chunk) < SMALL_CHUNK_BYTES
        if left < 0:
            raise InvalidChunkSize(b"too many small chunks")
        yield chunk


class Connection:
    """A caller's connection, and as much of its next request as has come.

    gunicorn's worker knows `sock`, `client`, `server`, `timeout` and `close()`.
    """

    def __init__(
        self, cfg: Any, sock: socket.socket, client: Any, server: Any, timeout_s: float
    ) -> None:
        # A caller who takes nothing of an answer, or a body that stalls, holds a thread. Unlike
        # Python's time limits, the system's cost no call of their own on each write.
        sock.setblocking(True)
        limit = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.cfg = cfg
        self.sock = sock
        self.client = client
        self.server = server
        self.timeout = 0.0  # of time.monotonic()
        self.has_request = False  # its whole head, or enough to refuse it
        self.is_body_invited = True
        self._requests = 0
        self._left_to_discard = MAX_UNREAD_BYTES
        self._head = bytearray()
        self._poll = select.poll()

    def close(self) -> None:
        """Close it, whatever became of it."""
        with contextlib.suppress(OSError):
            self.sock.close()

    def is_ready(self, event: int, wait_s: float = 0) -> bool:
        """Whether `event` is there, now or within `wait_s`.

        POLLOUT is: an answer of a few pages could be written without waiting for the caller.
        """
        self._poll.register(self.sock, event)
        return bool(self._poll.poll(wait_s * 1000))

    def receive(self) -> bool:
        """Whether no more is to come of the next request's head, when what has come was taken."""
        data = self._received()
        if data:
            self.take(data)
        return self.has_request or data == b""

    def discard(self) -> bool:
        """Whether no more is to come from the peer, when what has come was thrown away."""
        data = self._received()
        self._left_to_discard -= len(data or b"")
        return data == b"" or self._left_to_discard <= 0

    def _received(self) -> bytes | None:
        """What has come without waiting, None if nothing has; nothing from a peer who is done."""
        try:
            return self.sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def take(self, data: bytes) -> None:
        """Add to the next request's head."""
        head = self._head
        searched = max(0, len(head) - 3)
        head += data
        end = head.find(b"\r\n\r\n", searched)
        # gunicorn's parser refuses a lone line feed, or a first line that is too long, at once;
        # for any other unfinished head it would wait.
        self.has_request = (
            end >= 0
            or len(head) > MAX_HEAD_BYTES
            or bool(_LONE_LINE_FEED.search(head, searched))
            or (b"\n" not in head and len(head) - 2 > self.cfg.limit_request_line > 0)
        )

    def next_request(self) -> CheckedRequest:
        """The request whose head is there; raises what gunicorn would refuse it for."""
        head = self._head
        if len(head) > MAX_HEAD_BYTES and b"\r\n\r\n" not in head[: MAX_HEAD_BYTES + 4]:
            raise LimitRequestHeaders("the whole head")
        self._requests += 1  # who calls may be told before the first alone (PROXY protocol)
        return CheckedRequest(self.cfg, self, self._requests)

    def recv(self, size: int) -> bytes:
        """What gunicorn reads a request from: its head, with what came behind it, then the rest.

        It raises NoMoreData where a body ends early; gunicorn would call one of known length read.
        """
        if self.has_request:
            self.has_request = False
            head, self._head = self._head, bytearray()
            return bytes(head)
        if not self.is_body_invited:
            self.is_body_invited = True
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not (data := self.sock.recv(size)):
            raise NoMoreData(b"")
        return data
