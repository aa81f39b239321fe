"""Server-sent events out of bytes, parsed as the HTML standard has it (chapter 9.2)."""

from collections.abc import Iterator

MAX_EVENT_BYTES = 1_000_000
_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """An event of more than MAX_EVENT_BYTES: no provider that means well sends one."""


class Decoder:
    """The data of each event, and None for each comment, from reads that may end anywhere.

    It works on bytes, because a read may end inside a character, and because lines end with LF,
    CRLF or CR and nothing else: str.splitlines() would also split at U+2028 and its friends,
    which are legal inside JSON.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, read: bytes) -> Iterator[str | None]:
        """What `read` completes, one by one; what it leaves open waits for more.

        To be taken to its end before the next read is fed. Raises EventTooLong, and
        UnicodeDecodeError for what is not UTF-8.
        """
        for line in self._lines(read):
            if line.startswith(b"data:") or line == b"data":
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
                self._data_bytes += len(self._data[-1]) + 1
            elif not line:
                data = b"\n".join(self._data).decode()
                self._data.clear()
                self._data_bytes = 0
                if data:
                    yield data
            elif line.startswith(b":"):
                yield None
        if len(self._rest) + self._data_bytes > MAX_EVENT_BYTES:
            raise EventTooLong

    def _lines(self, read: bytes) -> list[bytes]:
        """The lines that `read` completes."""
        if self._after_cr and read:
            read = read.removeprefix(b"\n")
            self._after_cr = False
        end_of_lines = max(read.rfind(b"\n"), read.rfind(b"\r")) + 1
        lines = read[:end_of_lines].splitlines()
        if lines:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
            self._after_cr = read.endswith(b"\r")
            if self._at_start:
                self._at_start = False
                lines[0] = lines[0].removeprefix(_BOM)
        self._rest += read[end_of_lines:]
        return lines
