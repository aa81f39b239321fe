"""The published JSON Schemas, compiled once: they judge every request and every answer."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastjsonschema
from fastjsonschema import JsonSchemaValueException
from jsonschema import Draft202012Validator

DOCUMENTS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.json"))
}

PROPERTIES = DOCUMENTS["request"]["properties"]
MESSAGE_PROPERTIES = PROPERTIES["messages"]["items"]["properties"]
_DEFAULTS = {name: rule["default"] for name, rule in PROPERTIES.items() if "default" in rule}

# In words of our own: jsonschema's messages repeat the instance, which is the prompt (#1218).
_RULES: dict[str, Callable[[Any], str]] = {
    "type": lambda name: f"must be {'an' if name[0] in 'aeio' else 'a'} {name}",
    "enum": lambda values: f"must be one of {', '.join(map(json.dumps, values))}",
    "minItems": lambda least: f"must have at least {least} item{'s' if least > 1 else ''}",
    "minLength": lambda least: f"must have at least {least} character{'s' if least > 1 else ''}",
    "minimum": lambda limit: f"must be at least {limit}",
    "maximum": lambda limit: f"must be at most {limit}",
    "exclusiveMinimum": lambda limit: f"must be greater than {limit}",
}

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(_name: str) -> Any:
    raise ValueError


# NaN and Infinity, which Python would accept, are not JSON.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


class NotJSON(ValueError):
    """Why a body is no JSON document, without a word of it."""


class Violation(ValueError):
    """What breaks a schema: the field's path and the rule, without the offending value."""

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path or 'the body'} {rule}")
        self.path = path
        self.rule = rule


def parse(body: bytes) -> Any:
    """The JSON document in `body`; raises NotJSON, whatever is wrong with it."""
    if not body:
        raise NotJSON("The body is empty: it must be a JSON object")
    try:
        text = body.decode("utf-8-sig")
        document = _decode(text)
        if _SURROGATE.search(text):
            # Half a surrogate pair is no Unicode text; both providers refuse it.
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeDecodeError as error:
        raise NotJSON(f"The body is not UTF-8, at byte {error.start}") from None
    except UnicodeEncodeError:
        raise NotJSON("The body has half a surrogate pair (\\ud800 to \\udfff alone)") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise NotJSON(f"The body is not JSON, at {place}") from None
    except RecursionError:
        raise NotJSON("The body is nested too deeply") from None
    except ValueError:
        raise NotJSON("The body has a number that is no JSON number, or one too long") from None


def check_request(document: Any) -> dict[str, Any]:
    """What the schema names of a request, with its defaults; raises Violation for a broken rule."""
    _check(document, _fits_request)
    named = {name: value for name, value in document.items() if name in PROPERTIES}
    messages: list[dict[str, Any]] = document["messages"]
    if max(map(len, messages)) > len(MESSAGE_PROPERTIES):  # all of them are required
        named["messages"] = [
            {name: message[name] for name in MESSAGE_PROPERTIES} for message in messages
        ]
    return {**_DEFAULTS, **named}


def unnamed_properties(document: dict[str, Any]) -> Iterator[str]:
    """The properties of a request that its schema does not name, `messages[].name` for nested."""
    yield from (name for name in document if name not in PROPERTIES)
    told = set(MESSAGE_PROPERTIES)
    for message in document["messages"]:
        if len(message) > len(MESSAGE_PROPERTIES):
            yield from (f"messages[].{name}" for name in message if name not in told)
            told.update(message)


def check_answer(document: Any) -> None:
    """Nothing, if `document` fits the 200 schema; raises Violation where it does not."""
    _check(document, _fits_answer)


def _check(document: Any, fits: Callable[[Any], Any]) -> None:
    """Where fastjsonschema finds something wrong, jsonschema confirms that one spot.

    jsonschema alone takes 14 ms for 500 messages, and looks at all of them when the last is
    wrong. That the two agree is what tests/test_generated_requests.py proves.
    """
    try:
        fits(document)
        return
    except JsonSchemaValueException as broken:
        path, rule, definition = broken.path[1:], str(broken.rule), broken.rule_definition
        judge = Draft202012Validator({rule: definition})
        error = next(iter(judge.iter_errors(broken.value)))
    where = "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in path).lstrip(".")
    if error.validator == "required":
        missing = next(name for name in definition if name not in error.instance)
        raise Violation(f"{where}.{missing}".lstrip("."), "is required")
    raise Violation(where, _RULES[rule](definition))


_fits_request = fastjsonschema.compile(DOCUMENTS["request"], use_default=False)
_fits_answer = fastjsonschema.compile(DOCUMENTS["response-200"], use_default=False)
