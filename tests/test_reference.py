"""What people read of the service: the page, its examples, the OpenAPI document, the models."""

import copy
import html
import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
import requests
from openai import OpenAI

import providers
import reference
import schemas
from core import errors
from tests.conftest import ROOT, ask, chunks

EXAMPLES = [
    f"{language}-{kind}"
    for language in ("curl", "python", "javascript")
    for kind in ("full", "stream", "error")
]


class Texts(HTMLParser):
    """The text of every element that has an id, and all addresses that the page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}
        self.loads: list[str] = []
        self._open: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in {"link", "script", "img"}:
            self.loads.append(values.get("href") or values.get("src") or "")
        if tag not in {"link", "meta", "input", "wbr", "img"}:
            self._open.append(values.get("id"))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for name in filter(None, self._open):
            self.by_id[name] = self.by_id.get(name, "") + data


@pytest.fixture(scope="session")
def page(offline_service: Any) -> requests.Response:
    return requests.get(offline_service.url + "/", timeout=10)


@pytest.fixture(scope="session")
def document(offline_service: Any) -> dict[str, Any]:
    answer = requests.get(offline_service.url + "/openapi.json", timeout=10)
    loaded: dict[str, Any] = answer.json()
    return loaded


# OpenAPI


def test_the_openapi_document_passes_a_validator(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    openapi_spec_validator.validate(document)


def test_the_schema_files_are_in_the_openapi_document(document: dict[str, Any]) -> None:
    there = document["components"]["schemas"]
    assert there["ChatCompletion"] == schemas.DOCUMENTS["response-200"]
    assert there["ErrorResponse"] == schemas.DOCUMENTS["response-400"]
    assert there["ErrorResponse"] == schemas.DOCUMENTS["response-500"]


def test_the_documented_request_is_the_schema_with_its_defaults_in_words(
    document: dict[str, Any],
) -> None:
    documented, schema = (
        document["components"]["schemas"]["ChatCompletionRequest"],
        copy.deepcopy(schemas.DOCUMENTS["request"]),
    )
    for name, rule in schema["properties"].items():
        description = documented["properties"][name].pop("description")
        if "default" in rule:
            assert json.dumps(rule.pop("default")) in description
    # The two headers may bring the others.
    assert documented.pop("required") == ["messages"]
    assert schema.pop("required") == ["messages", "brand_id", "requested_by"]
    assert documented == schema


def test_the_documented_server_is_the_address_it_was_asked_under(offline_service: Any) -> None:
    def servers(**headers: str) -> Any:
        url = f"{offline_service.url}/openapi.json"
        return requests.get(url, headers=headers, timeout=10).json()["servers"]

    assert servers() == [{"url": offline_service.url}]
    assert servers(Host="ai.example") == [{"url": "http://ai.example"}]
    proxied = {"Host": "ai.example", "X-Forwarded-Proto": "https"}
    assert servers(**proxied) == [{"url": "https://ai.example"}]


def test_the_documented_requests_are_answered_as_they_stand(
    offline_service: Any, document: dict[str, Any]
) -> None:
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    url = document["servers"][0]["url"] + "/v1/chat/completions"
    for example in body["application/json"]["examples"].values():
        headers = {"Authorization": f"Bearer {offline_service.token}"}
        assert requests.post(url, json=example["value"], headers=headers, timeout=10).ok


def test_live_answers_and_events_fit_their_documented_schemas(
    offline_service: Any, document: dict[str, Any]
) -> None:
    def fits(name: str, instance: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(instance)

    lines = offline_service.stream(ask(stream_options={"include_usage": True}))
    for chunk in chunks(lines):
        fits("ChatCompletionChunk", chunk)
        fits("ChatCompletionEvent", {"data": json.dumps(chunk)})
    fits("ChatCompletionEvent", {"data": lines[-1].removeprefix("data: ")})
    headers = {"Authorization": f"Bearer {offline_service.token}"}
    listed = requests.get(f"{offline_service.url}/v1/models", headers=headers, timeout=10)
    fits("ModelList", listed.json())
    operation = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    fits("ChatCompletion", operation["application/json"]["example"])


def test_typescript_types_leave_out_what_the_service_fills_in(
    offline_service: Any, node_modules: Path
) -> None:
    command = ["npx", "openapi-typescript", f"{offline_service.url}/openapi.json"]
    run = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    typed = run.stdout.split("ChatCompletionRequest: {")[1].split("\n        };")[0]
    names = re.findall(r"^            (\w+\??):", typed, re.MULTILINE)
    optional = ["temperature?", "max_tokens?", "stream?", "brand_id?", "requested_by?"]
    assert names == ["model?", "messages", *optional]
    assert "ChatCompletionChunk: {" in run.stdout
    assert '"text/event-stream": components["schemas"]["ChatCompletionEvent"]' in run.stdout
    assert '"X-Brand-Id"?: components["parameters"]["X-Brand-Id"]' in run.stdout


def test_python_models_leave_out_what_the_service_fills_in(
    offline_service: Any, document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [
        str(Path(sys.executable).with_name("datamodel-codegen")),
        *("--input", "openapi.json", "--input-file-type", "openapi", "--output", "models.py"),
        *("--output-model-type", "pydantic_v2.BaseModel", "--formatters", "builtin"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    spec = importlib.util.spec_from_file_location("generated_models", tmp_path / "models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = models  # where pydantic looks types up
    spec.loader.exec_module(models)
    message = {"role": "user", "content": "Hello"}
    body = models.ChatCompletionRequest(messages=[message], brand_id="loop", requested_by="me")
    sent = body.model_dump(mode="json", exclude_none=True)
    assert sent == {"messages": [message], "brand_id": "loop", "requested_by": "me"}
    models.ChatCompletion.model_validate(offline_service.post(sent).json())
    for chunk in chunks(offline_service.stream(sent)):
        models.ChatCompletionChunk.model_validate(chunk)


def test_every_error_code_is_in_the_openapi_document(document: dict[str, Any]) -> None:
    responses = document["components"]["responses"]
    of_the_endpoint = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    for kind in errors.KINDS:
        code = str(kind.status)
        assert kind.code in responses[code]["content"]["application/json"]["examples"]
        # Another path or another method is no answer of the endpoint.
        assert (code in of_the_endpoint) is (code not in {"404", "405"})


def test_a_live_stream_has_the_form_of_the_documented_one(
    offline_service: Any, document: dict[str, Any]
) -> None:
    operation = document["paths"]["/v1/chat/completions"]["post"]
    example = operation["responses"]["200"]["content"]["text/event-stream"]["example"]
    live = requests.post(
        offline_service.url + "/v1/chat/completions",
        headers={"Authorization": f"Bearer {offline_service.token}"},
        json={
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "brand_id": "b",
            "requested_by": "r",
        },
        timeout=10,
    ).text

    def first_and_last(stream: str) -> list[Any]:
        lines = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        return [form_of(json.loads(line)) for line in (lines[0], lines[-1])]

    def form_of(value: Any) -> Any:
        match value:
            case dict():
                return {key: form_of(child) for key, child in value.items()}
            case list():
                return [form_of(child) for child in value]
        return type(value)

    assert first_and_last(live) == first_and_last(example)


def test_a_property_based_tester_finds_nothing_in_the_live_service(
    offline_service: Any, tmp_path: Path
) -> None:
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", "--no-color"),
        *(f"{offline_service.url}/openapi.json", "--max-examples", "25", "--seed", "5"),
        *("--header", f"Authorization: Bearer {offline_service.token}"),
        # No schema can say that a body without brand_id needs the header.
        *("--header", "X-Brand-Id: loop", "--header", "X-Requested-By: me"),
        *("--phases", "examples,coverage,fuzzing", "--workers", "2"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


# The models


def test_the_models_are_listed_as_an_openai_sdk_reads_them(offline_service: Any) -> None:
    client = OpenAI(base_url=offline_service.url + "/v1", api_key=offline_service.token)
    listed = {model.id: model.owned_by for model in client.models.list()}
    assert listed == providers.PROVIDER_OF
    assert list(listed) == schemas.DOCUMENTS["request"]["properties"]["model"]["enum"]


def test_the_models_are_for_those_with_a_token(offline_service: Any) -> None:
    answer = requests.get(offline_service.url + "/v1/models", timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


# The page


def test_the_page_loads_nothing_from_elsewhere(
    offline_service: Any, page: requests.Response
) -> None:
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none';")
    for address in Texts(page.text).loads:
        if not address.startswith("data:image/svg+xml,"):
            assert re.fullmatch(r"static/reference\.(css|js)", address)
            assert requests.get(f"{offline_service.url}/{address}", timeout=10).ok


@pytest.mark.parametrize(
    "condition", [{"Range": "bytes=9999999-"}, {"Range": "bytes=1-2"}, {"If-Match": '"other"'}]
)
def test_the_page_s_files_come_whole_whatever_the_condition(
    condition: dict[str, str], offline_service: Any
) -> None:
    address = offline_service.url + "/static/reference.js"
    answer = requests.get(address, headers=condition, timeout=10)
    assert (answer.status_code, answer.text) == (
        200,
        (ROOT / "reference/static/reference.js").read_text(),
    )


@pytest.mark.parametrize("name", ["x", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "x/y", ""])
def test_there_is_nothing_else_among_the_page_s_files(name: str, offline_service: Any) -> None:
    headers = {"Authorization": f"Bearer {offline_service.token}"}
    answer = requests.get(f"{offline_service.url}/static/{name}", headers=headers, timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_the_page_has_every_field_of_the_schemas_with_its_meaning_and_an_anchor(
    page: requests.Response,
) -> None:
    rows = re.findall(
        r'<th role="rowheader" scope="row" id="(.*?)"><a class="anchor" href="#(.*?)">'
        r"<code>(.*?)</code></a></th>(.*?)</tr>",
        page.text,
        re.S,
    )
    assert all(anchor == link for anchor, link, _, _ in rows)
    meanings = {}
    for anchor, _, name, row in rows:
        cell = re.sub(r'<span class="limits">.*?</span>', "", row.split('class="meaning">')[-1])
        meanings[anchor, name] = re.sub(r"<.*?>", "", cell).strip()
    prefixes = {"request": "request", "response-200": "response", "response-500": "failure"}
    for name, prefix in prefixes.items():
        for field in reference.fields_of(schemas.DOCUMENTS[name]):
            anchor = f"{prefix}.{field.path.replace('[]', '')}"
            assert meanings[anchor, field.path], field.path
    for kind in errors.KINDS:
        assert meanings[f"error-{kind.code}", kind.code]


def test_every_link_within_the_page_leads_somewhere(page: requests.Response) -> None:
    anchors = re.findall(r' id="(.*?)"', page.text)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#(.*?)"', page.text)) <= set(anchors)


def test_no_field_is_explained_that_the_schemas_do_not_have() -> None:
    paths = {
        field.path
        for document in schemas.DOCUMENTS.values()
        for field in reference.fields_of(document)
    }
    assert set(reference.MEANINGS) == paths


def test_the_page_shows_the_schema_files_in_their_own_order(page: requests.Response) -> None:
    shown = html.unescape(page.text)
    for document in schemas.DOCUMENTS.values():
        assert json.dumps(document, indent=2) in shown


def test_the_page_tells_the_limits_that_are_set(page: requests.Response) -> None:
    limits = page.text.split('id="limits"')[1].split("</section>")[0]
    text = re.sub(r"<.*?>", "", limits)
    assert "8,000,000 bytes" in text
    for span in ("15 seconds", "10 minutes", "25 seconds", "15 minutes"):
        assert span in text


def test_the_page_tells_the_limits_of_every_field(page: requests.Response) -> None:
    for limits in ("from 0 up to 2", "above 0", "1 or more items", "1 or more characters"):
        assert f'<span class="limits">{limits}</span>' in page.text


def test_a_limit_without_words_is_shown_as_the_schema_writes_it() -> None:
    assert reference.limits_of({"type": "string", "pattern": "^a$"}) == "pattern ^a$"


def test_the_page_says_of_every_error_what_to_do(page: requests.Response) -> None:
    rows = page.text.split('<table class="plain codes"')[1].split("</table>")[0]
    table = html.unescape(re.sub(r"</?code>", "`", rows))
    for kind in errors.KINDS:
        assert kind.code in table
        assert kind.remedy in table


def test_the_page_names_the_address_it_was_asked_under(offline_service: Any) -> None:
    text = requests.get(offline_service.url, headers={"Host": "ai.example:81"}, timeout=10).text
    assert "http://ai.example:81/v1/chat/completions" in text
    assert offline_service.url not in text


# The examples


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_page_runs_as_it_stands(
    example: str, offline_service: Any, page: requests.Response, request: pytest.FixtureRequest
) -> None:
    code = Texts(page.text).by_id[f"example-{example}"]
    command, folder = ["bash", "-c", code], None
    if example.startswith("python"):
        command = [sys.executable, "-c", code]
    if example.startswith("javascript"):
        command = ["node", "--input-type=module", "--eval", code]
        folder = request.getfixturevalue("node_modules")
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "ACCESS_TOKEN": offline_service.token},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    if example == "curl-stream":
        assert run.stdout.endswith("data: [DONE]\n\n")
    elif example.endswith("error"):
        said = run.stdout + run.stderr
        assert "invalid_input" in said
        assert "temperature must be at most 2" in said
    else:
        assert "Say hello in five words." in run.stdout
