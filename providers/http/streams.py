"""A streamed answer: from the bytes of its body to our events."""

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def read_as_answer(exchange: Exchange) -> Iterator[None]:
    """What reading documents raises inside comes out as the Failure that it means."""
    try:
        yield
    except ProviderError as error:
        raise exchange.refusal(error.document) from None
    except NotAnAnswer as error:
        raise bad_answer(str(error)) from None
    except EventTooLong:
        raise bad_answer("sent an event that is too long") from None
    except UnicodeDecodeError:
        raise bad_answer("sent an event that is not UTF-8") from None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise bad_answer("sent an answer of an unknown shape") from None


def batches(exchange: Exchange, vendor: Vendor) -> EventStream:
    """The events that were read together, and what came before a failure; raises Failure."""
    reader, decoder = vendor.reader(), Decoder()
    read = exchange.read()
    if read.lstrip()[:1] in (b"{", b"["):  # not a stream, but a document
        document = exchange.read_document(read)
        if is_error(document):
            raise exchange.refusal(document)
        raise bad_answer("sent no stream, though it was asked for one")
    is_done = False
    while not is_done:
        events: list[Event] = []
        failure = None
        try:
            with read_as_answer(exchange):
                _take(read, decoder, reader, vendor.end_mark, events)
        except Failure as error:
            failure = error
        is_done = bool(events) and type(events[-1]) is Finish
        if events:
            yield _told(events)
        if failure is not None:
            raise failure
        if not is_done:
            read = exchange.read()
    exchange.finish()


def _take(
    read: bytes,
    decoder: Decoder,
    reader: StreamReader,
    end_mark: str | None,
    events: list[Event],
) -> None:
    """Add the events in what was read, which is b"" at the end of the body."""
    for data in decoder.feed(read):
        if data is None:  # a comment
            events.append(PING)
        elif end_mark is not None and data.strip() == end_mark:
            read = b""
            break
        else:
            document = parse(data)
            events += (document is not None and reader.read(document)) or (PING,)
            if type(events[-1]) is Finish:
                return
    if not read:
        events += reader.end()
        if not events or type(events[-1]) is not Finish:
            raise NotAnAnswer("ended its stream before it was complete")


def _told(events: list[Event]) -> list[Event]:
    """The events with one sign of life at most: where text is the last, it shows enough."""
    told = [event for event in events if event is not PING]
    is_silent = events[-1] is PING or all(type(event) is Usage for event in told)
    return [*told, PING] if is_silent else told
