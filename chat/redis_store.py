"""Counts in Redis, or in what speaks as it does, which many machines share."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import redis

from chat.stores import KEPT_S, PATIENCE_S, Counter

# One name in braces, so that a cluster's proxy finds all keys in one place.
_PREFIX = "{limits}:"
_TIMEOUT_S = 2.0  # to connect, which no call waits for
# What has waited long before its turn came still gives Redis so long to answer.
_LEAST_PATIENCE_S = 0.01

# None is full: add to all. Else: the place of the first that is, counted from 1.
_TAKE = """
local used = redis.call("MGET", unpack(KEYS))
for i = 1, #KEYS do
  if tonumber(used[i] or 0) >= tonumber(ARGV[3 * i - 2]) then return i end
end
for i, key in ipairs(KEYS) do
  if ARGV[3 * i - 1] ~= "0" then
    redis.call("INCRBY", key, ARGV[3 * i - 1])
    redis.call("EXPIRE", key, ARGV[3 * i])
  end
end
return 0
"""


def redis_at(url: str, ca_bundle: str | None) -> Callable[[], "Redis"]:
    """What connects to the Redis at a URL; `ca_bundle` is a file, or "any" for any certificate."""
    tls: dict[str, Any] = {}
    if url.startswith("rediss:") and ca_bundle is not None:
        tls = {"ssl_cert_reqs": "none"} if ca_bundle == "any" else {"ssl_ca_certs": ca_bundle}
    pool = redis.ConnectionPool.from_url(
        url,
        protocol=2,
        driver_info=None,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        **tls,
    )
    return lambda: Redis(pool.make_connection(), redis.exceptions)


class Asked:
    """One command to Redis, since when it waits, and what came back: a reply or an exception."""

    __slots__ = ("command", "is_done", "reply", "since")

    def __init__(self, *command: Any) -> None:
        self.command = command
        self.since = time.monotonic()
        self.is_done = False
        self.reply: Any = None

    def end(self, reply: Any) -> None:
        self.reply, self.is_done = reply, True


class Redis:
    """Redis, or what speaks as it does, over one connection a process.

    One thread at a time sends the commands of all that wait, and reads their answers: a store
    far away costs its round trip once, and a process needs no more connections when it is busy.
    """

    patience_s = PATIENCE_S

    def __init__(self, connection: Any, exceptions: Any) -> None:
        self._refused, self._no_script = exceptions.ResponseError, exceptions.NoScriptError
        self._connection = connection
        self._turn = threading.Lock()
        self._waiting: deque[Asked] = deque()
        self._broken: Exception | None = None
        connection.connect()
        connection.send_command("SCRIPT", "LOAD", _TAKE)
        self._sha = connection.read_response()

    def take(self, counters: list[Counter], now: float) -> int | None:
        keys = [_PREFIX + f"{ends}:{key}" for ends, key, *_ in counters]
        numbers = [
            number
            for ends, _, most, adds in counters
            for number in (most, adds, int(ends - now) + KEPT_S)
        ]
        try:
            full = self._ask("EVALSHA", self._sha, len(keys), *keys, *numbers)
        except self._no_script:  # SCRIPT FLUSH, or another Redis behind the same address
            full = self._ask("EVAL", _TAKE, len(keys), *keys, *numbers)
        return None if full == 0 else full - 1

    def known(self, now: float) -> dict[tuple[int, str], int]:
        found: dict[tuple[int, str], int] = {}
        cursor = b"0"
        while True:
            cursor, keys = self._ask("SCAN", cursor, "MATCH", f"{_PREFIX}*", "COUNT", 1000)
            for key, used in zip(keys, self._ask("MGET", *keys) if keys else [], strict=True):
                ends, _, name = key.decode().removeprefix(_PREFIX).partition(":")
                if used is not None and int(ends) > now:
                    found[int(ends), name] = int(used)
            if cursor == b"0":
                return found

    def delete(self, counters: list[Counter]) -> None:
        for ends, key, *_ in counters:
            self._ask("DEL", f"{_PREFIX}{ends}:{key}")

    def _ask(self, *command: Any) -> Any:
        asked = Asked(*command)
        self._waiting.append(asked)
        with self._turn:
            if not asked.is_done:
                self._exchange()
        if isinstance(asked.reply, Exception):
            raise asked.reply
        return asked.reply

    def _exchange(self) -> None:
        """Send what waits, and read the answers. Whatever fails, fails all of them."""
        batch = []
        while self._waiting:
            batch.append(self._waiting.popleft())
        try:
            if self._broken is not None:
                raise self._broken
            until = min(asked.since for asked in batch) + self.patience_s
            packed = self._connection.pack_commands([asked.command for asked in batch])
            self._connection.send_packed_command(packed)
            for asked in batch:
                asked.end(self._answer(until))
        except Exception as error:
            self._broken = error
            self._connection.disconnect()
            for asked in batch:
                if not asked.is_done:
                    asked.end(error)

    def _answer(self, until: float) -> Any:
        left_s = max(until - time.monotonic(), _LEAST_PATIENCE_S)
        # Asked once more, for it may have come while this thread waited for its turn in Python.
        if not (self._connection.can_read(left_s) or self._connection.can_read(0)):
            raise TimeoutError
        try:
            return self._connection.read_response()
        except self._refused as error:
            return error
