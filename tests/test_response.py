"""A provider's responses at the level of HTTP: cut anywhere, or wrong."""

import io
import re
import socket
from http.client import HTTPResponse, IncompleteRead
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.http.response import ProviderResponse
from tests.upstream import CHUNKED, in_chunks

BODY = (
    b"5\r\nHello\r\n"
    b"000009\r\n\r\nlo\r\n5\r\n\r\n"  # content that looks like framing
    b'3;name=value;flag;quoted="a;b"\r\nabc\r\n'
    b"1 \t\r\n\n\r\n"
    b"2\n\xff\x00\r\n"  # RFC 9112, section 2.2: a lone LF ends a line too
    b"0;last\r\nTrailer: 5\r\nAnother:\r\n\r\n"
)
# Where a cut leaves what http.client takes for the last chunk's line.
LIKE_THE_END = re.compile(rb"\n0+(;.*)?\r?$|\n0;last\r\n", re.DOTALL)
CONTENT = b"Hello\r\nlo\r\n5\r\nabc\n\xff\x00"


class Wire(socket.socket):
    """What stands in for a socket: each read of it brings one of these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    def makefile(self, *_args: object, buffering: int = -1, **_more: object) -> Any:
        raw = Pieces(self.pieces)
        return io.BufferedReader(raw) if buffering else raw


class Pieces(io.RawIOBase):
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self.pieces.pop(0) if self.pieces else b""
        if len(piece) > len(buffer):
            self.pieces.insert(0, piece[len(buffer) :])
        taken = min(len(piece), len(buffer))
        buffer[:taken] = piece[:taken]
        return taken


def answer(*pieces: bytes) -> ProviderResponse:
    """An answer whose head has been read."""
    begun = ProviderResponse(Wire(CHUNKED, *pieces))
    begun.begin()
    return begun


def reads(*pieces: bytes) -> list[bytes]:
    """What each read of such a body brings, up to its end."""
    begun = answer(*pieces)
    found = list(iter(lambda: begun.read1(65_536), b""))
    assert begun.isclosed(), "the connection would not be used again"
    return found


def as_http_client_reads_it(body: bytes) -> bytes:
    begun = HTTPResponse(Wire(CHUNKED + body))
    begun.begin()
    return begun.read()


def test_what_comes_together_is_read_together() -> None:
    assert reads(BODY) == [CONTENT]
    assert reads(b"1\r\na\r\n2\r\nbc\r\n", b"1\r\nd\r\n0\r\n\r\n") == [b"abc", b"d"]


def test_content_is_there_before_its_chunk_is_complete() -> None:
    begun = answer(b"ff\r\nHel", b"lo")
    assert begun.read1(65_536) == b"Hel"
    assert begun.read1(65_536) == b"lo"


def test_the_rest_of_a_chunk_is_read_with_what_came_with_it() -> None:
    begun = answer(b"5\r\nHel", b"lo\r\n1\r\n!\r\n")
    assert begun.read1(65_536) == b"Hel"
    assert begun.read1(65_536) == b"lo!"


def test_a_read_may_end_anywhere() -> None:
    for first in range(len(BODY) + 1):
        for second in range(first, len(BODY) + 1):
            cuts = [0, first, second, len(BODY)]
            pieces = [BODY[a:b] for a, b in pairwise(cuts) if a < b]
            assert b"".join(reads(*pieces)) == CONTENT, (first, second)
    assert b"".join(reads(*(bytes([byte]) for byte in BODY))) == CONTENT


def test_no_more_is_read_than_was_asked_for() -> None:
    begun = answer(BODY)
    found = list(iter(lambda: begun.read1(4), b""))
    assert max(map(len, found)) <= 4
    assert b"".join(found) == CONTENT


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.data())
def test_it_reads_what_http_client_reads(chunks: list[bytes], data: st.DataObject) -> None:
    body = in_chunks(*chunks)
    places = st.integers(min_value=0, max_value=len(body))
    cuts = sorted({0, len(body), *data.draw(st.lists(places, max_size=10))})
    content = b"".join(reads(*(body[a:b] for a, b in pairwise(cuts))))
    assert content == b"".join(chunks) == as_http_client_reads_it(body)


def test_a_closed_answer_has_nothing_more() -> None:
    begun = answer(BODY)
    begun.close()
    assert begun.read1(65_536) == b""


def test_a_body_of_a_known_length_is_read_as_before() -> None:
    begun = ProviderResponse(Wire(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", b"5\r\nmore"))
    begun.begin()
    assert (begun.read1(65_536), begun.read1(65_536)) == (b"5\r\n", b"")


def test_a_chunk_that_has_only_begun_is_not_waited_for() -> None:
    """Its text would hold back the one that is there."""
    whole = b"3\r\nabc\r\n2\r\nde\r\n"
    for length in range(len(b"3\r\nabc"), len(whole)):
        wire = Wire(CHUNKED + whole[:length], whole[length:] + b"0\r\n\r\n")
        begun = ProviderResponse(wire)
        begun.begin()
        assert begun.read1(65_536).startswith(b"abc")
        assert len(wire.pieces) == 1, length


@pytest.mark.parametrize(
    "length", [n for n in range(len(BODY)) if not LIKE_THE_END.search(BODY[:n])]
)
def test_a_body_that_is_cut_is_no_whole_one(length: int) -> None:
    with pytest.raises(IncompleteRead):
        reads(*filter(None, [BODY[:length]]))


@pytest.mark.parametrize(
    "body", [b"\r\n", b"x\r\n", b"1 1\r\na\r\n", b"1\r\na 1\r\nb\r\n"], ids=repr
)
def test_what_is_not_chunked_is_refused(body: bytes) -> None:
    with pytest.raises(IncompleteRead):
        reads(body, b"\r\n0\r\n\r\n")


def test_what_came_before_a_fault_is_read_first() -> None:
    wire = Wire(CHUNKED + b"3\r\nabc\r\nzz\r\n", b"0\r\n\r\n")
    begun = ProviderResponse(wire)
    begun.begin()
    assert begun.read1(65_536) == b"abc"
    with pytest.raises(IncompleteRead):
        begun.read1(65_536)
    assert wire.pieces, "it waited for more of what is broken"


@pytest.mark.parametrize("size", [b"3", b"03", b"0" * 40 + b"3", b"3 ", b"3;x"])
def test_a_size_may_be_written_in_any_way(size: bytes) -> None:
    assert reads(size + b"\r\nabc\r\n0000\r\n\r\n") == [b"abc"]


def test_interim_answers_are_passed_over() -> None:
    interim = b"HTTP/1.1 %d Soon\r\nlink: <x>\r\n\r\n"
    begun = ProviderResponse(Wire(interim % 100, interim % 103, interim % 102, CHUNKED, BODY))
    begun.begin()
    assert (begun.status, begun.headers["link"], begun.read1(65_536)) == (200, None, CONTENT)
