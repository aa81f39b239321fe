"""The service's HTTP: who gets in, the routes, and one shape for every error."""

import json
import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import reference
import schemas
from chat import answers
from chat.call import ChatCall, ChatService, wants_usage
from core import errors, records, watchdog
from core.access import Caller, identify
from core.errors import CallerLeft, ServiceError
from core.settings import Settings, load
from usage.command import usage_command

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Health checks come without a token, and so does a browser that opens the reference page.
PUBLIC = {"api.healthz", "reference.page", "reference.openapi", "reference.static"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}
MAX_IGNORED_CHARACTERS = 2_000

_REQUEST_ID = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # a token, RFC 9110 section 5.6.2


class ServiceResponse(Response):
    """Sent with its request's id, and with each of HEADERS that it does not set itself."""

    def get_wsgi_response(self, environ: "WSGIEnvironment") -> Any:
        body, status, headers = super().get_wsgi_response(environ)
        own = {name.lower() for name, _ in headers}
        headers += [(name, HEADERS[name]) for name in HEADERS if name.lower() not in own]
        headers.append(("X-Request-Id", g.request_id))
        return body, status, headers


api = Blueprint("api", __name__)


@api.post("/v1/chat/completions", provide_automatic_options=False)
def chat_completions() -> Response:
    """A chat completion, as JSON or, when `stream` is true, as server-sent events."""
    service, caller_socket = _service(), _caller_socket()
    document = _read_request(service.settings, caller_socket)
    call = ChatCall(service, document, g.caller, g.request_id, caller_socket)
    try:
        adjusted = call.admit()
        if document["stream"]:
            response = ServiceResponse(call.stream(), mimetype=answers.MEDIA_TYPE)
            response.headers["X-Accel-Buffering"] = "no"  # nginx would hold events back
        else:
            response = _json(call.full())
    except BaseException:
        call.close()
        raise
    response.call_on_close(call.close)
    _name_changes(response, document, adjusted)
    return response


@api.get("/healthz", provide_automatic_options=False)
def healthz() -> Response:
    """200 while this process answers; no provider is asked."""
    return _json({"status": "ok"})


@api.before_app_request
def admit() -> None:
    """Everything but PUBLIC is for known callers only, before a byte of the body is read."""
    asked = request.environ.get("HTTP_X_REQUEST_ID", "")
    g.request_id = asked if _REQUEST_ID.fullmatch(asked) else records.new_request_id()
    if request.endpoint not in PUBLIC:
        g.caller = _caller()


@api.app_errorhandler(Exception)
def fail(error: Exception) -> Response:
    """Every error, whatever its cause, in the contract's shape."""
    if isinstance(error, CallerLeft):
        return ServiceResponse(status=499)  # nginx's word for it; nobody reads this
    failure = error if isinstance(error, ServiceError) else _service_error(error)
    if failure is not error and failure.kind is errors.INTERNAL_ERROR:
        records.log_crash(g.request_id, error)
    response = _error_response(failure)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application, with the settings of the environment if none are given."""
    settings = settings or load()
    settings.require_models(schemas.DOCUMENTS["request"]["properties"]["model"]["enum"])
    _tell_flask_run(settings)
    app = Flask(__name__, static_folder=None)
    app.response_class = ServiceResponse
    app.url_map.merge_slashes = False  # a POST to /v1//… is a 404, not a redirect
    app.extensions["chat"] = ChatService(settings)
    app.register_blueprint(api)
    app.register_blueprint(reference.blueprint)
    app.cli.add_command(usage_command)
    return app


def _tell_flask_run(settings: Settings) -> None:
    """Where gunicorn.conf.py does not: under `flask run`, which has no hook for it."""
    command = click.get_current_context(silent=True)
    if command and command.info_name == "run":
        for line in [*settings.warnings(), settings.callers()]:
            click.echo(line, err=True)  # not among the records of `flask usage`


def _service() -> ChatService:
    service: ChatService = current_app.extensions["chat"]
    return service


def _caller() -> Caller:
    """Who sent the request; raises for a token that is missing or not known."""
    header = request.environ.get("HTTP_AUTHORIZATION", "")
    caller = identify(header, _service().settings.access_tokens)
    if caller is None:
        text = "The Authorization header must be `Bearer TOKEN`, with a token this service knows."
        raise ServiceError(errors.UNAUTHORIZED, text)
    return caller


def _read_request(settings: Settings, caller_socket: socket.socket | None) -> dict[str, Any]:
    """The request's document, valid and with its defaults filled in."""
    try:
        return schemas.check_request(schemas.parse(_read_body(settings, caller_socket)))
    except schemas.NotJSON as error:
        raise ServiceError(errors.INVALID_JSON, f"{error}.") from None
    except schemas.Violation as violation:
        raise ServiceError(errors.INVALID_INPUT, f"{violation}.") from None


def _read_body(settings: Settings, caller_socket: socket.socket | None) -> bytes:
    coding = request.environ.get("HTTP_CONTENT_ENCODING") or "identity"
    framing = request.environ.get("HTTP_TRANSFER_ENCODING") or "chunked"
    if coding.lower() != "identity" or framing.lower() != "chunked":
        text = "The body must not be compressed: send it without Content-Encoding."
        raise ServiceError(errors.UNSUPPORTED_ENCODING, text)
    limit, length = settings.max_body_bytes, request.content_length or 0
    with watchdog.watch_arrival(caller_socket, settings.arrival_timeout_s):
        body = _arrived_body(limit + 1) if length <= limit else b""
    if max(length, len(body or b"")) > limit:
        raise ServiceError(errors.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.")
    if body is None or len(body) < length:
        text = "The body ended or stalled before it was complete, or its chunks are malformed."
        raise ServiceError(errors.INCOMPLETE_BODY, text)
    return body


def _arrived_body(most: int) -> bytes | None:
    """`most` bytes of the body, or as far as it came; None if its framing is broken."""
    stream, body = request.stream, b""
    try:
        while len(body) < most and (read := stream.read(most - len(body))):
            body += read
    except Exception:  # the server's own, of which it has many
        return None
    return body


def _caller_socket() -> socket.socket | None:
    environ = request.environ
    return environ.get("gunicorn.socket") or environ.get("werkzeug.socket")


def _name_changes(response: Response, document: dict[str, Any], adjusted: dict[str, Any]) -> None:
    """Say in headers what of the request did nothing, or something else than it says."""
    ignored = schemas.unnamed_properties(document)
    if wants_usage(document):
        ignored.remove("stream_options")
    if ignored:
        names = ", ".join(quote(name, safe="[]") for name in ignored)
        response.headers["X-Ignored-Parameters"] = names[:MAX_IGNORED_CHARACTERS]
    if adjusted:
        changes = ", ".join(f"{name}={value}" for name, value in adjusted.items())
        response.headers["X-Adjusted-Parameters"] = changes


def _service_error(error: Exception) -> ServiceError:
    """What Flask or the code raised, as an error of the service's own."""
    code = error.code if isinstance(error, HTTPException) else 500
    match code:
        case 404:
            return ServiceError(errors.NOT_FOUND, "There is nothing at this path.")
        case 405:
            text = f"{request.method} is not allowed here; the Allow header says what is."
            return ServiceError(errors.METHOD_NOT_ALLOWED, text)
        case 400:
            return ServiceError(errors.MALFORMED_HTTP, "The request is not well-formed.")
    return ServiceError(errors.INTERNAL_ERROR, "An unexpected error in this service.")


def _error_response(error: ServiceError) -> Response:
    response = _json(error.body, error.kind.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if error.is_final:
        response.headers["X-Should-Retry"] = "false"
    if error.kind is errors.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _json(document: dict[str, Any], status: int = 200) -> ServiceResponse:
    # Some clients show developers nothing but the reason phrase; werkzeug would shout it.
    line = f"{status} {HTTPStatus(status).phrase}"
    return ServiceResponse(json.dumps(document), line, mimetype="application/json")
