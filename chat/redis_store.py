"""Counts in Redis, or in what speaks as it does, which many machines share."""

import time
from collections.abc import Callable
from typing import Any

import redis

from chat.stores import KEPT_S, PATIENCE_S, Look

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
    return lambda: Redis(pool.make_connection())


class Redis:
    """Redis, or what speaks as it does, over one connection."""

    patience_s = PATIENCE_S

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.connect()
        connection.send_command("SCRIPT", "LOAD", _TAKE)
        self._sha = connection.read_response()

    def take(self, looks: list[Look]) -> None:
        self._send([_script("EVALSHA", self._sha, look) for look in looks])
        unknown = []
        for look in looks:
            try:
                self._note(look)
            except redis.exceptions.NoScriptError:
                unknown.append(look)
        if unknown:  # after SCRIPT FLUSH, or on another Redis behind the same address
            self._send([_script("EVAL", _TAKE, look) for look in unknown])
            for look in unknown:
                self._note(look)

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

    def delete(self, ends: int, key: str) -> None:
        self._ask("DEL", f"{_PREFIX}{ends}:{key}")

    def _note(self, look: Look) -> None:
        if place := self._reply(look.since):
            look.full = look.counters[place - 1]

    def _ask(self, *command: Any) -> Any:
        self._send([command])
        return self._reply(time.monotonic())

    def _send(self, commands: list[tuple[Any, ...]]) -> None:
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def _reply(self, since: float) -> Any:
        left_s = max(since + self.patience_s - time.monotonic(), _LEAST_PATIENCE_S)
        # Asked once more, for it may have come while this thread waited for its turn in Python.
        if not (self._connection.can_read(left_s) or self._connection.can_read(0)):
            raise TimeoutError
        return self._connection.read_response()


def _script(command: str, script: Any, look: Look) -> tuple[Any, ...]:
    """The command that takes a look: one script, so that nothing comes between."""
    keys = [f"{_PREFIX}{ends}:{key}" for ends, key, *_ in look.counters]
    numbers = [
        number
        for ends, _, most, adds in look.counters
        for number in (most, adds, int(ends - look.now) + KEPT_S)
    ]
    return (command, script, len(keys), *keys, *numbers)
