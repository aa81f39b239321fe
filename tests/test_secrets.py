"""After a bad day: what the log and the answers must never show, and lines nobody can forge."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from tests.conftest import (
    ANTHROPIC_KEY,
    BOUND_TOKEN,
    CLAUDE,
    GPT,
    OPENAI_KEY,
    TOKEN,
    Service,
    ask,
    serve,
)
from tests.upstream import CUT, RESET, STALL, Reply, Upstream, endless, raw, refuse, say

CANARY = "canary-7f3a9c"
SECRETS = (CANARY, TOKEN, BOUND_TOKEN, ANTHROPIC_KEY, OPENAI_KEY, "secret-key")
FORGED = '{"event": "usage", "caller": "forged"}'
CALL = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {TOKEN}"
# What gunicorn itself writes when it starts and stops.
SERVER_LINE = re.compile(r"\[[-:+ \d]+\] \[\d+\] \[[A-Z]+\] [ -~]+")


@dataclass
class BadDay:
    """A service after all sorts of mishaps, and all that it answered."""

    service: Service
    heads: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def note(self, response: requests.Response) -> None:
        lines = [f"{name}: {value}" for name, value in response.headers.items()]
        self.heads.append("\r\n".join([f"HTTP/1.1 {response.status_code}", *lines]))
        if response.status_code >= 400:
            self.refusals.append(response.text)

    def post(self, body: Any, **more: Any) -> None:
        self.note(self.service.post(body, **more))

    def say_raw(self, data: bytes) -> None:
        """Send these bytes, on a connection of their own, and note the answer."""
        with self.service.connect() as caller:
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            said = b""
            while read := caller.recv(65536):
                said += read
        head, _, body = said.decode().partition("\r\n\r\n")
        self.heads.append(head)
        self.refusals.append(body)

    def hang_up(self, **request: Any) -> None:
        who = f"gone-{len(self.heads)}-{request}"
        self.service.send(ask(text=CANARY, requested_by=who, **request)).close()
        self.service.records(requested_by=who)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    for service, provider in serve(
        tmp_path_factory, READ_TIMEOUT_S=0.3, TOTAL_TIMEOUT_S=0.6, ARRIVAL_TIMEOUT_S=0.5
    ):
        day = BadDay(service)
        providers_fail(day, provider)
        callers_err(day)
        callers_forge(day)
        callers_send_nonsense(day)
        callers_leave(day, provider)
        yield day


def providers_fail(day: BadDay, provider: Upstream) -> None:
    quoting = f"{ANTHROPIC_KEY} {OPENAI_KEY} said {CANARY}"
    replies: list[Reply] = [
        *(refuse(status, quoting, x_should_retry="false") for status in (401, 403, 429, 500, 529)),
        refuse(302, location=f"http://127.0.0.1:9/{CANARY}"),
        raw(f"HTTP/1.1 200 {CANARY}\r\n{CANARY}: {CANARY}\r\n\r\n{CANARY}".encode(), CUT),
        raw(f"{CANARY}\r\n\r\n".encode(), CUT),
        raw(f"HTTP/1.1 500 No\r\nx-request-id: {CANARY} {CANARY}\r\n\r\n".encode(), RESET),
        endless(b"HTTP/1.1 200 OK\r\n\r\n", CANARY.encode() * 1000),
        say(f"echo {CANARY}", CUT),
        say(f"echo {CANARY}", STALL),
        raw(STALL),
    ]
    for model, stream in ((CLAUDE, True), (GPT, False)):
        for reply in replies:
            provider.replies.clear()
            provider.replies.extend([_once_more(reply)] * 3)
            day.post(ask(model, CANARY, stream=stream))
    provider.replies.clear()


def _once_more(reply: Reply) -> Reply:
    """An endless reply is good for one request only."""
    if isinstance(reply.parts, list):
        return reply
    return endless(b"HTTP/1.1 200 OK\r\n\r\n", CANARY.encode() * 1000)


def callers_err(day: BadDay) -> None:
    for token in (None, CANARY, f"{TOKEN}x", TOKEN.upper()):
        day.post(ask(text=CANARY), token=token)
    day.post(ask(text=CANARY, brand_id="other"), token=BOUND_TOKEN)
    for body in (
        f'{{"messages": "{CANARY}'.encode(),
        CANARY.encode() + b"\xff",
        b"[" * 100_000 + CANARY.encode(),
        b"1" * 10_000,
        json.dumps([CANARY]).encode(),
        ask() | {"messages": CANARY},
        ask() | {"messages": [{"role": CANARY, "content": "Hi"}]},
        ask() | {"messages": [{"role": "user", "content": {CANARY: CANARY}}]},
        ask() | {"model": CANARY},
        ask() | {"temperature": CANARY},
        ask(CLAUDE) | {"messages": [{"role": "assistant", "content": CANARY}]},
    ):
        day.post(body)
    day.post(ask(text=CANARY), headers={"Content-Encoding": CANARY})
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        day.note(requests.request(method, f"{day.service.url}/{CANARY}", headers=headers))
        url = f"{day.service.url}/v1/chat/completions?{CANARY}"
        day.note(requests.request(method, url, headers=headers))
    day.note(requests.get(f"{day.service.url}/healthz"))


def callers_forge(day: BadDay) -> None:
    for break_ in ("\n", "\r\n", "\u2028", "\x85", "\x00", "\x1b[2K", '"}\n'):
        day.post(ask(brand_id=f"a{break_}{FORGED}", requested_by=f"b{break_}{FORGED}"))
    for name in ("X-Request-Id", "User-Agent", "Referer", "X-Forwarded-For", "Content-Type"):
        day.post(ask(), headers={name: f"a\t{FORGED}"})
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    day.note(requests.get(f"{day.service.url}/%0a{FORGED}%0d%0a", headers=authorized))


def callers_send_nonsense(day: BadDay) -> None:
    for head in (
        f"GET /{CANARY}\n{FORGED} HTTP/1.1",
        f"{CANARY} / HTTP/1.1",
        f"GET /{CANARY} HTTP/{FORGED}",
        f"GET /{CANARY * 1000} HTTP/1.1",
        f"GET / HTTP/1.1\r\n{CANARY} x: y",
        f"GET / HTTP/1.1\r\nX: a\r{FORGED}",
        f"GET / HTTP/1.1\r\nX: a\x00{FORGED}",
        f"GET / HTTP/1.1\r\nTransfer-Encoding: {CANARY}",
        f"GET / HTTP/1.1\r\nContent-Length: {CANARY}",
        f"GET / HTTP/1.1\r\nExpect: {CANARY}",
        f"GET / HTTP/1.1\r\nX-Long: {CANARY * 100_000}",
        f"{CALL}\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}",
        f"{CALL}\r\nContent-Length: 9999\r\n\r\n{CANARY}",
    ):
        day.say_raw(f"{head}\r\n\r\n".encode("latin-1"))


def callers_leave(day: BadDay, provider: Upstream) -> None:
    for reply in (say(CANARY, STALL), say(STALL), say(*[CANARY, 0.05] * 100)):
        for stream in (False, True):
            provider.replies.append(reply)
            day.hang_up(stream=stream)


def test_the_log_holds_no_prompt_no_token_and_no_key(day: BadDay) -> None:
    assert [secret for secret in SECRETS if secret in day.service.log] == []


def test_the_log_holds_no_traceback(day: BadDay) -> None:
    for word in ("Traceback", 'File "', "Error:", "site-packages"):
        assert word not in day.service.log


def test_nothing_crashed(day: BadDay) -> None:
    assert '"event": "crash"' not in day.service.log


def test_no_line_of_the_log_is_forged(day: BadDay) -> None:
    lines = day.service.log.split("\n")[:-1]
    assert all(line.isprintable() and line.isascii() for line in lines)
    for line in lines:
        if line.startswith("{"):
            assert json.loads(line)["event"] in ("usage", "refused")
        else:
            assert SERVER_LINE.fullmatch(line), line
    assert "forged" not in {record["caller"] for record in day.service.records()}


def test_every_record_is_short_enough_to_be_written_in_one_piece(day: BadDay) -> None:
    day.post(ask(brand_id="\U0001f511" * 5000, requested_by="\U0001f511" * 5000))
    assert max(map(len, day.service.log.split("\n"))) < 4096


def test_no_refusal_shows_a_secret_or_the_inside(day: BadDay) -> None:
    inside = (
        "Traceback",
        "File ",
        ".py",
        "urllib3",
        "gunicorn",
        "werkzeug",
        "127.0.0.1",
        "object at",
    )
    for text in day.refusals:
        assert [word for word in (*SECRETS, *inside) if word in text] == [], text


def test_every_refusal_has_the_contract_s_shape(day: BadDay) -> None:
    for text in filter(None, day.refusals):  # a HEAD has none
        document = json.loads(text)
        assert sorted(document) == ["error", "message"]
        assert re.fullmatch(r"[a-z_]+", document["error"])
    assert len(day.refusals) > 60


def test_every_answer_has_the_security_headers_and_a_request_id(day: BadDay) -> None:
    for head in day.heads:
        assert "\r\nCache-Control: no-store" in head, head
        assert "\r\nX-Content-Type-Options: nosniff" in head, head
        assert re.search(r"\r\nX-Request-Id: [!-~]{1,128}(\r\n|$)", head), head
        assert [secret for secret in SECRETS if secret in head] == []
        assert "forged" not in head


def test_what_is_refused_before_the_service_sees_it_is_logged_by_request_id_and_code(
    day: BadDay,
) -> None:
    lines = [json.loads(line) for line in day.service.log.splitlines() if '"refused"' in line]
    answered = {match[1] for head in day.heads if (match := re.search(r"Id: (\w+)", head))}
    assert {line["code"] for line in lines} >= {
        "malformed_http",
        "headers_too_large",
        "uri_too_long",
        "unauthorized",
        "invalid_json",
    }
    assert all(line["request_id"] in answered for line in lines)


def test_a_request_id_is_taken_over_only_if_it_is_a_plain_token(service: Service) -> None:
    for given, taken in (
        ("abc-1.2_3", True),
        ("a" * 128, True),
        ("a b", False),
        ("a" * 129, False),
        ("é", False),
    ):
        response = service.post(ask(), headers={"X-Request-Id": given.encode()})
        assert (response.headers["X-Request-Id"] == given) is taken
        assert service.record_of(response)["request_id"] == response.headers["X-Request-Id"]
