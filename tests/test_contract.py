"""The contract at the door: what is let in, what is refused, and in what words."""

import hashlib
import io
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import responses

import app
import schemas
from tests.conftest import BOUND_TOKEN, CLAUDE, GPT, TOKEN, Service, answer_on, ask
from tests.inprocess import PATH, busy, client, error_of, offline, post, sent
from tests.upstream import Upstream

SHA256 = {
    "request.json": "f67a2a99ddc405b456fc6ef3055119a5ab9645d9ba5c9148047398f34b7812a6",
    "response-200.json": "0502515ff5966879adb2404cc617e3b091e69595fe1978a0ca0c7e0108a97e0e",
    "response-400.json": "3d8ab03da21eee9757a643bbd7749e3e281d407b80c5834182ac892a19c46991",
    "response-500.json": "3d8ab03da21eee9757a643bbd7749e3e281d407b80c5834182ac892a19c46991",
}
SECRET = "the-canary-of-this-prompt"


def test_the_schemas_are_the_published_files_byte_for_byte() -> None:
    files = (Path(app.__file__).parent / "schemas").glob("*.json")
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == SHA256


# What is refused.


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ask().items() if key != name}


def messages(*given: Any) -> dict[str, Any]:
    return ask(messages=list(given))


def turn(role: Any = "user", content: Any = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "the body must be an object"),
        ("text", "the body must be an object"),
        (None, "the body must be an object"),
        (True, "the body must be an object"),
        (1, "the body must be an object"),
        ([ask()], "the body must be an object"),
        ({}, "messages is required"),
        (without("messages"), "messages is required"),
        (without("brand_id"), "brand_id is required"),
        (without("requested_by"), "requested_by is required"),
        (ask(messages="Hi"), "messages must be an array"),
        (ask(messages={}), "messages must be an array"),
        (ask(messages=None), "messages must be an array"),
        (ask(messages=[]), "messages must have at least 1 item"),
        (messages("Hi"), "messages[0] must be an object"),
        (messages(turn(), None), "messages[1] must be an object"),
        (messages(turn(), []), "messages[1] must be an object"),
        (messages({}), "messages[0].role is required"),
        (messages({"content": "Hi"}), "messages[0].role is required"),
        (messages({"role": "user"}), "messages[0].content is required"),
        (messages(turn(role=None)), "messages[0].role must be"),
        (messages(turn(role=1)), "messages[0].role must be"),
        (messages(turn(role="tool")), 'messages[0].role must be one of "system", "user"'),
        (messages(turn(role="User")), "messages[0].role must be one of"),
        (messages(turn(role="user ")), "messages[0].role must be one of"),
        (messages(turn(role="developer")), "messages[0].role must be one of"),
        (messages(turn(), turn(), turn(role="")), "messages[2].role must be one of"),
        (messages(turn(content=None)), "messages[0].content must be a string"),
        (messages(turn(content=1)), "messages[0].content must be a string"),
        (messages(turn(content=[])), "messages[0].content must be a string"),
        (messages(turn(content={})), "messages[0].content must be a string"),
        (
            messages(turn(content=[{"type": "text", "text": SECRET}])),
            "messages[0].content must be a string",
        ),
        (ask(model=None), "model must be"),
        (ask(model=""), "model must be one of"),
        (ask(model="gpt-5"), 'model must be one of "claude-sonnet-4-6", "gpt-4o"'),
        (ask(model="GPT-4o"), "model must be one of"),
        (ask(model=["gpt-4o"]), "model must be"),
        (ask(temperature=None), "temperature must be a number"),
        (ask(temperature=True), "temperature must be a number"),
        (ask(temperature=False), "temperature must be a number"),
        (ask(temperature="1"), "temperature must be a number"),
        (ask(temperature=[]), "temperature must be a number"),
        (ask(temperature=-0.001), "temperature must be at least 0"),
        (ask(temperature=-1), "temperature must be at least 0"),
        (ask(temperature=2.001), "temperature must be at most 2"),
        (ask(temperature=3), "temperature must be at most 2"),
        (ask(temperature=10**400), "temperature must be at most 2"),
        (ask(max_tokens=None), "max_tokens must be an integer"),
        (ask(max_tokens=True), "max_tokens must be an integer"),
        (ask(max_tokens="5"), "max_tokens must be an integer"),
        (ask(max_tokens=1.5), "max_tokens must be an integer"),
        (ask(max_tokens=0), "max_tokens must be greater than 0"),
        (ask(max_tokens=0.0), "max_tokens must be greater than 0"),
        (ask(max_tokens=-1), "max_tokens must be greater than 0"),
        (ask(max_tokens=-(10**400)), "max_tokens must be greater than 0"),
        (ask(stream=None), "stream must be a boolean"),
        (ask(stream=1), "stream must be a boolean"),
        (ask(stream=0), "stream must be a boolean"),
        (ask(stream="true"), "stream must be a boolean"),
        (ask(brand_id=None), "brand_id must be a string"),
        (ask(brand_id=""), "brand_id must have at least 1 character"),
        (ask(brand_id=1), "brand_id must be a string"),
        (ask(brand_id=["loop"]), "brand_id must be a string"),
        (ask(requested_by=None), "requested_by must be a string"),
        (ask(requested_by=""), "requested_by must have at least 1 character"),
        (ask(requested_by={}), "requested_by must be a string"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_body_that_breaks_the_schema_is_400_and_names_the_field(body: Any, message: str) -> None:
    code, said = error_of(post(offline(), body), 400)
    assert code == "invalid_input"
    assert said.startswith(message)


def with_number(name: str, text: str) -> bytes:
    return json.dumps(ask(**{name: 8})).replace(f'"{name}": 8', f'"{name}": {text}').encode()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("temperature", "1e400"),
        ("temperature", "-1e400"),
        ("temperature", "2.0000001"),
        ("max_tokens", "1e400"),
        ("max_tokens", "-1e400"),
        ("max_tokens", "1e-400"),
        ("max_tokens", "0e5"),
        ("max_tokens", "1.0000001"),
    ],
)
def test_a_number_outside_the_limits_is_400_in_any_notation(name: str, number: str) -> None:
    code, said = error_of(post(offline(), with_number(name, number)), 400)
    assert code == "invalid_input"
    assert said.startswith(name)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b" \n", "not JSON"),
        (b"{", "not JSON"),
        (b"hello", "not JSON"),
        (b"<html></html>", "not JSON"),
        (b"{'messages': []}", "not JSON"),
        (b"messages=Hi&brand_id=loop", "not JSON"),
        (json.dumps(ask()).encode()[:-1], "not JSON"),
        (json.dumps(ask()).encode() + b"}", "not JSON"),
        (json.dumps(ask()).encode() * 2, "not JSON"),
        (json.dumps(ask()).encode() + b"\x00", "not JSON"),
        (b'{"messages": [],}', "not JSON"),
        (b'{"text": "a\nb"}', "not JSON"),
        (b'{"text": "\\x41"}', "not JSON"),
        (b'{"n": 01}', "not JSON"),
        (b'{"n": .5}', "not JSON"),
        (b'{"n": +1}', "not JSON"),
        (b'{"n": 0x10}', "not JSON"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\xe9"}', "not UTF-8"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"text": "\xc0\xaf"}', "not UTF-8"),
        (json.dumps(ask()).encode("utf-16"), "not UTF-8"),
        (json.dumps(ask()).encode("utf-16-le"), "not JSON"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
        (b"[" * 100_000 + b"]" * 100_000, "nested"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b"[" * 100_000, "nested"),
        (with_number("temperature", "9" * 5_000), "number"),
        (with_number("max_tokens", "9" * 5_000), "number"),
        (with_number("max_tokens", "-" + "9" * 5_000), "number"),
        (with_number("unknown", "9" * 5_000), "JSON"),
        (with_number("temperature", "NaN"), "number"),
        (with_number("temperature", "Infinity"), "number"),
        (with_number("max_tokens", "-Infinity"), "number"),
        (b'{"unknown": NaN}', "number"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_is_no_json_is_400_and_says_why(body: bytes, message: str) -> None:
    code, said = error_of(post(offline(), body), 400)
    assert code == "invalid_json"
    assert message in said


def test_deep_nesting_inside_a_valid_request_is_400_and_no_crash() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    code, said = error_of(post(offline(), with_number("unknown", deep)), 400)
    assert (code, "nested" in said) == ("invalid_json", True)


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ude00\\ud83d", "a\\ud83dz"])
@pytest.mark.parametrize("place", ["content", "brand_id", "unknown", "key"])
def test_half_a_surrogate_pair_is_400_wherever_it_stands(half: str, place: str) -> None:
    body = ask(unknown="unknown", key={"key": 1}, brand_id="brand_id", text="content")
    data = json.dumps(body).replace(f'"{place}": 1' if place == "key" else f': "{place}"', "@")
    data = data.replace("@", f'"{half}": 1' if place == "key" else f': "{half}"')
    assert half in data
    assert error_of(post(offline(), data.encode()), 400)[0] == "invalid_json"


@pytest.mark.parametrize(
    "body",
    [
        messages(turn(role=SECRET)),
        messages(turn(content=[SECRET])),
        messages(SECRET),
        messages({SECRET: SECRET}),
        ask(messages=SECRET),
        ask(text=SECRET, temperature=SECRET),
        ask(text=SECRET, model=SECRET),
        ask(text=SECRET, max_tokens=[SECRET]),
        ask(text=SECRET, brand_id={SECRET: 1}),
        SECRET,
        [SECRET],
        {SECRET: SECRET},
        f'{{"text": "{SECRET}'.encode(),
        f"{SECRET}".encode(),
        f'{{"{SECRET}": "\\ud800"}}'.encode(),
        f'{{"{SECRET}": NaN}}'.encode(),
        f'{{"{SECRET}": "'.encode() + b'\xff"}',
    ],
)
def test_no_error_repeats_what_was_sent(body: Any) -> None:
    response = post(offline(), body)
    error_of(response, 400)
    assert SECRET not in response.text
    assert SECRET not in str(response.headers)


def test_a_refused_request_costs_no_provider_call(wire: responses.RequestsMock) -> None:
    for body in (b"{", ask(temperature=3), ask(messages=[])):
        error_of(post(client(), body), 400)
    assert len(wire.calls) == 0


# What is served.


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.0},
        {"temperature": -0.0},
        {"temperature": 1e-320},
        {"temperature": 2},
        {"temperature": 2.0},
        {"max_tokens": 1},
        {"max_tokens": 1.0},
        {"max_tokens": 50.0},
        {"max_tokens": 1e300},
        {"max_tokens": 10**4000},
        {"stream": False},
        {"stream": True},
        {"brand_id": " "},
        {"brand_id": "漢" * 1000},
        {"requested_by": "\u0000"},
        {"messages": [turn(content="")]},
        {"messages": [turn(content=" \n")]},
        {"messages": [turn(role="system")]},
        {"messages": [turn(role="assistant")]},
        {"messages": [turn(name="me", tool_calls=[])]},
        {"messages": [turn("assistant"), turn("assistant"), turn("system")]},
        {"tools": [], "n": 2, "response_format": None, "": 0},
        {"unknown": {"deep": [[[[[1]]]]]}},
    ],
    ids=lambda change: json.dumps(change)[:40],
)
@pytest.mark.parametrize("model", schemas.DOCUMENTS["request"]["properties"]["model"]["enum"])
def test_a_body_that_fits_the_schema_is_served(change: dict[str, Any], model: str) -> None:
    response = post(offline(), ask(model) | change)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith(
        "text/event-stream" if change.get("stream") else "application/json"
    )


def test_a_full_answer_has_the_contract_form_and_what_clients_expect() -> None:
    document = post(offline(), ask(text="Good day")).get_json()
    assert document["object"] == "chat.completion"
    assert type(document["created"]) is int
    assert document["model"] == GPT
    (choice,) = document["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert "Good day" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = document["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


# Of Linux's struct tcp_info (linux/tcp.h): how many segments with data have come.
TCPI_DATA_SEGS_IN = slice(152, 156)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux's TCP")
@pytest.mark.parametrize("body", [ask(), {}], ids=["answer", "error"])
def test_head_and_body_come_in_one_piece(body: Any, offline_service: Service) -> None:
    with offline_service.send(body) as caller:
        assert answer_on(caller).read()
        info = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_DATA_SEGS_IN.stop)
    assert int.from_bytes(info[TCPI_DATA_SEGS_IN], sys.byteorder) == 1


def test_the_defaults_are_those_of_the_schema(wire: responses.RequestsMock) -> None:
    body = {key: value for key, value in ask().items() if key != "model"}
    wire.post("https://api.anthropic.com/v1/messages", status=400)
    post(client(), body)
    assert sent(wire)["model"] == CLAUDE
    assert sent(wire)["temperature"] == 0.7
    assert "stream" not in sent(wire) or sent(wire)["stream"] is False


def test_duplicate_keys_take_the_last() -> None:
    body = json.dumps(ask(text="last")).replace('{"role"', '{"content": "first", "role"')
    body = body.replace('"model": "gpt-4o"', '"model": 1, "model": "gpt-4o"')
    response = post(offline(), body.encode())
    assert response.status_code == 200, response.text
    assert "last" in response.text
    assert "first" not in response.text
    twice = json.dumps(ask()).replace('"model": "gpt-4o"', '"model": "gpt-4o", "model": 1')
    error_of(post(offline(), twice.encode()), 400)


def test_a_bom_before_the_object_is_let_pass() -> None:
    assert post(offline(), b"\xef\xbb\xbf" + json.dumps(ask()).encode()).status_code == 200


def test_a_whole_surrogate_pair_is_one_character() -> None:
    body = json.dumps(ask(text="\U0001f600"))
    assert "\\ud83d\\ude00" in body
    content = post(offline(), body.encode()).get_json()["choices"][0]["message"]["content"]
    assert content.endswith("\U0001f600")


def test_a_backslash_before_ud800_is_plain_text() -> None:
    content = post(offline(), ask(text="\\ud800")).get_json()["choices"][0]["message"]["content"]
    assert content.endswith("\\ud800")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json; charset=latin-1",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/octet-stream",
        "nonsense",
        "",
        None,
    ],
)
def test_any_content_type_or_none_is_served(content_type: str | None) -> None:
    response = post(offline(), ask(text="é"), content_type=content_type)
    assert response.status_code == 200, response.text
    assert response.get_json()["choices"][0]["message"]["content"].endswith("é")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity"])
def test_a_compressed_body_is_415(encoding: str) -> None:
    response = post(offline(), ask(), {"Content-Encoding": encoding})
    assert error_of(response, 415)[0] == "unsupported_encoding"


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
def test_the_identity_encoding_is_no_compression(encoding: str) -> None:
    assert post(offline(), ask(), {"Content-Encoding": encoding}).status_code == 200


# The size of a body.


def padded(size: int) -> bytes:
    body = json.dumps(ask())
    return (body[:-1] + " " * (size - len(body)) + "}").encode()


def test_a_body_of_exactly_the_limit_is_served_and_one_byte_more_is_413() -> None:
    small = client(OFFLINE="1", MAX_BODY_BYTES="2000")
    assert post(small, padded(2000)).status_code == 200
    code, message = error_of(post(small, padded(2001)), 413)
    assert code == "body_too_large"
    assert "2000" in message


def test_a_chunked_body_over_the_limit_is_413_as_well() -> None:
    small = client(OFFLINE="1", MAX_BODY_BYTES="2000")
    for size, status in ((2000, 200), (2001, 413)):
        response = small.post(
            PATH,
            headers={"Authorization": f"Bearer {TOKEN}", "Transfer-Encoding": "chunked"},
            input_stream=io.BytesIO(padded(size)),
            environ_overrides={"wsgi.input_terminated": True},
        )
        assert response.status_code == status


def test_a_caller_that_sends_20_mb_can_read_its_413(service: Service) -> None:
    response = service.post(b" " * 20_000_000)
    assert response.status_code == 413
    assert response.json()["error"] == "body_too_large"


def test_a_caller_that_sends_20_mb_in_chunks_can_read_its_413(service: Service) -> None:
    response = requests.post(
        service.url + PATH,
        data=iter([b" " * 1_000_000] * 20),
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=30,
    )
    assert response.status_code == 413
    assert response.json()["error"] == "body_too_large"


def test_a_caller_without_a_token_that_sends_20_mb_can_read_its_401(service: Service) -> None:
    response = service.post(b" " * 20_000_000, token=None)
    assert response.status_code == 401


def test_8_mb_of_text_are_served(offline_service: Service) -> None:
    text = "x" * (8_000_000 - len(json.dumps(ask(text=""))) - 100)
    response = offline_service.post(ask(text=text))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"].endswith(text)


# Properties that the schema does not name.


def test_unknown_properties_are_named_and_not_forwarded(wire: responses.RequestsMock) -> None:
    wire.post("https://api.openai.com/v1/chat/completions", status=400)
    body = ask(tools=[], top_p=0.1, user="u", metadata={"a": 1}, n=2, seed=7)
    post(client(), body)
    assert sorted(sent(wire)) == ["messages", "model", "temperature"]
    response = post(offline(), body)
    assert response.headers["X-Ignored-Parameters"] == "tools, top_p, user, metadata, n, seed"


def test_unknown_properties_of_messages_are_named_once_and_not_forwarded(
    wire: responses.RequestsMock,
) -> None:
    wire.post("https://api.openai.com/v1/chat/completions", status=400)
    body = messages(turn(name="a"), turn(name="b", refusal=None))
    post(client(), body)
    assert sent(wire)["messages"] == [turn(), turn()]
    response = post(offline(), body)
    assert response.headers["X-Ignored-Parameters"] == "messages[].name, messages[].refusal"


def test_a_request_with_nothing_unknown_has_no_such_header() -> None:
    headers = post(offline(), ask(temperature=1, max_tokens=5, stream=False)).headers
    assert "X-Ignored-Parameters" not in headers
    assert "X-Adjusted-Parameters" not in headers


def test_a_stream_says_in_its_headers_what_was_ignored() -> None:
    response = post(offline(), ask(stream=True, tools=[]))
    assert response.headers["X-Ignored-Parameters"] == "tools"


@pytest.mark.parametrize(
    "name",
    ["a\r\nSet-Cookie: b=c", "a, b", "é漢\U0001f600", "\x00", '"', "a;b", "x" * 100_000, ""],
    ids=lambda name: repr(name)[:20],
)
def test_a_property_with_any_name_makes_a_header_that_is_well_formed(name: str) -> None:
    response = post(offline(), ask(**{name: 1}))
    assert response.status_code == 200
    header = response.headers["X-Ignored-Parameters"]
    assert header.isascii()
    assert header.isprintable()
    assert len(header) <= 4000
    assert "Set-Cookie" not in response.headers


def test_stream_options_are_ignored_aloud_only_where_they_do_nothing() -> None:
    usage = {"stream_options": {"include_usage": True}}
    used = post(offline(), ask(stream=True, **usage))
    assert "X-Ignored-Parameters" not in used.headers
    for body in (ask(**usage), ask(stream=True, stream_options={"other": 1})):
        assert post(offline(), body).headers["X-Ignored-Parameters"] == "stream_options"


@pytest.mark.parametrize("options", [None, 1, "x", [], {}, {"include_usage": 1}])
def test_stream_options_of_any_shape_are_no_error(options: Any) -> None:
    assert post(offline(), ask(stream=True, stream_options=options)).status_code == 200


# One shape for every error.


def test_every_error_has_the_contract_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    here, good = offline(), {"Authorization": f"Bearer {TOKEN}"}
    bound = {"Authorization": f"Bearer {BOUND_TOKEN}"}
    cases = {
        400: post(here, b"{}"),
        401: post(here, ask(), {"Authorization": "Bearer wrong"}),
        403: post(here, ask(brand_id="other"), bound),
        404: here.get("/v1/nothing", headers=good),
        405: here.get(PATH, headers=good),
        413: post(client(OFFLINE="1", MAX_BODY_BYTES="2000"), padded(3000)),
        415: post(here, ask(), {"Content-Encoding": "gzip"}),
        503: post(busy(), ask()),
    }
    monkeypatch.setattr(schemas, "parse", lambda _body: 1 / 0)
    cases[500] = post(here, ask())
    codes = {status: error_of(response, status)[0] for status, response in cases.items()}
    assert codes == {
        400: "invalid_input",
        401: "unauthorized",
        403: "brand_not_allowed",
        404: "not_found",
        405: "method_not_allowed",
        413: "body_too_large",
        415: "unsupported_encoding",
        503: "overloaded",
        500: "internal_error",
    }
    assert cases[401].headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert cases[405].headers["Allow"] == "POST"
    assert int(cases[503].headers["Retry-After"]) > 0
    for status, response in cases.items():
        assert response.headers["X-Content-Type-Options"] == "nosniff", status
        assert response.headers["Cache-Control"] == "no-store", status
        assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"]), status
        assert re.fullmatch(r"\d+ [A-Z][a-z]+( [A-Z][a-z]+)*", response.status), response.status


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v1/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/x",
        "/v1//chat/completions",
        "/V1/chat/completions",
        "/v1/chat/completions%00",
        "/../etc/passwd",
        "/%ff",
        "/healthz/",
        "/favicon.ico",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_is_not_there_is_404_and_no_redirect(method: str, path: str) -> None:
    response = offline().open(path, method=method, headers={"Authorization": f"Bearer {TOKEN}"})
    assert error_of(response, 404)[0] == "not_found"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"])
def test_a_method_that_is_not_allowed_is_405_and_names_those_that_are(method: str) -> None:
    response = offline().open(PATH, method=method, headers={"Authorization": f"Bearer {TOKEN}"})
    assert error_of(response, 405)[0] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


def test_head_is_405_without_a_body() -> None:
    response = offline().head(PATH, headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 405
    assert response.data == b""


def test_an_error_in_flask_itself_is_500_in_the_contract_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_args: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(schemas, "check_request", explode)
    response = post(offline(), ask())
    assert error_of(response, 500)[0] == "internal_error"
    assert SECRET not in response.text
    assert SECRET not in "".join(capsys.readouterr())


# Who gets in.


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer "])
def test_the_scheme_may_be_written_in_any_case(scheme: str) -> None:
    assert post(offline(), ask(), {"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Token {TOKEN}",
        f"Bearer: {TOKEN}",
        f"Bearer{TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN} x",
        f"Bearer {TOKEN},{TOKEN}",
        f"Bearer {TOKEN.upper()}",
        f'Bearer "{TOKEN}"',
        f"Bearer team:{TOKEN}",
        "Bearer team",
        f"Bearer \xa0{TOKEN}",
        f"Bearer {TOKEN}\xa0",
        "Bearer tökén",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 20_000,
        "Basic dXNlcjpwYXNz",
        "Bearer null",
    ],
    ids=lambda header: header[:40],
)
def test_a_token_that_is_missing_or_not_known_is_401(header: str) -> None:
    response = post(offline(), ask(), {"Authorization": header})
    assert error_of(response, 401)[0] == "unauthorized"
    scheme, _, token = header.partition(" ")
    is_bearer = scheme.lower() == "bearer" and token.strip(" ")
    challenge = 'Bearer error="invalid_token"' if is_bearer else "Bearer"
    assert response.headers["WWW-Authenticate"] == challenge
    assert ("the token is empty" in response.text) == (scheme.lower() == "bearer" and not is_bearer)
    assert TOKEN not in response.text


def test_no_authorization_header_is_401() -> None:
    assert error_of(offline().post(PATH, json=ask()), 401)[0] == "unauthorized"


def test_a_token_in_the_query_or_a_cookie_is_no_token() -> None:
    headers = {"Cookie": f"token={TOKEN}", "X-Api-Key": TOKEN}
    response = offline().post(f"{PATH}?token={TOKEN}", json=ask(), headers=headers)
    error_of(response, 401)


def test_nobody_gets_in_when_no_tokens_are_set() -> None:
    closed = client(OFFLINE="1", ACCESS_TOKENS="")
    for header in ("", "Bearer", "Bearer ", f"Bearer {TOKEN}", "Bearer None"):
        error_of(post(closed, ask(), {"Authorization": header}), 401)


def test_a_token_outside_ascii_is_known_by_its_utf_8_bytes() -> None:
    there = client(OFFLINE="1", ACCESS_TOKENS="team:tökén")
    as_wsgi = "tökén".encode().decode("latin-1")
    assert post(there, ask(), {"Authorization": f"Bearer {as_wsgi}"}).status_code == 200


@pytest.mark.parametrize(
    ("brand", "status"), [("loop", 200), ("acme", 200), ("other", 403), ("Loop", 403), ("lo", 403)]
)
def test_a_bound_token_serves_its_brands_only(brand: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {BOUND_TOKEN}"}
    response = post(offline(), ask(brand_id=brand), headers)
    assert response.status_code == status
    if status == 403:
        assert error_of(response, 403)[0] == "brand_not_allowed"
        assert "acme" not in response.text


def test_access_comes_before_everything_else() -> None:
    for path in ("/nothing", PATH, "/v1/models"):
        for method in ("GET", "POST", "DELETE"):
            response = offline().open(path, method=method, data=b"no JSON")
            assert error_of(response, 401)[0] == "unauthorized"
    gzip = post(offline(), b"", {"Authorization": "", "Content-Encoding": "gzip"})
    assert gzip.status_code == 401


def test_the_health_check_needs_no_token_and_no_provider() -> None:
    response = client(ACCESS_TOKENS="").get("/healthz")
    assert response.status_code == 200
    assert response.get_json() == {"status": "ok"}


def head_of(token: str | None, more: str, length: int = 1000) -> bytes:
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {PATH} HTTP/1.1\r\nHost: test\r\n{authorization}{more}"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (head_of(None, ""), 401),
        (head_of("wrong", ""), 401),
        (head_of(TOKEN, "Content-Encoding: gzip\r\n"), 415),
        (head_of(TOKEN, "", 20_000_000), 413),
    ],
)
def test_what_the_head_decides_is_answered_before_the_body_comes(
    head: bytes, status: int, offline_service: Service
) -> None:
    with offline_service.connect() as sock:
        sock.settimeout(3)
        sock.sendall(head)  # and nothing of the body
        assert sock.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


# Real sockets.


def test_a_chunked_body_is_served(offline_service: Service) -> None:
    response = requests.post(
        offline_service.url + PATH,
        data=iter([json.dumps(ask(text="Good day")).encode()[i : i + 7] for i in range(0, 999, 7)]),
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=10,
    )
    assert response.status_code == 200
    assert "Good day" in response.text


def test_a_body_that_ends_early_is_400_and_says_so(offline_service: Service) -> None:
    with offline_service.connect() as sock:
        sock.sendall(head_of(TOKEN, "") + b'{"messages"')
        sock.shutdown(socket.SHUT_WR)
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request")
    assert b'"incomplete_body"' in answer


def test_a_connection_serves_on_after_each_kind_of_error(offline_service: Service) -> None:
    with requests.Session() as session:
        url, good = offline_service.url + PATH, {"Authorization": f"Bearer {TOKEN}"}
        for status, data, headers in (
            (401, b"x" * 1000, {}),
            (400, b"x", good),
            (415, b"x" * 1000, good | {"Content-Encoding": "gzip"}),
            (200, json.dumps(ask()).encode(), good),
            (400, b"", good),
            (413, b" " * 9_000_000, good),
            (200, json.dumps(ask()).encode(), good),
        ):
            response = session.post(url, data=data, headers=headers, timeout=10)
            assert response.status_code == status


def test_a_giant_or_foreign_token_is_a_plain_401_on_a_real_socket(service: Service) -> None:
    for token in ("x" * 8_000, "tökén".encode().decode("latin-1"), "\xff"):
        response = service.post(ask(), token=token)
        assert response.status_code == 401
        assert response.json()["error"] == "unauthorized"


def test_every_answer_of_the_real_server_has_its_reason_phrase(service: Service) -> None:
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert service.post(b"{").reason == "Bad Request"
    assert service.post(ask(), token="x").reason == "Unauthorized"
    assert requests.get(service.url + "/x", headers=good, timeout=10).reason == "Not Found"
    assert requests.get(service.url + PATH, headers=good, timeout=10).reason == "Method Not Allowed"


def test_flask_run_serves_the_same_and_refuses_at_once(tmp_path: Path) -> None:
    with Service(tmp_path / "log", "flask", "run", OFFLINE="1") as service:
        good = {"Authorization": f"Bearer {TOKEN}"}
        for status, data, headers in (
            (200, json.dumps(ask()).encode(), good),
            (200, json.dumps(ask(stream=True)).encode(), good),
            (400, b"{", good),
            (401, json.dumps(ask()).encode(), {}),
            (415, b"x", good | {"Content-Encoding": "gzip"}),
        ):
            url = service.url + PATH
            response = requests.post(url, data=data, headers=headers, timeout=3)
            assert response.status_code == status
        assert requests.get(service.url + "/nothing", headers=good, timeout=3).status_code == 404


# Request ids and headers.


@pytest.mark.parametrize("name", ["a", "A-1_b.c~d", "0" * 128, "!#$%&'*+.^_`|~", "-"])
def test_a_request_id_that_is_a_plain_token_is_kept(name: str) -> None:
    response = post(offline(), ask(), {"X-Request-Id": name})
    assert response.headers["X-Request-Id"] == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a,b", "0" * 129, "é", "a\x00", "{}", '"a"', "a/b", "a:b", "a\tb"]
)
def test_a_request_id_of_another_form_is_replaced(name: str) -> None:
    response = post(offline(), ask(), {"X-Request-Id": name})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])


def test_request_ids_that_are_made_differ() -> None:
    made = {offline().get("/healthz").headers["X-Request-Id"] for _ in range(20)}
    assert len(made) == 20


def test_every_answer_has_a_request_id_and_the_security_headers(
    service: Service, provider: Upstream
) -> None:
    for response in (
        service.post(ask()),
        service.post(ask(stream=True)),
        service.post(b"{"),
        service.post(ask(), token=None),
        requests.get(service.url + "/healthz", timeout=10),
    ):
        headers = response.headers
        assert headers["X-Request-Id"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"].startswith("no-store")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "max-age" in headers["Strict-Transport-Security"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Set-Cookie" not in headers
    assert len(provider.received) == 2
