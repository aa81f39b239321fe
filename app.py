"""The service's HTTP: the routes, who gets in, and one shape for every error."""

import errno
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
from flask import Blueprint, Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import reference
import schemas
from chat.body import receive
from chat.call import ChatCall, ChatService
from chat.limits_table import limits_command
from chat.request import ChatBody, fields_in_headers, read
from core import errors, records
from core.access import Caller, bearer_token, identify
from core.errors import CallerLeft, ServiceError
from core.settings import Settings, load
from providers.http.models import models_command
from usage.command import usage_command
from usage.prices import cost_of, is_priced

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

ENDPOINT = "POST /v1/chat/completions"
# Health checks come without a token, and so does a browser that opens the reference page.
PUBLIC = {"api.healthz", "reference.page", "reference.openapi", "reference.static"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # Proxies that compress would hold events back, and nginx would buffer them.
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
MAX_IGNORED_CHARACTERS = 2_000
# What is known of a request stands in its environ, as WSGI has it (PEP 3333).
REQUEST_ID, CALLER, HAS_RECORD = "gateway.request_id", "gateway.caller", "gateway.has_record"

_encode = json.JSONEncoder(check_circular=False).encode
_REQUEST_ID = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")  # a token, RFC 9110 section 5.6.2
# W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


class ServiceResponse(Response):
    """Sent with its request's id, and with each of HEADERS that it does not set itself."""

    def get_wsgi_response(self, environ: "WSGIEnvironment") -> Any:
        body, status, headers = super().get_wsgi_response(environ)
        own = {name for name, _ in headers}
        headers += [header for header in HEADERS.items() if header[0] not in own]
        headers.append(("X-Request-Id", environ[REQUEST_ID]))
        return body, status, headers


api = Blueprint("api", __name__)


@api.post("/v1/chat/completions", provide_automatic_options=False)
def chat_completions() -> Response:
    """A chat completion, as JSON or, when `stream` is true, as server-sent events."""
    service, environ = _service(), request.environ
    caller_socket = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    body = read(receive(environ, caller_socket, service.settings), fields_in_headers(environ))
    trace = _TRACEPARENT.fullmatch(environ.get("HTTP_TRACEPARENT", ""))
    with ChatCall(
        service,
        body,
        environ[CALLER],
        caller_socket,
        request_id=environ[REQUEST_ID],
        trace_id=trace and trace[1],
    ) as call:
        environ[HAS_RECORD] = True
        if body.fields["stream"]:
            # Passed through: werkzeug has nothing to encode in it.
            response = ServiceResponse(
                call.stream(), headers=STREAM_HEADERS, direct_passthrough=True
            )
        else:
            response = _json(call.full())
        _tell_changes(response, body, call.adjusted)
    return response


@api.get("/healthz", provide_automatic_options=False)
def healthz() -> Response:
    """200 while this process answers; no provider is asked."""
    return _json({"status": "ok"})


@api.before_app_request
def let_in() -> None:
    """Everything but PUBLIC is for known callers only, before a byte of the body is read."""
    environ = request.environ
    asked = environ.get("HTTP_X_REQUEST_ID")
    is_plain = asked is not None and _REQUEST_ID.fullmatch(asked)
    environ[REQUEST_ID] = asked if is_plain else records.new_request_id()
    if request.endpoint not in PUBLIC:
        environ[CALLER] = _caller(environ)


@api.app_errorhandler(Exception)
def fail(error: Exception) -> Response:
    """Every error, whatever its cause, in the contract's shape."""
    if isinstance(error, CallerLeft):
        return ServiceResponse(_no_answer(), 499)
    environ, failure = request.environ, error
    if not isinstance(failure, ServiceError):
        failure = _service_error(error)
        if failure.kind is errors.INTERNAL_ERROR:
            records.log_crash(environ[REQUEST_ID], error)
    if HAS_RECORD not in environ:
        kind, caller = failure.kind, environ.get(CALLER)
        name = caller and caller.name
        records.log_refused(environ[REQUEST_ID], kind.code, kind.status, name)
    response = _error_response(failure)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application, with the settings of the environment if none are given."""
    settings = settings or load()
    settings.require_models(schemas.DOCUMENTS["request"]["properties"]["model"]["enum"])
    app = Flask(__name__, static_folder=None)
    app.response_class = ServiceResponse
    app.url_map.merge_slashes = False  # a POST to /v1//… is a 404, not a redirect
    app.extensions["chat"] = service = ChatService(settings, cost_of)
    _tell_start(service)
    app.register_blueprint(api)
    app.register_blueprint(reference.blueprint)
    app.cli.add_command(usage_command)
    app.cli.add_command(models_command)
    app.cli.add_command(limits_command(service.limits))
    return app


def _tell_start(service: ChatService) -> None:
    """Where a server starts, say what its operator should know; under gunicorn, its own hook does.

    Not where another command of Flask's runs, whose output is its own.
    """
    command, settings = click.get_current_context(silent=True), service.settings
    if command and command.info_name != "run":
        return
    if command:
        for line in [*settings.warnings(), settings.callers()]:
            click.echo(line, err=True)  # not among the records of `flask usage`
    if any(limit.unit == "USD" for limit in settings.limits):
        models = {name: settings.model_aliases.get(name, name) for name in service.providers}
        owners = {name: provider.name for name, provider in service.providers.items()}
        unpriced = [name for name, model in models.items() if not is_priced(owners[name], model)]
        if unpriced:
            effect = "dollar limits do not count them"
            records.log("unpriced_models", models=unpriced, effect=effect)


def _service() -> ChatService:
    service: ChatService = current_app.extensions["chat"]
    return service


def _caller(environ: "WSGIEnvironment") -> Caller:
    """Who sent the request; raises for a token that is missing or not known."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    caller = identify(header, _service().settings.access_tokens)
    if caller is not None:
        return caller
    text = "The Authorization header must be `Bearer TOKEN`, with a token this service knows"
    if bearer_token(header) == "":
        text += "; the token is empty"
    raise ServiceError(errors.UNAUTHORIZED, f"{text}.")


def _tell_changes(response: Response, body: ChatBody, adjusted: dict[str, Any]) -> None:
    """Say in headers what of the request did nothing, or something else than it says."""
    if body.ignored:
        names = ", ".join(quote(name, safe="[]") for name in body.ignored)
        response.headers["X-Ignored-Parameters"] = names[:MAX_IGNORED_CHARACTERS]
    if adjusted:
        pairs = (f"{name}={'default' if sent is None else sent}" for name, sent in adjusted.items())
        response.headers["X-Adjusted-Parameters"] = ", ".join(pairs)


def _no_answer() -> Iterator[bytes]:
    """Has the server close the connection: a caller who half closed it reads no made-up answer."""
    raise BrokenPipeError(errno.EPIPE, "the caller left")
    yield b""


def _service_error(error: Exception) -> ServiceError:
    """What Flask or the code raised, as an error of the service's own."""
    code = error.code if isinstance(error, HTTPException) else 500
    match code:
        case 404:
            return ServiceError(errors.NOT_FOUND, _what_is_where(request.path))
        case 405:
            text = f"{request.method} is not allowed here; the Allow header says what is."
            return ServiceError(errors.METHOD_NOT_ALLOWED, text)
        case 400:
            return ServiceError(errors.MALFORMED_HTTP, "The request is not well-formed.")
    return errors.unexpected()


def _what_is_where(path: str) -> str:
    """What to use instead of a path that is not there, by the usual mistakes."""
    if path.rstrip("/").endswith("/responses"):
        return f"The Responses API is not offered here; use chat completions: {ENDPOINT}."
    too_long = path.count("/v1") > 1 or path.count("/chat/completions") > 1
    why = ": the base URL ends with /v1, once" if too_long else ""
    if f"/v1{path}" in {rule.rule for rule in current_app.url_map.iter_rules()}:
        why = ": /v1 is missing"
    return f"There is nothing at this path{why}. The endpoint is {ENDPOINT}."


def _error_response(error: ServiceError) -> Response:
    response = _json(error.body, error.kind.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = error.retry_after
    if error.is_final:
        response.headers["X-Should-Retry"] = "false"
    if error.kind is errors.UNAUTHORIZED:
        has_token = bearer_token(request.environ.get("HTTP_AUTHORIZATION", ""))
        challenge = 'Bearer error="invalid_token"' if has_token else "Bearer"
        response.headers["WWW-Authenticate"] = challenge
    return response


def _json(document: dict[str, Any], status: int = 200) -> ServiceResponse:
    # Some clients show developers nothing but the reason phrase; werkzeug would shout it.
    line = f"{status} {HTTPStatus(status).phrase}"
    return ServiceResponse(_encode(document), line, content_type="application/json")
