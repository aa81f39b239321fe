"""Request ids, and the headers that are on every answer."""

import re

import pytest
import requests

from tests.conftest import Service, ask
from tests.inprocess import offline, post
from tests.upstream import Upstream


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
