"""Limits: what they count, in which window, in which store, and what is refused."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from chat.limits import Limits, window_end
from core.errors import ServiceError
from core.settings import Settings
from tests.redis_server import RedisServer

Make = Callable[..., Limits]


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self, text: str = "2026-05-31T23:59:40Z") -> None:
        self.set(text)

    def set(self, text: str) -> None:
        self.now = datetime.fromisoformat(text).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer
) -> dict[str, str]:
    """The variables that name each store, empty."""
    if request.param == "sqlite":
        return {"LIMITS_FILE": str(tmp_path / "limits.sqlite3")}
    redis_server.ask("FLUSHALL")
    return {"REDIS_URL": redis_server.url}


def price(record: Any) -> float | None:
    return None if record["answered_model"] == "unpriced" else record["total_tokens"] * 2e-6


@pytest.fixture
def make(store: dict[str, str]) -> Make:
    """Makes limits, as another process would have them, over the same store."""

    def make_limits(text: str, clock: Any = time.time) -> Limits:
        limits = Limits(Settings.read({"LIMITS": text, **store}), price, clock)
        assert limits.store is not None
        limits.store.open()
        return limits

    return make_limits


def refused(limits: Limits, caller: str = "web", brand: str = "loop") -> ServiceError | None:
    """The error of a call that is refused; None for one that passes."""
    try:
        limits.check(caller, brand)
    except ServiceError as error:
        return error
    return None


def passed(limits: Limits, calls: int, **of: str) -> int:
    return sum(refused(limits, **of) is None for _ in range(calls))


def used(tokens: int | None, **more: Any) -> dict[str, Any]:
    """A usage record's fields, as far as limits look at them."""
    nothing = {"prompt_tokens": None, "completion_tokens": None, "answered_model": "gpt-4o"}
    return nothing | {"total_tokens": tokens} | more


def test_calls_are_counted_to_the_last_and_not_beyond(make: Make) -> None:
    limits = make("brand loop 5 calls/minute", Clock())
    assert passed(limits, 10) == 5


def test_star_is_each_one_for_itself(make: Make) -> None:
    limits = make("brand * 2 calls/day", Clock())
    assert [passed(limits, 5, brand=brand) for brand in ("a", "b", "*")] == [2, 2, 2]


def test_one_that_is_named_does_not_touch_others(make: Make) -> None:
    limits = make("brand loop 1 calls/day; caller web 1 calls/day", Clock())
    assert passed(limits, 3, caller="app", brand="acme") == 3


def test_where_two_limits_look_at_one_number_the_lower_decides(make: Make) -> None:
    limits = make("brand * 5 calls/day; brand loop 2 calls/day; brand acme 9 calls/day", Clock())
    assert passed(limits, 10, brand="loop") == 2
    assert passed(limits, 10, brand="acme") == 5


def test_a_refused_call_takes_nothing_from_any_limit(make: Make) -> None:
    limits = make("caller web 3 calls/day; brand * 1 calls/day", Clock())
    assert passed(limits, 5, brand="a") == 1
    assert passed(limits, 5, brand="b") == 1
    assert passed(limits, 5, brand="c") == 1
    assert passed(limits, 5, brand="d") == 0


def test_a_call_that_fills_one_limit_is_counted_by_all(make: Make) -> None:
    limits = make("caller web 1 calls/day; brand loop 5 calls/day; brand * 5 calls/month", Clock())
    assert passed(limits, 3) == 1
    assert list(known(limits).values()) == [1, 1, 1]


def test_tokens_are_added_after_the_call_and_looked_at_before(make: Make) -> None:
    limits = make("brand loop 100 tokens/day", Clock())
    assert passed(limits, 3) == 3
    limits.count("web", "loop", used(99))
    assert passed(limits, 1) == 1
    limits.count("web", "loop", used(None, prompt_tokens=1))  # cut before the end
    assert passed(limits, 1) == 0
    assert passed(limits, 1, brand="acme") == 1


def test_what_is_not_known_is_not_counted(make: Make) -> None:
    limits = make("brand loop 1 tokens/day; brand loop 1 USD/day", Clock())
    assert limits.count("web", "loop", used(None))
    assert passed(limits, 1) == 1


def test_dollars_are_counted_at_the_price_of_the_record(make: Make) -> None:
    limits = make("caller web 0.5 USD/month", Clock())
    for _ in range(2):
        assert passed(limits, 1) == 1
        assert limits.count("web", "loop", used(125_000))
    assert passed(limits, 1) == 0


def test_small_prices_add_up(make: Make) -> None:
    limits = make("caller web 0.000002 USD/month", Clock())
    limits.count("web", "loop", used(1))
    assert passed(limits, 1) == 0


def test_a_dollar_limit_counts_nothing_without_a_price_and_says_so(make: Make) -> None:
    limits = make("caller web 1 USD/day; caller web 10 tokens/day", Clock())
    assert not limits.count("web", "loop", used(9, answered_model="unpriced"))
    assert limits.count("app", "loop", used(9, answered_model="unpriced"))
    assert passed(limits, 1) == 1
    assert not limits.count("web", "loop", used(9, answered_model="unpriced"))
    assert passed(limits, 1) == 0


@pytest.mark.parametrize(
    ("window", "last", "next_one"),
    [
        ("minute", "2026-05-31T23:58:59.999Z", "2026-05-31T23:59:00Z"),
        ("day", "2026-05-30T23:59:59.999Z", "2026-05-31T00:00:00Z"),
        ("month", "2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"),
        ("month", "2028-02-29T23:59:59.999Z", "2028-03-01T00:00:00Z"),
    ],
)
def test_a_new_window_starts_clean_at_its_calendar_time(
    make: Make, window: str, last: str, next_one: str
) -> None:
    clock = Clock(last)
    limits = make(f"brand loop 1 calls/{window}; brand loop 10 tokens/{window}", clock)
    assert passed(limits, 2) == 1
    limits.count("web", "loop", used(50))
    clock.set(next_one)
    assert passed(limits, 2) == 1
    assert window_end(window, datetime.fromisoformat(last).timestamp()) == clock.now


def test_a_refusal_names_the_limit_and_when_it_ends(make: Make) -> None:
    limits = make("caller web 1 calls/minute; brand loop 5 calls/day", Clock())
    passed(limits, 1)
    error = refused(limits)
    assert error is not None
    assert (error.kind.code, error.kind.status) == ("rate_limited", 429)
    assert "`caller web 1 calls/minute`" in error.message
    assert "2026-06-01T00:00:00Z" in error.message
    assert (error.retry_after, error.is_final) == ("20", False)


def test_a_wait_of_more_than_a_minute_is_not_to_be_waited_for(make: Make) -> None:
    clock = Clock("2026-05-31T23:58:00Z")
    limits = make("brand loop 1 calls/day", clock)
    passed(limits, 1)
    error = refused(limits)
    assert error is not None
    assert (error.kind.code, error.retry_after, error.is_final) == ("budget_exhausted", "120", True)
    clock.set("2026-05-31T23:59:00Z")
    error = refused(limits)
    assert error is not None
    assert (error.retry_after, error.is_final) == ("60", False)


ODD = ["a b", "a;b", "100%", "*", "a:b", "a/b 1", "é\u0301", "\x00", "\ud800", "", "x" * 100_000]


def test_names_of_whatever_characters_are_kept_apart(make: Make) -> None:
    limits = make("brand * 1 calls/day; caller * 1000 calls/day", Clock())
    names = [*ODD, *(f"{name}2" for name in ODD)]
    assert [passed(limits, 3, brand=name) for name in names] == [1] * len(names)
    hashed = next(key for _, key in known(limits) if "sha256=" in key).partition("sha256=")[2]
    assert passed(limits, 3, brand=f"sha256={hashed}") == 1


def known(limits: Limits) -> dict[tuple[int, str], int]:
    assert limits.store is not None
    return limits.store.connect().known(limits.clock())


def test_a_key_is_short_however_long_the_name(make: Make) -> None:
    limits = make("brand * 1 calls/day", Clock())
    passed(limits, 1, brand="x" * 1_000_000)
    assert all(len(key) < 120 for _, key in known(limits))
