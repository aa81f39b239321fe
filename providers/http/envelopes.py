"""What a provider's error document says, wherever and in whatever form it is written."""

import json
import re
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
MAX_LAYERS = 4
_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_STATUS = re.compile(r"\d{3}(\.0)?", re.ASCII)
_SAYING_WHAT = ("code", "type", "status", "status_code", "error")
_FOR_PEOPLE = ("message", "msg", "detail", "error", "errors")


class ErrorObject:
    """An error document, read; one of an unknown shape says nothing.

    Every envelope that is known is opened: nested, flat, `detail`, a list, or plain text.
    """

    def __init__(self, document: Any) -> None:
        layers = _layers_of(document)
        said = [layer.get(name) for layer in layers for name in _SAYING_WHAT]
        self.codes = [code for code in said if isinstance(code, str)]
        self.status = first(map(_status_in, said))
        self.message = first(map(_message_in, layers)) or ""
        self.has_reasons = any(_fields(layer.get("metadata")).get("reasons") for layer in layers)
        self.param = first(map(_param_in, layers))
        self.request_id = first(plain_id(layer.get("request_id")) for layer in layers)


def first(values: Iterable[T]) -> T | None:
    return next(filter(None, values), None)


def plain_id(value: Any) -> str | None:
    """`value` if it is what an id may look like."""
    return value if isinstance(value, str) and _PLAIN_ID.fullmatch(value) else None


def _layers_of(document: Any) -> list[dict[str, Any]]:
    """An error's objects, one inside the other, the innermost first."""
    layers: list[dict[str, Any]] = []
    while len(layers) < MAX_LAYERS:
        if isinstance(document, list) and document:
            document = document[0]
        if not isinstance(document, dict):
            break
        layers.insert(0, document)
        document = document.get("error") or _quoted(_fields(document.get("metadata")).get("raw"))
    return layers


def _quoted(raw: Any) -> Any:
    """The error of a provider behind the provider, as OpenRouter quotes it."""
    if not isinstance(raw, str):
        return raw
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict | list) else {"message": raw}


def _status_in(value: Any) -> int | None:
    """A status written as a number or in a string."""
    if isinstance(value, str) and _STATUS.fullmatch(value):
        value = float(value)
    is_status = isinstance(value, float | int) and 400 <= value < 600 and value == int(value)
    return int(value) if is_status else None


def _message_in(value: Any, depth: int = 0) -> str:
    """The words for people in an error, wherever they stand."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_message_in(item, depth + 1) for item in value[:3])))
    return first(_message_in(_fields(value).get(name), depth + 1) for name in _FOR_PEOPLE) or ""


def _param_in(fields: dict[str, Any]) -> str | None:
    """The parameter that the error is about; FastAPI says it as the last step of a path."""
    param = fields.get("param")
    for name in ("detail", "message"):
        listed = _fields(fields.get(name)).get("detail", fields.get(name))
        if not param and isinstance(listed, list) and listed:
            path = _fields(listed[0]).get("loc")
            param = path[-1] if isinstance(path, list) and path else None
    # LiteLLM writes its None as a word.
    return param if isinstance(param, str) and param not in ("", "None", "null") else None


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
