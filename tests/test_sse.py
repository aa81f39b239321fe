"""Server-sent events as they come from a provider: bytes, cut anywhere."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.http.sse import MAX_EVENT_BYTES, Decoder, EventTooLong

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
NASTY = (
    "\ufeffdata: first\r\n\r\n"  # a BOM, and CRLF
    ": a comment\n: data: not data\n\n"
    'event: message\ndata: {"text": "é漢\U0001f600"}\n\n'
    "data:no space\r\rdata:  two spaces\r\r"
    "data: one\ndata\ndata:\ndata: four\n\n"
    "id: 7\nretry: 10\nunknown: x\nno colon at all\n\n"
    f"data: {SEPARATORS} in one line\r\n\n"
    "data: mixed\r\n\ndata: ends\n\r\ndata: more\r\r\n"
    "data: \n\n"
    "\n\r\n\r"
    "database: not data\n data: not data\n\n"
    "data: last\n\ndata: cut off by the end of the body\n"
).encode()
EVENTS = [
    "first",
    '{"text": "é漢\U0001f600"}',
    "no space",
    " two spaces",
    "one\n\n\nfour",
    f"{SEPARATORS} in one line",
    "mixed",
    "ends",
    "more",
    "last",
]
SHORT = "\ufeffdata: é\r\n\n:c\r\rdata:\u2028\r\rdata: a\r\ndata: b\r\n\ndata:c\n\n".encode()
SHORT_EVENTS = ["é", "\u2028", "a\nb", "c"]


def decoded(*reads: bytes) -> list[str]:
    decoder = Decoder()
    return [event for read in reads for event in decoder.feed(read) if event is not None]


def cut(stream: bytes, *offsets: int) -> list[bytes]:
    return [stream[start:end] for start, end in pairwise([0, *offsets, len(stream)])]


def test_a_nasty_stream_in_one_read_gives_its_events() -> None:
    assert decoded(NASTY) == EVENTS


def test_a_nasty_stream_cut_at_any_offset_gives_the_same_events() -> None:
    for offset in range(len(NASTY) + 1):
        assert decoded(*cut(NASTY, offset)) == EVENTS, offset


def test_a_stream_cut_at_any_two_offsets_gives_the_same_events() -> None:
    for first in range(len(SHORT) + 1):
        for second in range(first, len(SHORT) + 1):
            assert decoded(*cut(SHORT, first, second)) == SHORT_EVENTS, (first, second)


def test_a_stream_that_comes_byte_by_byte_gives_the_same_events() -> None:
    assert decoded(*cut(NASTY, *range(1, len(NASTY)))) == EVENTS


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, len(NASTY))))
def test_a_nasty_stream_cut_at_random_offsets_gives_the_same_events(offsets: list[int]) -> None:
    assert decoded(*cut(NASTY, *sorted(offsets))) == EVENTS


LINES = st.sampled_from(["data: a", "data:b", "data", ": c", "", "event: é", "data: \u2028", "x"])
ENDS = st.sampled_from(["\n", "\r", "\r\n"])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(LINES, ENDS)), st.lists(st.integers(0, 200)))
def test_random_streams_are_read_as_the_html_standard_says(
    parts: list[tuple[str, str]], offsets: list[int]
) -> None:
    stream = "".join(line + end for line, end in parts)
    data = stream.encode()
    offsets = sorted(min(offset, len(data)) for offset in offsets)
    assert decoded(*cut(data, *offsets)) == as_the_standard_says(stream)
    assert decoded(*cut(data, *range(1, len(data)))) == as_the_standard_says(stream)


def as_the_standard_says(stream: str) -> list[str]:
    """HTML standard, section 9.2.6, word for word."""
    events, buffer = [], ""
    for line in re.split(r"\r\n|\r|\n", stream)[:-1]:
        name, _colon, value = line.partition(":")
        if line == "":
            if buffer:
                events.append(buffer.removesuffix("\n"))
            buffer = ""
        elif name == "data":
            buffer += value.removeprefix(" ") + "\n"
    return [event for event in events if event]


def test_comments_are_told_where_they_stand() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b": one\n\ndata: a\n: two\n:\n\ndata: b\n\n: th")) == [
        None,
        None,
        None,
        "a",
        "b",
    ]
    assert list(decoder.feed(b"ree\n")) == [None]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_an_event_is_there_as_soon_as_its_empty_line_is(end: str) -> None:
    decoder = Decoder()
    assert list(decoder.feed(f"data: a{end}".encode())) == []
    assert list(decoder.feed(end.encode())) == ["a"]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_separator_that_is_legal_in_json_splits_no_line(separator: str) -> None:
    document = json.dumps({"text": f"a{separator}b"}, ensure_ascii=False)
    assert decoded(f"data: {document}\n\n".encode()) == [document]


@pytest.mark.parametrize("tail", ["data: cut", "data: cut\n", "data: cut\r\n", "\ufeff", ":"])
def test_an_event_cut_off_by_the_end_of_the_body_is_dropped(tail: str) -> None:
    assert decoded(b"data: whole\n\n", tail.encode()) == ["whole"]


def test_a_bom_is_dropped_at_the_very_start_only() -> None:
    assert decoded("\ufeffdata: a\n\n\ufeffdata: b\n\n".encode()) == ["a"]


def test_a_bom_inside_the_data_stays() -> None:
    assert decoded("data: \ufeffa\n\n".encode()) == ["\ufeffa"]


@pytest.mark.parametrize("stream", [b"event: ping\n\n", b": ping\n\n", b"data\n\n", b"data:\n\n"])
def test_an_event_without_data_is_no_event(stream: bytes) -> None:
    assert decoded(stream) == []


def test_an_event_of_almost_the_limit_is_read() -> None:
    text = "x" * (MAX_EVENT_BYTES - 100)
    assert decoded(f"data: {text}\n\n".encode()) == [text]


@pytest.mark.parametrize("line", [b"data: " + b"x" * 10_000, b"data: " + b"x" * 10_000 + b"\n"])
def test_an_event_longer_than_the_limit_is_refused(line: bytes) -> None:
    decoder = Decoder()
    with pytest.raises(EventTooLong):  # noqa: PT012 - which of the reads is one too many is open
        for _ in range(2 * MAX_EVENT_BYTES // len(line)):
            list(decoder.feed(line))


def test_many_events_may_be_longer_than_the_limit_together() -> None:
    event = b"data: " + b"x" * 100_000 + b"\n\n"
    assert len(decoded(*[event] * 20)) == 20


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        decoded(b"data: \xff\n\n")
