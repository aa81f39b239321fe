"""One request for a chat completion, from its bytes to what is to be done."""

import contextlib
import gc
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import schemas
from core import errors
from core.errors import ServiceError

# A parsed body takes up to forty times its bytes, and holds the interpreter meanwhile, so those
# that are larger than this are parsed one at a time.
LARGE_BODY_BYTES = 200_000
# What clients who can only set headers send in place of fields of the body.
FIELD_HEADERS = {"brand_id": "X-Brand-Id", "requested_by": "X-Requested-By"}
_IN_ENVIRON = {
    field: f"HTTP_{header.upper().replace('-', '_')}" for field, header in FIELD_HEADERS.items()
}
MAX_TOKENS = "max_tokens"
# So many ignored names are told of: a body can have a million.
MAX_IGNORED = 200
# OpenAI's newer word for it, which its SDKs send in its place.
NEWER_MAX_TOKENS = "max_completion_tokens"

_large_bodies = threading.Lock()


@dataclass(slots=True)
class ChatBody:
    """What a request says: the fields that the schema names, valid and with their defaults.

    `asked` are the names of the parameters that the caller set, `ignored` those that nothing is
    done with.
    """

    fields: dict[str, Any]
    asked: frozenset[str]
    ignored: list[str]
    include_usage: bool


def fields_in_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The fields that stand in the headers of a WSGI request."""
    # WSGI hands headers over as latin-1; clients write names in UTF-8.
    return {
        name: environ[header].encode("latin-1", "replace").decode("utf-8", "replace")
        for name, header in _IN_ENVIRON.items()
        if environ.get(header)
    }


def read(body: bytes, fallbacks: Mapping[str, str]) -> ChatBody:
    """The request in `body`, with `fallbacks` for fields that it lacks; raises ServiceError."""
    try:
        if len(body) <= LARGE_BODY_BYTES:
            return _read(body, fallbacks)
        with _one_large_body():
            return _read(body, fallbacks)
    except schemas.NotJSON as error:
        raise ServiceError(errors.INVALID_JSON, f"{error}.") from None


@contextlib.contextmanager
def _one_large_body() -> Iterator[None]:
    """A turn to parse a large body, which is one long step of C that nobody can interrupt.

    Looking for circles among a million new objects, none of which can be in one, made that step
    three to five times as long.
    """
    with _large_bodies:
        gc.disable()
        try:
            yield
        except Exception as error:
            # Its frames, and those of what it comes from, would keep the document beside the next.
            error.__context__ = None
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            gc.enable()


def _read(body: bytes, fallbacks: Mapping[str, str]) -> ChatBody:
    document = schemas.parse(body)
    limit = MAX_TOKENS
    if isinstance(document, dict):
        for name, value in fallbacks.items():
            document.setdefault(name, value)
        if MAX_TOKENS not in document and document.get(NEWER_MAX_TOKENS) is not None:
            limit = NEWER_MAX_TOKENS
            document[MAX_TOKENS] = document.pop(limit)
    try:
        fields = schemas.check_request(document)
    except schemas.Violation as violation:
        path = limit if violation.path == MAX_TOKENS else violation.path
        text = f"{path or 'the body'} {violation.rule}"
        if path in FIELD_HEADERS and path not in document:
            text += f", in the body or as the header {FIELD_HEADERS[path]}"
        raise ServiceError(errors.INVALID_INPUT, f"{text}.") from None
    ignored = list(islice(schemas.unnamed_properties(document), MAX_IGNORED))
    include_usage = _includes_usage(document)
    if include_usage:
        ignored = [name for name in ignored if name != "stream_options"]
    return ChatBody(fields, frozenset(schemas.PROPERTIES.keys() & document), ignored, include_usage)


def _includes_usage(document: Mapping[str, Any]) -> bool:
    """Whether a stream's usage shall come as OpenAI's extra last chunk."""
    options = document.get("stream_options")
    return (
        document.get("stream") is True
        and isinstance(options, dict)
        and options.get("include_usage") is True
    )
