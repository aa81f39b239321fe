"""The usage records in a log, whatever Heroku, Docker or journald wrote around each."""

import gzip
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

_GZIP = b"\x1f\x8b"
_decode = json.JSONDecoder().raw_decode
_LONGEST_LINE = 1 << 20  # a record is below 4 KiB, and journald writes five bytes for one


def log_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a log, compressed or not; of one without end only the beginning.

    Raises OSError, EOFError or zlib.error where a file cannot be read on.
    """
    log = io.BufferedReader(cast(io.RawIOBase, file))
    if log.peek(2)[:2] == _GZIP:
        log = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=log)))
    is_rest = False
    while line := log.readline(_LONGEST_LINE):
        if not is_rest:
            yield line
        is_rest = not line.endswith(b"\n")


def usage_records(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The usage records among the lines; others, and those that were cut, are passed over."""
    for line in lines:
        # Parsing is what costs time. A message as an array of bytes does not show its words.
        if b"usage" in line or (b'"MESSAGE"' in line and b"[" in line):
            record = _record(line)
            if record.get("event") == "usage":
                yield record


def _record(line: bytes) -> dict[str, Any]:
    document = _document(line.decode(errors="replace"))
    if "event" in document:
        return document
    message = document.get("log") or document.get("MESSAGE")  # Docker's, journald's
    if isinstance(message, list):
        try:
            message = bytes(message).decode(errors="replace")
        except (ValueError, TypeError):
            return {}
    return _document(message) if isinstance(message, str) else {}


def _document(text: str) -> dict[str, Any]:
    """The JSON object that the line holds, or an empty one."""
    # Where a writer was cut off, the next one's record stands on the same line.
    for start in (text.find("{"), text.rfind('{"event"')):
        try:
            document: dict[str, Any] = _decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
        return document
    return {}
