"""A caller's connection, and its requests as this service reads them.

A request's head is taken in without waiting, so that a connection needs a thread only when its
head is complete.
"""

import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import InvalidChunkSize, InvalidHeader, NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

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

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
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

    def set_body_reader(self) -> None:
        super().set_body_reader()
        self._is_body_invited = not self._expected_100_continue
        # gunicorn would invite every body, so that who waits as RFC 9110, section 10.1.1, means it
        # would still send 8 MB for a 401.
        self._expected_100_continue: bool = False
        reader = self.body.reader
        if isinstance(reader, ChunkedReader):
            reader.parser = _bounded(reader.parser, self._invite_body)
        else:
            self.body.reader = WholeReader(reader.unreader, reader.length, self._invite_body)

    def _invite_body(self) -> None:
        if not self._is_body_invited:
            self._is_body_invited = True
            self.unreader.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def should_close(self) -> bool:
        """Also with a body that nobody has read: what comes of it is not the next request.

        gunicorn would read it after the answer, and meet its faults with a second answer, which a
        proxy that shares its connections gives to the next caller.
        """
        reader = self.body.reader
        unread = reader.length if isinstance(reader, WholeReader) else reader.parser
        return bool(unread) or self.body.failed or super().should_close()


class WholeReader(LengthReader):
    """A body of known length, which fails where it ends early; gunicorn would call it read."""

    def __init__(self, unreader: Any, length: int, invite: Callable[[], None]) -> None:
        super().__init__(unreader, length)
        self._invite = invite

    def read(self, size: int) -> bytes:
        wanted = min(size, self.length)
        if wanted:
            self._invite()
        data: bytes = super().read(size)
        if len(data) < wanted:
            raise NoMoreData(b"")
        return data


def _bounded(chunks: Iterator[bytes], invite: Callable[[], None]) -> Iterator[bytes]:
    invite()
    left = MAX_SMALL_CHUNKS
    for chunk in chunks:
        left -= len(chunk) < SMALL_CHUNK_BYTES
        if left < 0:
            raise InvalidChunkSize(b"too many small chunks")
        yield chunk


class Parser(RequestParser):
    """gunicorn's parser, for a CheckedRequest."""

    mesg_class = CheckedRequest


class Connection(TConn):
    """A caller's connection, and as much of its next request as has come."""

    def __init__(
        self, cfg: Any, sock: socket.socket, client: Any, server: Any, timeout_s: float
    ) -> None:
        super().__init__(cfg, sock, client, server)
        # A caller who takes nothing of an answer, or a body that stalls, holds a thread. Unlike
        # Python's time limits, the system's cost no call of their own on each write.
        limit = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.parser = Parser(cfg, sock, client)
        self.data_ready = True  # or gunicorn would wait for it in a thread
        self.has_request = False  # its whole head, or enough to refuse it
        self.is_head_too_large = False
        self.unread_bytes = MAX_UNREAD_BYTES
        self._head = bytearray()
        self._room = select.poll()
        self._room.register(sock, select.POLLOUT)

    def begin_request(self) -> None:
        """Look for another request in what has come with the last one."""
        self.has_request = False
        if data := self.parser.unreader.take_buffered():
            self._take(data)

    def receive(self) -> bool:
        """Whether the connection is still open, when what has come of the head was taken."""
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, TimeoutError):
            return True
        except OSError:
            return False
        self._take(data)
        return bool(data)

    def takes_answers(self) -> bool:
        """Whether an answer of a few pages could be written without waiting for the caller."""
        return bool(self._room.poll(0))

    def discard(self) -> bool:
        """Whether the peer may send more, when what has come was thrown away."""
        try:
            read = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.unread_bytes -= len(read)
        return bool(read) and self.unread_bytes > 0

    def _take(self, data: bytes) -> None:
        head = self._head
        searched = max(0, len(head) - 3)
        head += data
        end = head.find(b"\r\n\r\n", searched)
        self.is_head_too_large = (len(head) if end < 0 else end) > MAX_HEAD_BYTES
        # gunicorn's parser refuses a lone line feed, or a first line that is too long, at once;
        # for any other unfinished head it would wait.
        if (
            end >= 0
            or self.is_head_too_large
            or _LONE_LINE_FEED.search(head, searched)
            or (b"\n" not in head and len(head) - 2 > self.cfg.limit_request_line > 0)
        ):
            self.parser.unreader.unread(bytes(head))
            head.clear()
            self.has_request = True
