"""A streamed answer: from the bytes of its body to our events."""

from collections.abc import Callable
from typing import Any, TypeVar

from providers.base import (
    PING,
    Event,
    EventStream,
    Finish,
    NotAnAnswer,
    ProviderError,
    StreamReader,
    Usage,
    Vendor,
    is_error,
)
from providers.http.exchange import Exchange, parse
from providers.http.failures import Failure, bad_answer
from providers.http.sse import Decoder, EventTooLong

T = TypeVar("T")


def batches(exchange: Exchange, vendor: Vendor) -> EventStream:
    """The events that were read together, and what came before a failure; raises Failure."""
    reader, decoder = vendor.reader(), Decoder()
    is_first = True
    while True:
        events: list[Event] = []
        failure = None
        try:
            read = exchange.read()
            if is_first and read.lstrip()[:1] in (b"{", b"["):
                raise _document(exchange.read_document(read), exchange)
            _take(read, decoder, reader, vendor.end_mark, events, exchange)
        except Failure as error:
            failure = error
        is_first = False
        if events:
            yield _told(events)
        if failure is not None:
            raise failure
        if events and type(events[-1]) is Finish:
            exchange.finish()
            return


def made_of(document: Any, read: Callable[[Any], T], exchange: Exchange) -> T:
    """What `read`, a vendor's, makes of a document; raises Failure for what it is not."""
    try:
        return read(document)
    except ProviderError as error:
        raise exchange.refusal(error.document) from None
    except NotAnAnswer as error:
        raise bad_answer(str(error)) from None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise bad_answer("sent an answer of an unknown shape") from None


def _told(events: list[Event]) -> list[Event]:
    """The events with one sign of life at most: where text is the last, it shows enough."""
    told = [event for event in events if event is not PING]
    is_silent = events[-1] is PING or all(type(event) is Usage for event in told)
    return [*told, PING] if is_silent else told


def _document(document: Any, exchange: Exchange) -> Failure:
    """The failure of an answer that is no stream: an error, if it is anything."""
    if is_error(document):
        return exchange.refusal(document)
    return bad_answer("sent no stream, though it was asked for one")


def _take(
    read: bytes,
    decoder: Decoder,
    reader: StreamReader,
    end_mark: str | None,
    events: list[Event],
    exchange: Exchange,
) -> None:
    """Add the events in what was read, which is b"" at the end of the body."""
    try:
        for data in decoder.feed(read) if read else [end_mark]:
            if data is None and read:
                events.append(PING)  # a comment
            elif data is None or (end_mark and data.strip() == end_mark):
                events += reader.end()
                if not events or type(events[-1]) is not Finish:
                    raise bad_answer("ended its stream before it was complete")
            else:
                document = parse(data)
                found = document is not None and made_of(document, reader.read, exchange)
                events += found or [PING]
            if events and type(events[-1]) is Finish:
                return
    except EventTooLong:
        raise bad_answer("sent an event that is too long") from None
    except UnicodeDecodeError:
        raise bad_answer("sent an event that is not UTF-8") from None
