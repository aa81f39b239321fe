"""How many calls a process carries at once, shared fairly among its callers."""

import threading

from core import errors
from core.errors import ServiceError


class Slots:
    """`total` places for calls, of which no caller takes the last fifth alone.

    When that few are free, a caller who holds more than an equal share gets no more, so that one
    team's slow calls leave room for the others'. `callers` are all who may come: where there is
    only one, nothing is kept free.
    """

    def __init__(self, total: int, callers: int) -> None:
        self.total = total
        self._may_be_shared = callers > 1
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}  # by caller; the settings say how many there are
        self._taken = 0

    def taken(self) -> int:
        """How many are in use now."""
        return self._taken

    def take(self, caller: str) -> None:
        """Take a slot; raises ServiceError where there is none for `caller`."""
        with self._lock:
            if self.total - self._taken <= self.total // 5:
                self._refuse_unless_fair(caller)
            self._held[caller] = self._held.get(caller, 0) + 1
            self._taken += 1

    def give_back(self, caller: str) -> None:
        """Give one back that `caller` has taken."""
        with self._lock:
            self._taken -= 1
            self._held[caller] -= 1

    def _refuse_unless_fair(self, caller: str) -> None:
        if self._taken >= self.total:
            text = f"All {self.total} call slots here are taken."
            raise ServiceError(errors.OVERLOADED, text, retry_after="1")
        sharers = len({name for name, calls in self._held.items() if calls} | {caller})
        share = self.total // max(sharers, 2 if self._may_be_shared else 1)
        if self._held.get(caller, 0) >= share:
            text = f"This token's calls hold their share of the {self.total} call slots here."
            raise ServiceError(errors.OVERLOADED, text, retry_after="1")
