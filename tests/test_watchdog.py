"""The watchdog itself: it sees callers leave on every system, and outlives what goes wrong."""

import select
import socket
import threading
from collections.abc import Iterator

import pytest

from core.watchdog import Cause, Watch, Watchdog

SOON_S = 5.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def end_of(watch: Watch) -> Cause | None:
    """The cause, once there is one."""
    ended = threading.Event()
    watch.on_end(ended.set)
    assert ended.wait(SOON_S)
    return watch.cause


SYSTEMS = {
    "Linux": (),
    "macOS": ("POLLRDHUP",),
    "Windows": ("poll", "epoll", "POLLRDHUP", "POLLHUP", "POLLIN"),
}


@pytest.mark.parametrize("missing", SYSTEMS.values(), ids=SYSTEMS)
def test_a_caller_who_closes_is_seen_on(
    missing: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    for name in missing:
        monkeypatch.delattr(select, name, raising=False)
    watchdog = Watchdog()
    with watchdog.watch(pair[0], 60) as watch, watchdog.watch(None, 0.1) as other:
        assert end_of(other) is Cause.TIME_IS_UP  # it has looked, and the caller is there
        assert watch.cause is None
        pair[1].close()
        assert end_of(watch) is Cause.CALLER_LEFT


WRONG = [RuntimeError("words"), MemoryError(), SystemExit(1), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_goes_wrong_with_one_call_ends_no_other_s_limits(wrong: BaseException) -> None:
    def fail() -> None:
        raise wrong

    watchdog = Watchdog()
    with watchdog.watch(None, 0.3) as bad, watchdog.watch(None, 0.5) as good:
        bad.on_end(fail)
        assert end_of(good) is Cause.TIME_IS_UP
        with watchdog.watch(None, 0) as later:
            assert end_of(later) is Cause.TIME_IS_UP


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("wrong", [OSError("words"), *WRONG], ids=repr)
def test_a_system_that_cannot_poll_costs_no_time_limit(
    wrong: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    def refuse() -> None:
        raise wrong

    monkeypatch.setattr(select, "poll", refuse)
    with Watchdog().watch(pair[0], 0) as watch:
        assert end_of(watch) is Cause.TIME_IS_UP


def test_nothing_is_cut_after_the_call_is_closed() -> None:
    cut: list[int] = []
    watchdog = Watchdog()
    with watchdog.watch(None, 0.5) as other:
        with watchdog.watch(None, 0.3) as watch:
            watch.on_end(lambda: cut.append(1))
            watch.close()
        assert end_of(other)
    watch.end(Cause.STOPPING)
    assert cut == []


def test_an_ended_call_is_cut_at_once_where_it_only_now_has_something_to_cut() -> None:
    with Watchdog().watch(None, 0) as watch:
        assert end_of(watch) is Cause.TIME_IS_UP
        cut: list[int] = []
        watch.on_end(lambda: cut.append(1))
    assert cut == [1]
