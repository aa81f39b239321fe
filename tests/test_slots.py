"""Call slots: bounded, and shared among the callers when they run low."""

from contextlib import ExitStack

import pytest

from chat.slots import Slots
from core.errors import ServiceError
from providers.offline import Offline
from tests.conftest import ask
from tests.inprocess import error_of, offline, post


def take(slots: Slots, held: ExitStack, caller: str, most: int = 1000) -> int:
    """How many slots a caller gets."""
    for count in range(most):
        try:
            slots.take(caller)
        except ServiceError:
            return count
        held.callback(slots.give_back, caller)
    return most


def test_the_only_caller_there_is_may_have_all() -> None:
    with ExitStack() as held:
        assert take(Slots(80, callers=1), held, "a") == 80


def test_one_of_several_callers_leaves_a_fifth_for_the_others() -> None:
    slots = Slots(80, callers=2)
    with ExitStack() as held:
        assert take(slots, held, "a") == 64
        assert take(slots, held, "b") == 16
        assert slots.taken() == 80
    assert slots.taken() == 0


def test_a_caller_who_holds_less_than_an_equal_share_gets_in() -> None:
    slots = Slots(100, callers=10)
    with ExitStack() as held:
        for caller in "abc":
            assert take(slots, held, caller, most=27) == 27
        assert take(slots, held, "a") == 33 - 27
        assert take(slots, held, "d") == 100 - 33 - 27 - 27


@pytest.mark.parametrize("total", [1, 2, 4])
def test_few_slots_are_all_used(total: int) -> None:
    with ExitStack() as held:
        assert take(Slots(total, callers=5), held, "a") == total


@pytest.mark.parametrize("stream", [False, True])
def test_a_slot_comes_back_whatever_happens_in_the_call(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    there = offline()
    monkeypatch.setattr(Offline, "_answer", lambda *_: 1 / 0)
    assert error_of(post(there, ask(stream=stream)), 500)[0] == "internal_error"
    assert there.application.extensions["chat"].slots.taken() == 0
