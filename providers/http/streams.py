"""A streamed answer: from the bytes of its body to our events."""

from providers.base import (
    Event,
    EventStream,
    Finish,
    NotAnAnswer,
    ProviderError,
    StreamReader,
    Vendor,
    is_error,
)
from providers.http.exchange import Exchange, parse
from providers.http.failures import Failure, bad_answer
from providers.http.sse import Decoder, EventTooLong


def unreadable(error: Exception, exchange: Exchange) -> Exception:
    """The Failure that an error in reading an answer's documents is; other errors themselves."""
    match error:
        case Failure():
            return error
        case ProviderError():
            return exchange.refusal(error.document)
        case NotAnAnswer():
            return bad_answer(str(error))
        case EventTooLong():
            return bad_answer("sent an event that is too long")
        case UnicodeDecodeError():
            return bad_answer("sent an event that is not UTF-8")
        case LookupError() | TypeError() | AttributeError() | ValueError():
            return bad_answer("sent an answer of an unknown shape")
    return error


def batches(exchange: Exchange, vendor: Vendor) -> EventStream:
    """The events that were read together, and what came before a failure; raises Failure."""
    reader, decoder = vendor.reader(), Decoder()
    read = exchange.read()
    if read.lstrip()[:1] in (b"{", b"["):  # not a stream, but a document
        document = exchange.read_document(read)
        if is_error(document):
            raise exchange.refusal(document)
        raise bad_answer("sent no stream, though it was asked for one")
    while True:
        events: list[Event] = []
        try:
            _take(read, decoder, reader, vendor.end_mark, events)
        except Exception as error:
            if events:
                yield events
            raise unreadable(error, exchange) from None
        if events:
            yield events
            if type(events[-1]) is Finish:
                break
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
            events.append("")
        elif data.strip() == end_mark:
            read = b""
            break
        else:
            document = parse(data)
            events += (document is not None and reader.read(document)) or ("",)
            if type(events[-1]) is Finish:
                return
    if not read:
        events += reader.end()
        if not events or type(events[-1]) is not Finish:
            raise NotAnAnswer("ended its stream before it was complete")
