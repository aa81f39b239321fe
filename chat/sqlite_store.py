"""Counts in a SQLite file, which the processes of one machine share."""

import os
import sqlite3
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from chat.stores import KEPT_S, UNLIMITED, Look

# A call that looks and counts waits twice, and each pause takes a little longer than it says.
_PATIENCE_S = 0.02
_OPENING_S = 0.6
# A write takes 15 us; but where each pause may last long, on a busy machine, they must be few.
_FIRST_PAUSE_S = 0.0005
_GROWTH = 1.3
_TURNS = 4
_CLEAN_ROWS = 500  # a millisecond or so
_TABLE = (
    "CREATE TABLE IF NOT EXISTS counters (ends INTEGER, key TEXT, used INTEGER NOT NULL,"
    " PRIMARY KEY (ends, key)) WITHOUT ROWID"
)
_FULL = "SELECT ends, key FROM counters WHERE ends = ? AND key = ? AND used >= ?"
_CLEAN = (
    "DELETE FROM counters WHERE (ends, key) IN"
    " (SELECT ends, key FROM counters WHERE ends <= ? LIMIT ?)"
)


@cache
def _full(bounds: int) -> str:
    """What finds those of so many counters that are full."""
    return " UNION ALL ".join([_FULL] * bounds)


@cache
def _add(rows: int, bounds: int) -> str:
    """The statement that adds to so many counters, if none of so many is full."""
    used = "?"
    if bounds:  # Else NULL, which is no count. INSERT ... SELECT would take a third longer.
        used = f"CASE WHEN NOT EXISTS ({_full(bounds)}) THEN ? END"
    values = ", ".join([f"(?, ?, {used})"] * rows)
    return (  # made of these constants alone
        f"INSERT OR IGNORE INTO counters VALUES {values}"  # noqa: S608
        " ON CONFLICT DO UPDATE SET used = used + excluded.used"
    )


class SQLite:
    """A file that the processes of one machine share, on a disk of that machine."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._clean_at = 0.0
        # Each statement is a transaction, so that nobody waits for Python with the file locked.
        file = sqlite3.connect(path, 0, isolation_level=None, check_same_thread=False)
        self._cursor = file.cursor()
        # SQLite's own patience does not hold where several make a new file WAL at once.
        self.patience_s = _OPENING_S
        # No call waits for a disk: what is written survives a kill, but maybe no power cut.
        for statement in (
            "PRAGMA page_size = 512",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = OFF",
            _TABLE,
        ):
            self._run(statement, [])
        self.patience_s = _PATIENCE_S
        self._inode = os.stat(path).st_ino

    def take(self, looks: list[Look]) -> None:
        for look in looks:
            if look.now >= self._clean_at:
                self._clean(look.now)
            bounds: list[Any] = []
            for ends, key, most, _ in look.counters:
                if most < UNLIMITED:
                    bounds += ends, key, most
            rows, values = 0, list[Any]()
            for ends, key, _, adds in look.counters:
                if adds:
                    rows += 1
                    values += ends, key, *bounds, adds
            if not rows or not self._run(_add(rows, len(bounds) // 3), values)[1]:
                full, _ = self._run(_full(len(bounds) // 3), bounds)
                found = (one for one in look.counters if (one.ends, one.key) in full)
                look.full = next(found, None)

    def known(self, now: float) -> dict[tuple[int, str], int]:
        rows, _ = self._run("SELECT ends, key, used FROM counters WHERE ends > ?", [now])
        return {(ends, key): used for ends, key, used in rows}

    def delete(self, ends: int, key: str) -> None:
        self._run("DELETE FROM counters WHERE ends = ? AND key = ?", [ends, key])

    def _clean(self, now: float) -> None:
        """Once a minute, or as long as there is more: remove windows long ended."""
        if os.stat(self._path).st_ino != self._inode:
            raise sqlite3.OperationalError("the file was replaced")
        _, removed = self._run(_CLEAN, [now - KEPT_S, _CLEAN_ROWS])
        self._clean_at = now if removed == _CLEAN_ROWS else now + 60

    def _run(self, statement: str, values: list[Any]) -> tuple[list[Any], int]:
        """Its rows, and how many it changed; where another process has the file, tried again."""
        tries = _tries(self.patience_s)
        while True:
            try:
                self._cursor.execute(statement, values)
                return self._cursor.fetchall(), self._cursor.rowcount
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or not next(tries, False):
                    raise


def _tries(patience_s: float) -> Iterator[bool]:
    """Waits between the tries of a statement where another process has the file."""
    # Counted in tries, not by a clock: that this process is busy is no reason to give up.
    pause_s = _FIRST_PAUSE_S
    while patience_s > 0:
        time.sleep(pause_s)
        patience_s -= pause_s
        pause_s *= _GROWTH
        yield True
    # Nor is it that the other one gets no CPU, for so long that all others have their turn.
    for _ in range(_TURNS):
        os.sched_yield()
        yield True
