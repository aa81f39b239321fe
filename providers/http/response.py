"""A provider's HTTP response, read as it comes (RFC 9112)."""

import io
import re
from http.client import HTTPResponse, IncompleteRead
from typing import Any

# All that stands before the content of another chunk, and its first byte. (A size of 0 is left
# to the read that asks for what follows the text: trailers may have to be waited for.)
_NEXT_CHUNK = re.compile(rb"\r\n0*[1-9A-Fa-f][^\n]{0,100}\n.", re.DOTALL)


class ProviderResponse(HTTPResponse):
    """http.client's response, whose read1() gives all the chunks that came, not only the first.

    Providers put each event into a chunk of its own. Those that come together shall be one read
    here, and one write to the caller.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        self._socket_reads = _SocketReads(sock)
        super().__init__(self._socket_reads, *args, **kwargs)  # type: ignore[arg-type]

    def begin(self) -> None:
        """Read the final head, past all interim ones: http.client knows 100 only.

        Taken for the answer, another (103, say) would leave the real one to the next caller.
        """
        super().begin()
        while 101 < self.status < 200:
            self.headers = None  # type: ignore[assignment]  # else it would do nothing
            super().begin()

    def read1(self, n: int = -1) -> bytes:
        """At most `n` bytes of the body, waiting for the first only; b"" at its end.

        Raises IncompleteRead where it ends too early, also for a body of known length.
        """
        if self.fp is not None and self.chunked and self.chunk_left:
            # Waits as the read would, but with a buffer to fill: the read would take the rest of
            # a chunk alone, and leave what came with it to the next.
            self.fp.peek()
        read1 = super().read1
        content = read1(n)
        # All that is looked at and read from here on has been received: nothing can block.
        self._socket_reads.are_shut = True
        try:
            while (
                self.chunk_left == 0  # one has been read to its end
                and _NEXT_CHUNK.match(self.fp.peek())
                and (n < 0 or len(content) < n)
            ):
                content += read1(n - len(content) if n >= 0 else n)
        finally:
            self._socket_reads.are_shut = False
        if self.length == 0:  # http.client closes it at the next read, or never (#113199)
            self.close()
        elif self.length and not content:
            raise IncompleteRead(b"", self.length)
        return content


class _SocketReads(io.RawIOBase):
    """The socket as a buffer reads it, or nothing at all while it is shut."""

    are_shut = False

    def __init__(self, sock: Any) -> None:
        self._raw = sock.makefile("rb", buffering=0)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What http.client reads from: it asks its socket for it."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        read: int | None = None if self.are_shut else self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        super().close()
        self._raw.close()
