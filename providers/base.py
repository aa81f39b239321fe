"""What every provider can do, and the values that cross between it and the service."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.watchdog import Watch


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request that fits the schema, with the model's upstream name; temperature is 0 to 2.

    Its messages have a role and a content, and nothing that the schema does not name.
    """

    model: str
    messages: list[dict[str, Any]]
    temperature: float
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request in the provider's own form, and the parameters that had to be changed for it."""

    body: dict[str, Any]
    adjusted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """One call on its way: what may cut it short, who asks, and what became of it upstream.

    `adjusted` has the parameters that were left out or changed for the provider; `cause` says in a
    word why the last attempt failed (`dns`, `refused`, `tls`, `timeout`, …).
    """

    watch: Watch
    caller: str = ""
    request_id: str = ""
    attempts: int = 0
    provider_request_id: str | None = None
    upstream_status: int | None = None
    cause: str | None = None
    adjusted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Start:
    """The head of an answer; `created` is in Unix seconds."""

    id: str
    model: str
    created: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer, its reason in OpenAI's words; None for what was not sent."""

    reason: str | None
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A full answer."""

    start: Start
    text: str
    finish: Finish


class Beat(enum.Enum):
    """A sign of life that carries no text."""

    PING = enum.auto()


# What a stream is made of, in this order: one Start, any number of texts (plain str), one Finish.
# Beats come anywhere, also first; a Usage tells what is known of it before the end, and is
# overridden by the next. They come in lists: all that one read brought.
Event = Start | str | Beat | Usage | Finish
# Closing it ends the upstream request.
EventStream = Generator[list[Event], None, None]


# What every client's JSON reader holds exactly (RFC 8259, section 6).
MAX_COUNT = 2**53 - 1


def text(value: Any) -> str:
    """`value`, from a provider; raises TypeError if it is no string."""
    if not isinstance(value, str):
        raise TypeError
    return value


def count(value: Any) -> int:
    """`value`, from a provider; raises TypeError if it is no number of things."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:  # isinstance() would let True pass
        raise TypeError
    return value


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
