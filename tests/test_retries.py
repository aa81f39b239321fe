"""What is tried again, when, and how often: before the first byte only, and never for long."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from providers.http import retries
from providers.http.retries import RetryBudget
from tests.conftest import CLAUDE, GPT, Service, ask, pointed_at, serve, text_of
from tests.upstream import (
    CUT,
    RESET,
    STALL,
    Reply,
    Upstream,
    body,
    events,
    raw,
    refuse,
    say,
    sse,
)

# At once, so that the tests do not wait; the provider's word goes before our own pause.
NOW = {"retry_after": "0"}


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(tmp_path_factory, READ_TIMEOUT_S=0.3, TOTAL_TIMEOUT_S=5)


@pytest.fixture
def fresh(start: Callable[..., Service], upstream: Upstream) -> Service:
    """A service of the test's own, whose retry budget nobody has used."""
    return start(**pointed_at(upstream))


# What is tried again.


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_status_that_may_heal_is_tried_again(
    status: int, service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(status, **NOW))
    model = CLAUDE if status % 2 else GPT
    response = service.post(ask(model))
    assert response.status_code == 200
    assert len(provider.received) == 2
    assert service.record_of(response)["attempts"] == 2


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_a_status_that_cannot_heal_is_not_tried_again(
    status: int, service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(status))
    response = service.post(ask())
    assert response.status_code == 500
    assert response.headers["X-Should-Retry"] == "false"
    assert len(provider.received) == 1
    assert service.record_of(response)["attempts"] == 1


@pytest.mark.parametrize("end", [CUT, RESET])
def test_a_connection_that_dies_before_the_answer_is_tried_again(
    end: Reply, fresh: Service, upstream: Upstream
) -> None:
    upstream.replies.append(raw(end))
    response = fresh.post(ask())
    assert response.status_code == 200
    assert fresh.record_of(response)["attempts"] == 2


def test_a_stream_that_is_refused_at_first_is_tried_again(
    service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(529, **NOW))
    assert text_of(service.stream(ask(CLAUDE))) == "Hello there"
    assert len(provider.received) == 2


def test_a_provider_that_cannot_be_reached_is_tried_three_times(
    start: Callable[..., Service], upstream: Upstream
) -> None:
    service = start(**pointed_at(upstream) | {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    response = service.post(ask())
    assert response.status_code == 500
    assert response.json()["error"] == "provider_unavailable"
    assert response.headers["X-Should-Retry"] == "false"
    assert service.record_of(response)["attempts"] == 3
    assert 0.25 + 0.5 <= response.elapsed.total_seconds() < 0.5 + 1 + 1


# What is not.


def test_two_retries_are_the_most(service: Service, provider: Upstream) -> None:
    provider.replies.extend(refuse(503, **NOW) for _ in range(4))
    response = service.post(ask(CLAUDE))
    assert response.status_code == 500
    assert response.json()["error"] == "provider_unavailable"
    assert "at the last of 3 attempts" in response.json()["message"]
    assert len(provider.received) == 3
    assert service.record_of(response)["attempts"] == 3
    provider.replies.clear()


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(429, type_="insufficient_quota", code="insufficient_quota"),
        refuse(503, x_should_retry="false"),
    ],
    ids=["the credit is used up", "the provider forbids it"],
)
def test_nothing_is_tried_again_when(refusal: Reply, service: Service, provider: Upstream) -> None:
    provider.replies.append(refusal)
    response = service.post(ask())
    assert response.status_code == 500
    assert response.headers["X-Should-Retry"] == "false"
    assert len(provider.received) == 1


@pytest.mark.parametrize("end", [CUT, RESET, STALL])
def test_a_stream_that_has_begun_is_never_tried_again(
    end: Reply, service: Service, provider: Upstream
) -> None:
    provider.replies.append(say("Hel", end))
    response = service.post(ask(stream=True))
    assert '"code": "provider_' in response.text
    assert len(provider.received) == 1
    assert service.record_of(response)["attempts"] == 1


def test_a_silent_provider_is_not_asked_again(service: Service, provider: Upstream) -> None:
    provider.replies.append(raw(STALL))
    response = service.post(ask(stream=True))
    assert response.json()["error"] == "provider_timeout"
    assert response.headers["X-Should-Retry"] == "false"
    assert len(provider.received) == 1


# The provider's wishes.


def test_a_short_retry_after_is_waited_out(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(429, retry_after="1"))
    response = service.post(ask())
    assert response.status_code == 200
    assert 1 <= response.elapsed.total_seconds() < 2


def test_openai_s_milliseconds_count_before_the_seconds(
    service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(429, retry_after_ms="20", retry_after="60"))
    response = service.post(ask())
    assert response.status_code == 200
    assert response.elapsed.total_seconds() < 1


@pytest.mark.parametrize(
    "headers",
    [{"retry_after": "0.6"}, {"retry_after_ms": "soon", "retry_after": "0.6"}],
    ids=["a fraction", "beside senseless milliseconds"],
)
def test_a_part_of_a_second_is_waited_out(
    headers: dict[str, str], service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(429, **headers))
    response = service.post(ask())
    assert response.status_code == 200
    assert 0.6 <= response.elapsed.total_seconds() < 1.6


def test_a_date_that_has_passed_is_no_wait(service: Service, provider: Upstream) -> None:
    provider.replies.append(refuse(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"))
    response = service.post(ask())
    assert response.status_code == 200
    assert response.elapsed.total_seconds() < 0.25


LONG_WAITS = {
    "seconds": ({"retry_after": "60"}, 60, 60),
    "just too many": ({"retry_after": "3"}, 3, 3),
    "milliseconds": ({"retry_after_ms": "60500"}, 61, 61),
    "a fraction": ({"retry_after": "30.2"}, 31, 31),
    "senseless milliseconds": ({"retry_after_ms": "soon", "retry_after": "30"}, 30, 30),
    "negative milliseconds": ({"retry_after_ms": "-5", "retry_after": "30"}, 30, 30),
    "a date": ({"retry_after": formatdate(time.time() + 600, usegmt=True)}, 60, 600),
    "six hundred years": ({"retry_after": "19000000000"}, 3600, 86400),
    "a far date": ({"retry_after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 3600, 86400),
    "endless milliseconds": ({"retry_after_ms": "1e300"}, 3600, 86400),
}


@pytest.mark.parametrize(("headers", "least", "most"), LONG_WAITS.values(), ids=LONG_WAITS)
def test_a_long_retry_after_is_passed_on_at_once(
    headers: dict[str, str], least: int, most: int, service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(429, **headers))
    response = service.post(ask())
    assert response.status_code == 500
    assert response.json()["error"] == "provider_rate_limited"
    assert least <= int(response.headers["Retry-After"]) <= most
    assert "X-Should-Retry" not in response.headers
    assert response.elapsed.total_seconds() < 0.5
    assert len(provider.received) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "soon"},
        {"retry_after": "-5"},
        {"retry_after": "9" * 6000},
        {"retry_after": "Fri, 99 Foo 99999 99:99:99 GMT"},
        {"retry_after_ms": "nan"},
        {"retry_after": "inf"},
    ],
    ids=["a word", "negative", "endless digits", "no date", "no number", "for ever"],
)
def test_a_retry_after_that_is_none_leaves_the_wait_to_us(
    headers: dict[str, str], service: Service, provider: Upstream
) -> None:
    provider.replies.append(refuse(503, **headers))
    response = service.post(ask(CLAUDE))
    assert response.status_code == 200
    assert 0.25 <= response.elapsed.total_seconds() < 1


# Connections that the provider closed while they were idle.


def test_connections_closed_while_idle_are_no_failed_requests(
    service: Service, provider: Upstream
) -> None:
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(service.post, [ask()] * 10))
        provider.close_idle()
        responses = list(pool.map(service.post, [ask()] * 10))
    assert {response.status_code for response in responses} == {200}
    assert {service.record_of(response)["attempts"] for response in responses} == {1}


def test_a_connection_closed_just_when_it_is_used_again_is_no_failed_request(
    service: Service, provider: Upstream
) -> None:
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(service.post, [ask()] * 10))
        provider.drops_used = True
        responses = list(pool.map(service.post, [ask()] * 10))
    provider.drops_used = False
    assert {response.status_code for response in responses} == {200}
    assert {service.record_of(response)["attempts"] for response in responses} == {1}


# The budget.


def test_the_budget_gives_ten_retries_then_one_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(retries.time, "monotonic", lambda: now)
    budget = RetryBudget()
    assert [budget.take("a") for _ in range(11)] == [True] * 10 + [False]
    now += 0.9
    assert not budget.take("a")
    now += 0.2
    assert budget.take("a")
    assert not budget.take("a")
    now += 3600
    assert [budget.take("a") for _ in range(11)] == [True] * 10 + [False]


def test_the_budget_gives_a_retry_for_every_ten_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries.time, "monotonic", lambda: 100.0)
    budget = RetryBudget()
    while budget.take("a"):
        pass
    for _ in range(11):  # one more than ten, as tenths do not add up to one
        budget.note_call("a")
    assert budget.take("a")
    assert not budget.take("a")


def test_one_caller_s_failing_calls_take_no_retry_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(retries.time, "monotonic", lambda: now)
    budget = RetryBudget()
    while budget.take("a"):
        pass
    assert [budget.take("b") for _ in range(6)] == [True] * 5 + [False]
    now += 2.1  # what is given by time is shared
    assert [[budget.take(caller) for _ in range(2)] for caller in "ab"] == [[True, False]] * 2


def test_an_error_in_place_of_a_stream_is_tried_again_like_its_status(
    service: Service, provider: Upstream
) -> None:
    first = body('{"error": {"code": 429, "message": "x"}}', retry_after="0")
    event = {"error": {"type": "server_error", "message": "x", "code": None}}
    for reply in (first, events(sse(event)), events(0.05, sse(event))):
        provider.received.clear()
        provider.replies.append(reply)
        response = service.post(ask(stream=True))
        assert "[DONE]" in response.text
        assert len(provider.received) == 2
        assert service.record_of(response)["attempts"] == 2


def test_an_error_after_a_comment_is_not_tried_again(service: Service, provider: Upstream) -> None:
    event = {"error": {"type": "server_error", "message": "x", "code": None}}
    provider.replies.append(events(b": wait\n\n", sse(event)))
    response = service.post(ask(stream=True))
    assert response.text.startswith(": ping\n\n")
    assert "provider_unavailable" in response.text
    assert len(provider.received) == 1


def test_an_outage_does_not_triple_the_calls_to_the_provider(
    fresh: Service, upstream: Upstream
) -> None:
    upstream.default = refuse(503, **NOW)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(fresh.post, [ask()] * 60))
    assert {response.status_code for response in responses} == {500}
    retries = 10 + 60 / 10 + (time.monotonic() - began)
    assert len(upstream.received) <= 60 + retries
    attempts = [fresh.record_of(response)["attempts"] for response in responses]
    assert sum(attempts) == len(upstream.received)
