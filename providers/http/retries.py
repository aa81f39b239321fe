"""When a failed attempt may be followed by another, and after how long."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping

from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from providers.base import Call
from providers.http.failures import Failure

MAX_RETRIES = 2
# A longer wait is the caller's to decide on: SDKs honour the Retry-After that is passed on.
MAX_WAIT_S = 2.0


class RetryBudget:
    """The retries that a process may make: one for every ten calls, and one a second.

    Without it, an outage would triple the load on a provider that is down already. Each caller
    has the tenths of its own calls and an equal share of the rest, so that nobody's failing
    calls take another's retry.
    """

    SAVED_AT_MOST = 10.0

    def __init__(self) -> None:
        # What each caller has saved, and when that was so; the settings say how many there are.
        self._saved: dict[str, tuple[float, float]] = {}
        self._calls: Counter[str] = Counter()  # since then
        self._lock = threading.Lock()

    def note_call(self, caller: str) -> None:
        with self._lock:
            self._calls[caller] += 1

    def take(self, caller: str) -> bool:
        """Whether a retry may be made; if so, it is taken from the caller's share."""
        with self._lock:
            now = time.monotonic()
            saved, at = self._saved.get(caller, (self.SAVED_AT_MOST, now))
            share = 1 / len(self._calls.keys() | {caller})
            saved += (now - at) * share + self._calls[caller] / 10
            saved = min(saved, max(1.0, self.SAVED_AT_MOST * share))
            may = saved >= 1
            self._saved[caller] = saved - may, now
            self._calls[caller] = 0
            return may


def wait_before_retry_s(
    failure: Failure, call: Call, retries: int, budget: RetryBudget
) -> float | None:
    """Seconds until the next attempt, after so many retries; None if there is to be none."""
    wait_s = failure.wait_s
    if wait_s is None:
        wait_s = random.uniform(0.5, 1.0) * min(MAX_WAIT_S, 0.5 * 2**retries)
    may_retry = (
        failure.is_retryable
        and not failure.is_final
        and call.watch.cause is None
        and retries < MAX_RETRIES
        and wait_s <= min(MAX_WAIT_S, call.watch.time_left_s)
        and budget.take(call.caller)
    )
    return wait_s if may_retry else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the provider says: in OpenAI's milliseconds, as a number, or as a date."""
    wait_ms, told = _number(headers.get("retry-after-ms")), headers.get("Retry-After")
    wait_s = _number(told) if wait_ms is None else wait_ms / 1000
    if wait_s is None and told is not None:
        try:
            wait_s = Retry().parse_retry_after(told)
        except (HTTPError, ValueError, OverflowError):  # it is no date either
            return None
    return None if wait_s is None else min(wait_s, Retry.DEFAULT_RETRY_AFTER_MAX)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
