"""A provider's HTTP response, read as it comes (RFC 9112)."""

import re
from http.client import HTTPResponse, IncompleteRead

MAX_LINE_BYTES = 65_536
# An extension after the size means nothing here; 15 digits are more than any body has bytes.
_SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,15})[ \t]*(;.*)?")


class ProviderResponse(HTTPResponse):
    """http.client's response, whose read1() gives all the chunks that came, not only the first.

    Providers put each event into a chunk of its own. Those that come together shall be one read
    here, and one write to the caller. Other ways to read the body must not be mixed with it.
    """

    _decoder: "ChunkedDecoder | None" = None

    def begin(self) -> None:
        """Read the final head, past all interim ones: http.client knows 100 only.

        Taken for the answer, another (103, say) would leave the real one to the next caller.
        """
        super().begin()
        while 101 < self.status < 200:
            self.headers = None  # type: ignore[assignment]  # else it would do nothing
            super().begin()

    def read1(self, n: int = -1) -> bytes:
        """At most `n` bytes of the body, waiting for the first only; b"" at its end."""
        if self.fp is None or not self.chunked:
            return super().read1(n)
        decoder = self._decoder = self._decoder or ChunkedDecoder()
        content = b""
        while not content and not decoder.has_ended:
            if decoder.is_broken:
                raise IncompleteRead(b"")
            self.fp.peek(1)  # waits with the buffer that is there; read1() would make one more
            read = self.fp.read1(n)
            if not read:
                raise IncompleteRead(b"")
            content = decoder.feed(read)
        if decoder.has_ended:
            self.close()
        return content


class ChunkedDecoder:
    """The content of a chunked body (section 7.1), from reads that may end anywhere."""

    has_ended = False
    is_broken = False

    def __init__(self) -> None:
        self._content_left = 0
        self._line = b""
        self._is_after_content = False
        self._is_in_trailers = False

    def feed(self, read: bytes) -> bytes:
        """The content in `read`, up to the end of the body or to what is not chunked."""
        content, at = [], 0
        while at < len(read) and not self.has_ended and not self.is_broken:
            if self._content_left:
                content.append(read[at : at + self._content_left])
                at += len(content[-1])
                self._content_left -= len(content[-1])
            else:
                end = read.find(b"\n", at) + 1
                self._line += read[at : end or len(read)]
                at = end or len(read)
                if len(self._line) > MAX_LINE_BYTES:
                    self.is_broken = True
                elif end:
                    self._take(self._line.removesuffix(b"\n").removesuffix(b"\r"))
                    self._line = b""
        return b"".join(content)

    def _take(self, line: bytes) -> None:
        if self._is_in_trailers:
            self.has_ended = not line
        elif self._is_after_content:
            self._is_after_content = False
            self.is_broken = bool(line)
        elif size := _SIZE.fullmatch(line):
            self._content_left = int(size[1], 16)
            self._is_after_content = True
            self._is_in_trailers = not self._content_left
        else:
            self.is_broken = True
