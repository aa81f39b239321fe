"""The service inside the test's own process: no sockets, hundreds of requests a second."""

import functools
import json
from typing import Any

import responses
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from core.settings import Settings
from tests.conftest import ANTHROPIC_KEY, BOUND_TOKEN, CLAUDE, OPENAI_KEY, TOKEN, ask
from tests.upstream import sse

PATH = "/v1/chat/completions"
ANTHROPIC_URL = "https://api.anthropic.com/v1/messages"
OPENAI_URL = "https://api.openai.com/v1/chat/completions"

# What is nobody's full answer, and nobody's stream.
NO_ANSWERS: list[Any] = [
    b"",
    b"{",
    b"<html><body>Bad gateway</body></html>",
    b'"Hello"',
    b"null",
    b"[]",
    b"5",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"n": ' + b"9" * 5000 + b"}",
    {},
]
NO_STREAMS: list[list[Any]] = [
    [b"data: {\n\n"],
    [b"data: hello\n\n"],
    [b"data: \xff\n\n"],
    [b"data: " + b"[" * 100_000 + b"\n\n"],
    ["[DONE]"],
    [[]],
    [5],
    ["text"],
    [{}],
    [b"<html>Bad gateway</html>"],
    [b""],
]
# What shows that the provider is there, but brings no answer.
ONLY_SIGNS_OF_LIFE: list[list[Any]] = [[None], [b": only a comment\n\n"], [None, {}]]


@functools.cache
def client(**environ: str) -> FlaskClient:
    """A test client of the service with these variables."""
    tokens = f"team:{TOKEN},bound:{BOUND_TOKEN}:loop|acme"
    keys = {"ANTHROPIC_API_KEY": ANTHROPIC_KEY, "OPENAI_API_KEY": OPENAI_KEY}
    settings = Settings.read({"ACCESS_TOKENS": tokens, **keys, **environ})
    return create_app(settings).test_client()


def offline() -> FlaskClient:
    """A test client of the service that asks no provider."""
    return client(OFFLINE="1")


def busy() -> FlaskClient:
    """A test client of a service of its own, all of whose call slots are taken."""
    there: FlaskClient = client.__wrapped__(OFFLINE="1")
    slots = there.application.extensions["chat"].slots
    for number in range(slots.total):
        slots.take(f"caller {number}")
    return there


def post(
    to: FlaskClient, body: Any, headers: dict[str, str] | None = None, **more: Any
) -> TestResponse:
    """The answer to a call; bytes are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Authorization": f"Bearer {TOKEN}"} | (headers or {})
    return to.post(PATH, data=data, headers=named, buffered=True, **more)


def error_of(response: TestResponse, status: int) -> tuple[str, str]:
    """The code and message of an error that has the contract's shape."""
    document = response.get_json()
    assert response.status_code == status, document
    assert response.mimetype == "application/json"
    assert sorted(document) == ["error", "message"]
    return document["error"], document["message"]


def code_of(document: dict[str, Any]) -> str:
    """The code in a stream's last event, an error."""
    error = document["error"]
    code: str = error["code"] if isinstance(error, dict) else error
    return code


def answer(
    wire: responses.RequestsMock, url: str, document: Any, **request: Any
) -> tuple[TestResponse, dict[str, Any]]:
    """Our answer when the provider at `url` gives `document`, and what the provider was sent."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    wire.post(url, body=data, content_type="application/json")
    model = {"model": CLAUDE if url == ANTHROPIC_URL else "gpt-4o"}
    response = post(client(), ask(**(model | request)))
    return response, sent(wire)


def streamed(
    wire: responses.RequestsMock, url: str, events: list[Any], **request: Any
) -> TestResponse:
    """Our answer when the provider at `url` streams `events`: documents, texts or raw bytes."""
    body = b"".join(event if isinstance(event, bytes) else sse(event) for event in events)
    wire.post(url, body=body, content_type="text/event-stream")
    model = {"model": CLAUDE if url == ANTHROPIC_URL else "gpt-4o"}
    return post(client(), ask(**(model | {"stream": True} | request)))


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The document less one of its fields."""
    return {key: value for key, value in document.items() if key != name}


def difference(document: Any, usual: dict[str, Any]) -> str:
    """What is special about an answer, for the test's name."""
    if not isinstance(document, dict):
        return repr(document)[:40]
    changed = {key: value for key, value in document.items() if value != usual.get(key)}
    return repr(changed)[:80] if changed else f"only {', '.join(document)}"


def lines(response: TestResponse) -> list[str]:
    """The lines of a stream but the empty ones."""
    assert response.status_code == 200, response.text
    return [line for line in response.text.split("\n") if line]


def sent(wire: responses.RequestsMock, index: int = -1) -> dict[str, Any]:
    """The body of a request that a provider got."""
    body: dict[str, Any] = json.loads(wire.calls[index].request.body or b"")
    return body


def padded(size: int) -> bytes:
    """A valid body of so many bytes."""
    body = json.dumps(ask())
    return (body[:-1] + " " * (size - len(body)) + "}").encode()


def head_of(token: str | None, more: str, length: int = 1000) -> bytes:
    """The head of a call as it goes over a socket, with `more` lines."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\n{authorization}{more}"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()
