"""What every provider can do, and the values that cross between it and the service."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from core.settings import Settings
from core.watchdog import Watch


@dataclass(slots=True)
class ChatRequest:
    """A request that fits the schema, with the model's upstream name; temperature is 0 to 2.

    Its messages have a role and a content, and nothing that the schema does not name.
    """

    model: str
    messages: list[dict[str, Any]]
    temperature: float
    max_tokens: int | None


@dataclass(slots=True)
class Prepared:
    """A request in the provider's own form, and the parameters that had to be changed for it."""

    body: dict[str, Any]
    adjusted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One call on its way: what may cut it short, who asks, and what became of it upstream.

    `adjusted` has the parameters that the model got otherwise than asked, None for one left out;
    `cause` says in a word why the last attempt failed (`dns`, `refused`, `tls`, `cut`, …).
    """

    watch: Watch
    caller: str = ""
    request_id: str = ""
    attempts: int = 0
    provider_request_id: str | None = None
    upstream_status: int | None = None
    cause: str | None = None
    adjusted: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Usage:
    """Tokens as the provider counted them; None for what it has not said.

    `cached_tokens` are part of `prompt_tokens`, `reasoning_tokens` of `completion_tokens`.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def total_tokens(self) -> int | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class Start:
    """The head of an answer; `created` is in Unix seconds."""

    id: str
    model: str
    created: int


@dataclass(slots=True)
class Finish:
    """The end of an answer, its reason in OpenAI's words; None for what was not sent."""

    reason: str | None
    usage: Usage | None


@dataclass(slots=True)
class Answer:
    """A full answer."""

    start: Start
    text: str
    finish: Finish


# What a stream is made of, in this order: one Start, any number of texts (plain str), one Finish.
# Empty texts are signs of life, and come anywhere, also first; a Usage tells what is known before
# the end, and the next one replaces it. They come in lists: all that one read brought, and never
# an empty one.
Event = Start | str | Usage | Finish
# Closing it ends the upstream request.
EventStream = Generator[list[Event], None, None]


class Provider(ABC):
    """One way to answer a chat request. All methods raise ServiceError, or CallerLeft."""

    name: str

    @abstractmethod
    def prepare(self, request: ChatRequest) -> Prepared:
        """The provider's own form of `request`; invalid_input for what it never accepts."""

    @abstractmethod
    def complete(self, body: dict[str, Any], call: Call) -> Answer:
        """The full answer to a prepared body."""

    @abstractmethod
    def stream(self, body: dict[str, Any], call: Call) -> EventStream:
        """The answer's events as they come."""


class ProviderError(Exception):
    """`document`, which came where an answer should be, is an error."""

    def __init__(self, document: Any) -> None:
        super().__init__()
        self.document = document


class NotAnAnswer(ValueError):
    """What came is no answer; the text goes on from the provider's name."""


class StreamReader(ABC):
    """One stream, turned into our events one parsed event at a time.

    Raises ProviderError, or LookupError, TypeError, AttributeError or ValueError for what has
    not the expected shape.
    """

    @abstractmethod
    def read(self, document: Any) -> list[Event]:
        """The events in one server-sent event's document; none where it only shows life."""

    @abstractmethod
    def end(self) -> list[Event]:
        """The Finish, where the stream is complete as it ends here and has told none yet."""


class Vendor(ABC):
    """A provider behind HTTP: where it is, and how to write to it and read it."""

    name: ClassVar[str]
    label: ClassVar[str]
    request_id_header: ClassVar[str]
    # Where the provider takes our own request's id, if it does.
    client_request_id_header: ClassVar[str | None] = None
    # What makes a body one that asks for a stream, and the data (if any) that ends the stream.
    stream_fields: ClassVar[Mapping[str, Any]] = {"stream": True}
    end_mark: ClassVar[str | None] = None
    # The parameters that a model may refuse, each with the other name it then goes by, if any.
    optional: ClassVar[Mapping[str, str | None]]

    # Where its models are listed, and where in that URL's query the last id of a page goes.
    models_url: str
    next_page: ClassVar[str]

    url: str
    key: str | None
    headers: Mapping[str, str]  # its own, the key's among them

    @abstractmethod
    def __init__(self, settings: Settings) -> None: ...

    @abstractmethod
    def prepare(self, request: ChatRequest) -> Prepared:
        """As Provider.prepare()."""

    @abstractmethod
    def answer(self, document: Any) -> Answer:
        """A full answer's document, read; raises as StreamReader does."""

    @abstractmethod
    def reader(self) -> StreamReader:
        """What reads one stream."""


# What every client's JSON reader holds exactly (RFC 8259, section 6).
MAX_COUNT = 2**53 - 1


def text(value: Any) -> str:
    """`value`, from a provider, None being no text; raises TypeError for what is neither."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value


def count(value: Any) -> int | None:
    """`value`, from a provider, a number of things, or None; raises TypeError for others."""
    if type(value) is float and value.is_integer():  # isinstance() would let True pass for 1
        value = int(value)
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
        raise TypeError
    return value


def is_error(document: Any) -> bool:
    """Whether a document is an error, in any form that providers and those before them write."""
    if isinstance(document, list):
        return bool(document) and is_error(document[0])
    if not isinstance(document, dict):
        return False
    if document.get("error") or "error" in (document.get("object"), document.get("type")):
        return True
    # An event of a type that nobody knows yet may have words, too, but no code.
    if "type" in document and "code" not in document:
        return False
    message = document.get("message") or document.get("msg")
    has_words = isinstance(message, str) or (isinstance(message, dict) and "detail" in message)
    return bool(has_words or document.get("detail") or document.get("errors"))
