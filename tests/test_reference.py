"""What people read of the service: the page, its examples, the OpenAPI document, the models."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import openapi_spec_validator
import pytest
import requests
from openai import OpenAI

import providers
import reference
import schemas
from core import errors
from tests.conftest import ROOT

OPENAI_NODE_VERSION = "7.57.0"
EXAMPLES = [
    f"{language}-{kind}"
    for language in ("curl", "python", "javascript")
    for kind in ("full", "stream")
]


class Texts(HTMLParser):
    """The text of every element that has an id, and all addresses that the page loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}
        self.loads: list[str] = []
        self._open: list[str | None] = []
        self.feed(html)

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


def test_the_schema_files_are_in_the_openapi_document_as_they_are(document: dict[str, Any]) -> None:
    assert document["components"]["schemas"] == schemas.DOCUMENTS


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


def test_the_page_has_every_field_of_the_schemas_with_its_meaning(page: requests.Response) -> None:
    rows = re.findall(
        r'<th role="rowheader" scope="row"><code>(.*?)</code></th>(.*?)</tr>', page.text, re.S
    )
    meanings = dict.fromkeys(name for name, _ in rows)
    for name, row in rows:
        cell = re.sub(r'<span class="limits">.*?</span>', "", row.split('class="meaning">')[-1])
        meanings[name] = re.sub(r"<.*?>", "", cell).strip()
    for name in ("request", "response-200", "response-500"):
        for field in reference.fields_of(schemas.DOCUMENTS[name]):
            assert meanings[field.path], field.path


def test_the_page_explains_no_field_that_the_schemas_do_not_have(
    app_for_templates: Any,
) -> None:
    explained = app_for_templates.jinja_env.get_template("reference.html").make_module(
        {"document": reference.DOCUMENT, "fields_of": reference.fields_of, "kinds": {}}
    )
    paths = {
        field.path
        for document in schemas.DOCUMENTS.values()
        for field in reference.fields_of(document)
    }
    assert set(explained.meanings) == paths


@pytest.fixture
def app_for_templates() -> Any:
    from flask import Flask

    app = Flask(__name__)
    app.register_blueprint(reference.blueprint)
    return app


def test_the_page_tells_the_limits_of_every_field(page: requests.Response) -> None:
    for limits in ("from 0 up to 2", "above 0", "1 or more items", "1 or more characters"):
        assert f'<span class="limits">{limits}</span>' in page.text


def test_a_limit_without_words_is_shown_as_the_schema_writes_it() -> None:
    assert reference.limits_of({"type": "string", "pattern": "^a$"}) == "pattern ^a$"


def test_the_page_says_of_every_error_what_to_do(page: requests.Response) -> None:
    table = re.sub(r"</?code>", "`", page.text).replace("&#39;", "'")
    for kind in errors.KINDS:
        assert kind.code in table
        assert kind.remedy in table


def test_the_page_names_the_address_it_was_asked_under(offline_service: Any) -> None:
    html = requests.get(offline_service.url, headers={"Host": "ai.example:81"}, timeout=10).text
    assert "http://ai.example:81/v1/chat/completions" in html
    assert offline_service.url not in html


# The examples


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest) -> Path:
    """A folder from which node finds OpenAI's package; kept between runs."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = Path(request.config.cache.mkdir(f"openai-node-{OPENAI_NODE_VERSION}"))
    if not (folder / "node_modules" / "openai").exists():
        package = f"openai@{OPENAI_NODE_VERSION}"
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", package]
        run = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
        if run.returncode:
            pytest.skip(f"npm cannot install {package}: {run.stderr[-200:]}")
    return folder


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
    else:
        assert "Say hello in five words." in run.stdout
