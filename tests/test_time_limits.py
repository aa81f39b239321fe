"""Connect, silence and total limits, against providers that are slow in every way there is."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import requests

from tests.conftest import CLAUDE, GPT, ROOT, Service, ask, pointed_at, serve
from tests.upstream import (
    STALL,
    Part,
    Reply,
    Upstream,
    events,
    openai_completion,
    openai_events,
    raw,
    say,
    sse,
)

SILENCE_S, TOTAL_S, STREAM_S = 0.3, 0.7, 0.8
# What the watchdog's pace and a busy machine may add.
LATE_S = 1.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
PING = sse({"type": "ping"}, "ping")


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(
        tmp_path_factory,
        READ_TIMEOUT_S=SILENCE_S,
        TOTAL_TIMEOUT_S=TOTAL_S,
        STREAM_TIMEOUT_S=STREAM_S,
    )


def slowly(data: bytes, pause_s: float = 0.1) -> list[Part]:
    """A byte at a time."""
    return [part for byte in data for part in (bytes([byte]), pause_s)]


def error_of(response: requests.Response) -> dict[str, str]:
    assert response.status_code == 500, response.text
    document: dict[str, str] = response.json()
    assert sorted(document) == ["error", "message"]
    return document


def last_error(response: requests.Response) -> dict[str, str]:
    assert response.status_code == 200, response.text
    assert "[DONE]" not in response.text
    document = json.loads(response.text.strip().split("\n\n")[-1][6:])
    error: dict[str, str] = document["error"]
    return error


SLOW_ANSWERS = {
    "its body trickles": raw(HEAD + b"content-length: 500\r\n\r\n", *slowly(b" " * 500)),
    "its headers trickle": raw(HEAD + b"x-slow: ", *slowly(b"a" * 500)),
    "it says 100 Continue for ever": raw(*[b"HTTP/1.1 100 Continue\r\n\r\n", 0.05] * 500),
    "its error trickles": raw(
        b"HTTP/1.1 400 No\r\ncontent-length: 500\r\n\r\n", *slowly(b" " * 500)
    ),
    "it is silent": say(STALL),
}


@pytest.mark.parametrize("reply", SLOW_ANSWERS.values(), ids=SLOW_ANSWERS)
def test_a_full_answer_is_cut_off_by_the_total_limit_when(
    reply: Reply, service: Service, provider: Upstream
) -> None:
    provider.replies.append(reply)
    response = service.post(ask())
    assert TOTAL_S <= response.elapsed.total_seconds() < TOTAL_S + LATE_S
    error = error_of(response)
    assert error["error"] == "provider_timeout"
    assert '"stream": true' in error["message"]
    assert response.headers["X-Should-Retry"] == "false"
    assert provider.received[0].gone.wait(2)
    record = service.record_of(response)
    assert (record["status"], record["code"]) == ("error", "provider_timeout")
    assert record["attempts"] == 1


def test_a_full_answer_may_be_silent_for_longer_than_a_stream(
    service: Service, provider: Upstream
) -> None:
    provider.replies.append(say(SILENCE_S + 0.2, "at last"))
    assert service.post(ask()).status_code == 200


def test_the_total_limit_spans_all_attempts(service: Service, provider: Upstream) -> None:
    unavailable = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\nretry-after: 0\r\n\r\n"
    provider.replies.extend(raw(0.5, unavailable) for _ in range(3))
    response = service.post(ask())
    assert response.elapsed.total_seconds() < TOTAL_S + LATE_S
    assert error_of(response)["error"] == "provider_timeout"
    assert len(provider.received) == 2


@pytest.mark.parametrize("model", [CLAUDE, GPT])
def test_a_stream_that_falls_silent_ends_with_an_error_event(
    model: str, service: Service, provider: Upstream
) -> None:
    provider.replies.append(say("Hel", STALL))
    began = time.monotonic()
    response = service.post(ask(model, stream=True))
    assert SILENCE_S <= time.monotonic() - began < SILENCE_S + LATE_S
    assert last_error(response)["code"] == "provider_timeout"
    assert '"content": "Hel"' in response.text
    assert provider.received[0].gone.wait(2)
    assert service.record_of(response)["code"] == "provider_timeout"


def test_a_stream_that_never_begins_is_a_500(service: Service, provider: Upstream) -> None:
    provider.replies.append(events(STALL))
    response = service.post(ask(stream=True))
    assert error_of(response)["error"] == "provider_timeout"
    assert SILENCE_S <= response.elapsed.total_seconds() < SILENCE_S + LATE_S


ENDLESS_STREAMS: dict[str, tuple[str, Callable[[], Reply]]] = {
    "its text never ends": (GPT, lambda: say(*["and ", 0.1] * 500)),
    "only pings come": (CLAUDE, lambda: say("Hel", *[PING, 0.1] * 500)),
    "only comments come": (GPT, lambda: say("Hel", *[b": wait\n\n", 0.1] * 500)),
    "an event trickles": (GPT, lambda: events(next(openai_events([])), *slowly(b"data: " * 500))),
}


@pytest.mark.parametrize(("model", "reply"), ENDLESS_STREAMS.values(), ids=ENDLESS_STREAMS)
def test_a_stream_is_cut_off_by_the_overall_limit_when(
    model: str, reply: Callable[[], Reply], service: Service, provider: Upstream
) -> None:
    provider.replies.append(reply())
    began = time.monotonic()
    response = service.post(ask(model, stream=True))
    assert STREAM_S <= time.monotonic() - began < STREAM_S + LATE_S
    assert last_error(response)["code"] == "provider_timeout"
    assert provider.received[0].gone.wait(2)


def test_a_stream_whose_headers_trickle_is_cut_off_by_the_overall_limit(
    service: Service, provider: Upstream
) -> None:
    provider.replies.append(raw(HEAD + b"x-slow: ", *slowly(b"a" * 500)))
    response = service.post(ask(stream=True))
    assert STREAM_S <= response.elapsed.total_seconds() < STREAM_S + LATE_S
    assert error_of(response)["error"] == "provider_timeout"


def test_a_provider_that_takes_no_connection_is_given_up(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    with ExitStack() as full, socket.create_server(("127.0.0.1", 0), backlog=0) as hole:
        address = hole.getsockname()
        full.enter_context(socket.create_connection(address))  # the only one it has room for
        elsewhere = {"OPENAI_BASE_URL": f"http://127.0.0.1:{address[1]}/v1"}
        service = start(**pointed_at(upstream) | elsewhere, CONNECT_TIMEOUT_S=0.2)
        response = service.post(ask())
    error = error_of(response)
    assert error["error"] == "provider_timeout"
    assert "took no connection within 0.2 s" in error["message"]
    assert response.elapsed.total_seconds() < 3 * 0.2 + 0.5 + 1 + LATE_S
    assert service.record_of(response)["attempts"] == 3


def test_a_provider_that_stops_reading_the_request_is_not_asked_again(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        elsewhere = {"OPENAI_BASE_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"}
        service = start(**pointed_at(upstream) | elsewhere, READ_TIMEOUT_S=0.3)
        response = service.post(ask(text="y" * 6_000_000, stream=True))
    assert error_of(response)["error"] == "provider_timeout"
    assert service.record_of(response)["attempts"] == 1


def test_a_long_request_may_take_longer_to_send_than_a_connection_to_make(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    def read_late() -> None:
        sock, _address = slow.accept()
        with sock, sock.makefile("rb") as stream:
            time.sleep(0.8)  # longer than CONNECT_TIMEOUT_S
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split()[1])
            stream.read(length)
            document = json.dumps(openai_completion("Hello")).encode()
            sock.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(document) + document)

    with socket.create_server(("127.0.0.1", 0)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        threading.Thread(target=read_late, daemon=True).start()
        elsewhere = {"OPENAI_BASE_URL": f"http://127.0.0.1:{slow.getsockname()[1]}/v1"}
        service = start(**pointed_at(upstream) | elsewhere, CONNECT_TIMEOUT_S=0.3)
        response = service.post(ask(text="y" * 6_000_000))
    assert response.status_code == 200, response.text
    assert service.record_of(response)["attempts"] == 1


def test_callers_who_stop_reading_lose_their_slots_at_the_overall_limit(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream), THREADS=5, STREAM_TIMEOUT_S=0.5)
    # More than the kernel's buffers hold on either side, and no end that they could swallow.
    upstream.default = say(*["x" * 60_000] * 200, STALL)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(service.send(ask(stream=True), buffer_bytes=4096))
        for request in upstream.wait_for(4):
            assert request.gone.wait(5)
        upstream.default = say("Hello")
        service.until(lambda: service.post(ask()).status_code == 200)


def test_on_heroku_a_full_answer_fails_before_the_router_gives_up() -> None:
    manifest = json.loads((ROOT / "app.json").read_text())
    assert float(manifest["env"]["TOTAL_TIMEOUT_S"]["value"]) < 30
    assert float(manifest["env"]["READ_TIMEOUT_S"]["value"]) < 30
