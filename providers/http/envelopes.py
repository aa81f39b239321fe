"""What stands in a provider's error, wherever and in whatever form it is written."""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")
MAX_LAYERS = 4


def first(values: Iterable[T]) -> T | None:
    return next(filter(None, values), None)


def status_in(value: Any) -> int | None:
    """A status written as a number or in a string."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 400 <= value < 600 else None


def message_in(value: Any, depth: int = 0) -> str:
    """The words for people in an error, wherever they stand."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (message_in(item, depth + 1) for item in value[:3])))
    names = ("message", "msg", "detail", "error", "errors")
    found = (message_in(details(value).get(name), depth + 1) for name in names)
    return first(found) or ""


def layers_of(document: Any) -> list[dict[str, Any]]:
    """An error's objects, one inside the other, the innermost first."""
    layers: list[dict[str, Any]] = []
    while len(layers) < MAX_LAYERS:
        if isinstance(document, list) and document:
            document = document[0]
        if not isinstance(document, dict):
            break
        layers.insert(0, document)
        document = document.get("error") or _quoted(details(document.get("metadata")).get("raw"))
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


def param_in(fields: dict[str, Any]) -> str | None:
    """The parameter that the error is about; FastAPI says it as the last step of a path."""
    param = fields.get("param")
    for name in ("detail", "message"):
        listed = details(fields.get(name)).get("detail", fields.get(name))
        if not param and isinstance(listed, list) and listed:
            path = details(listed[0]).get("loc")
            param = path[-1] if isinstance(path, list) and path else None
    # LiteLLM writes its None as a word.
    return param if isinstance(param, str) and param not in ("", "None", "null") else None


def details(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
