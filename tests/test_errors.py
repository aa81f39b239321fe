"""Every error, on every path and status, has one shape."""

import re

import pytest

import schemas
from tests.conftest import BOUND_TOKEN, TOKEN, ask
from tests.inprocess import PATH, busy, client, error_of, offline, padded, post


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
        raise RuntimeError("the-secret")

    monkeypatch.setattr(schemas, "check_request", explode)
    response = post(offline(), ask())
    assert error_of(response, 500)[0] == "internal_error"
    assert "the-secret" not in response.text
    assert "the-secret" not in "".join(capsys.readouterr())
