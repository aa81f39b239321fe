"""Which requests are refused, in what words, and which are served."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import responses

import app
import schemas
from tests.conftest import CLAUDE, GPT, ask
from tests.inprocess import client, error_of, offline, post, sent

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
