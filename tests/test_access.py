"""Who gets in: callers with a token that is known, for the brands that it is bound to."""

from hashlib import sha256

import pytest

from tests.conftest import BOUND_TOKEN, TOKEN, Service, ask
from tests.inprocess import PATH, client, error_of, head_of, offline, post
from tests.upstream import Upstream


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


@pytest.mark.parametrize("brand_id", ["loop", "acme"])
def test_a_bound_token_serves_its_brands(brand_id: str) -> None:
    headers = {"Authorization": f"Bearer {BOUND_TOKEN}"}
    assert post(offline(), ask(brand_id=brand_id), headers).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("brand_id", ["other", "Loop", "loop ", "loop|acme", "lo", "lóop"])
def test_a_bound_token_is_refused_for_any_other_before_a_provider_is_called(
    brand_id: str, stream: bool, service: Service, provider: Upstream
) -> None:
    response = service.post(ask(brand_id=brand_id, stream=stream), token=BOUND_TOKEN)
    assert response.status_code == 403
    assert response.json()["error"] == "brand_not_allowed"
    assert "brand_id" in response.json()["message"]
    for brand in ("loop", "acme", "other"):
        assert brand not in response.text
    record = service.record_of(response)
    assert (record["caller"], record["brand_id"]) == ("bound", brand_id)
    assert (record["status"], record["code"]) == ("error", "brand_not_allowed")
    assert provider.received == []


def test_a_token_without_brands_serves_any() -> None:
    assert post(offline(), ask(brand_id="whoever")).status_code == 200


def test_a_token_that_is_set_by_its_hash_is_known() -> None:
    there = client(OFFLINE="1", ACCESS_TOKENS=f"team:sha256={sha256(b'my-token').hexdigest()}")
    assert post(there, ask(), {"Authorization": "Bearer my-token"}).status_code == 200
    for token in ("sha256=" + sha256(b"my-token").hexdigest(), sha256(b"my-token").hexdigest()):
        error_of(post(there, ask(), {"Authorization": f"Bearer {token}"}), 401)


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
