"""The OpenAPI document and the list of models, made from the schema files and the error table."""

import copy
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import providers
import schemas
from core import errors

# The only operation whose requests are read: any of the errors can be its answer, but these two.
CHAT_PATH = "/v1/chat/completions"
ELSEWHERE = {404, 405}
# Their values may come in headers, so that the body need not have them.
IN_HEADERS = {"brand_id", "requested_by"}
RETRY_HEADERS = ("Retry-After", "X-Should-Retry")
HEADERS_OF = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: RETRY_HEADERS,
    500: RETRY_HEADERS,
    503: RETRY_HEADERS,
}
# The error table, in ascending order of status.
KINDS_BY_STATUS = {
    status: [kind for kind in errors.KINDS if kind.status == status]
    for status in sorted({kind.status for kind in errors.KINDS})
}
# The schema's models in OpenAI's list form; no provider dates them here: `created` is 0.
MODELS = {
    "object": "list",
    "data": [
        {"id": name, "object": "model", "created": 0, "owned_by": owner}
        for name, owner in providers.PROVIDER_OF.items()
    ],
}


def request_schema() -> dict[str, Any]:
    """request.json for callers: its defaults in words, and optional what headers may bring.

    Generators take a property with a default for one that is always there, and their users would
    have to send it.
    """
    schema = copy.deepcopy(schemas.DOCUMENTS["request"])
    schema["required"] = [name for name in schema["required"] if name not in IN_HEADERS]
    for name, rule in schema["properties"].items():
        default = rule.pop("default", None)
        said = "" if default is None else f" Left out, it is {json.dumps(default)}."
        rule["description"] = MEANINGS[name] + said
    return schema


def error_response(status: int, kinds: list[errors.Kind]) -> dict[str, Any]:
    """What OpenAPI says of the errors with this status."""
    headers = ("X-Request-Id", *HEADERS_OF.get(status, ()))
    content = {
        "schema": {"$ref": "#/components/schemas/ErrorResponse"},
        "examples": {
            kind.code: {"value": {"error": kind.code, "message": kind.remedy}} for kind in kinds
        },
    }
    return {
        "description": HTTPStatus(status).phrase,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {"application/json": content},
    }


def openapi_document() -> dict[str, Any]:
    """openapi.json completed with the schema files and the error table, but for its servers."""
    document = read_json("openapi.json")
    components, operation = document["components"], document["paths"][CHAT_PATH]["post"]
    components["schemas"] |= {
        "ChatCompletionRequest": request_schema(),
        "ChatCompletion": schemas.DOCUMENTS["response-200"],
        "ErrorResponse": schemas.DOCUMENTS["response-500"],
    }
    components["responses"] = {
        str(status): error_response(status, kinds) for status, kinds in KINDS_BY_STATUS.items()
    }
    for status in KINDS_BY_STATUS.keys() - ELSEWHERE:
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
    return document


def read_json(name: str) -> dict[str, Any]:
    """A file of this folder."""
    document: dict[str, Any] = json.loads(Path(__file__).with_name(name).read_bytes())
    return document


MEANINGS = read_json("meanings.json")
DOCUMENT = openapi_document()
