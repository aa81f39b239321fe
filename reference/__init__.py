"""What people read of the service: the API reference, its OpenAPI document, the list of models.

All of it is made from the schema files and the error table, so it says what the service does.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flask import Blueprint, Response, current_app, render_template, request, send_from_directory

import schemas
from reference.document import DOCUMENT, IN_HEADERS, KINDS_BY_STATUS, MEANINGS, MODELS

blueprint = Blueprint("reference", __name__, template_folder="templates")

# The console on the page talks to this origin and to nothing else; the icon is a data: URL.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

LIMIT_WORDS = {
    "enum": "one of {}",
    "minimum": "from {}",
    "maximum": "up to {}",
    "exclusiveMinimum": "above {}",
    "minLength": "{} or more characters",
    "minItems": "{} or more items",
}


class Field(NamedTuple):
    """One row of a field table; `default` is JSON, or empty where there is none."""

    path: str
    type: str
    limits: str
    default: str
    required: bool


def fields_of(schema: Mapping[str, Any], prefix: str = "") -> Iterator[Field]:
    """Every property the schema names, depth first, with its path as error messages write it."""
    for name, rule in schema.get("properties", {}).items():
        path = prefix + name
        default = json.dumps(rule["default"]) if "default" in rule else ""
        required = name in schema.get("required", ())
        yield Field(path, rule["type"], limits_of(rule), default, required)
        yield from fields_of(rule, f"{path}.")
        yield from fields_of(rule.get("items", {}), f"{path}[].")


def limits_of(rule: Mapping[str, Any]) -> str:
    """The rule's limits in words; one that has no words here is shown as the schema writes it."""
    shown_elsewhere = {"type", "default", "properties", "required", "items"}
    return " ".join(
        LIMIT_WORDS.get(word, word + " {}").format(
            ", ".join(map(str, value)) if isinstance(value, list) else value
        )
        for word, value in rule.items()
        if word not in shown_elsewhere
    )


@blueprint.app_template_filter()
def seconds(count: float) -> str:
    """A span of time as people say it: 28 seconds, 15 minutes."""
    return f"{count / 60:g} minutes" if count >= 120 and count % 60 == 0 else f"{count:g} seconds"


@blueprint.app_template_filter()
def pretty(document: Any) -> str:
    """JSON to read, its properties in the order of their file."""
    return json.dumps(document, indent=2, ensure_ascii=False)


@blueprint.get("/openapi.json", provide_automatic_options=False)
def openapi() -> Response:
    """The OpenAPI document, whose server is the address it was asked under."""
    servers = [{"url": request.url_root.rstrip("/")}]
    return Response(
        json.dumps(DOCUMENT | {"servers": servers}, indent=2), mimetype="application/json"
    )


@blueprint.get("/v1/models", provide_automatic_options=False)
def models() -> Response:
    """The list that SDKs and chat front ends fill their model menus from."""
    return Response(json.dumps(MODELS), mimetype="application/json")


@blueprint.get("/static/<name>", provide_automatic_options=False)
def static(name: str) -> Response:
    """A file of the page, whole: Flask's own route has 412 and 416 in HTML for conditions."""
    return send_from_directory(Path(__file__).with_name("static"), name, conditional=False)


@blueprint.get("/", provide_automatic_options=False)
def page() -> Response:
    """The API reference, with the address it was asked under in its examples."""
    html = render_template(
        "reference.html",
        base_url=request.url_root + "v1",
        document=DOCUMENT,
        schemas=schemas.DOCUMENTS,
        meanings=MEANINGS,
        in_headers=IN_HEADERS,
        settings=current_app.extensions["chat"].settings,
        fields_of=fields_of,
        kinds=KINDS_BY_STATUS,
        models=MODELS,
    )
    policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    return Response(html, mimetype="text/html", headers=policy)
