"""A request's body on its way in: its size, its framing, and connections after it."""

import io
import json
import socket
import tracemalloc
from pathlib import Path

import pytest
import requests

from chat.request import read
from core.errors import ServiceError
from tests.conftest import TOKEN, Service, ask
from tests.inprocess import PATH, client, error_of, head_of, offline, padded, post


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


@pytest.mark.parametrize(("told", "status"), [("9" * 5000, 413), ("0" * 5000, 400)])
def test_a_length_of_any_length_is_understood(told: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    environ = {"CONTENT_LENGTH": told}
    assert offline().post(PATH, headers=headers, environ_overrides=environ).status_code == status


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


OBJECTS = b"[" + b",".join([b'{"":0}'] * 100_000) + b"]"
REFUSED = {
    "not an object": OBJECTS,
    "a wrong type": b'{"messages": %b}' % OBJECTS,
    "a missing field": b'{"x": %b}' % OBJECTS,
    "a wrong newer name": json.dumps(ask(max_completion_tokens="x")).encode()[:-1]
    + b', "x": %b}' % OBJECTS,
    "half a surrogate pair": b'{"x": %b, "y": "\\ud800"}' % OBJECTS,
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_nothing_of_a_large_body_is_kept_beside_its_refusal(body: bytes) -> None:
    tracemalloc.start()
    try:
        read(body, {})
    except ServiceError:
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < len(body) < peak
