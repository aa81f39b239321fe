"""The stores of limits when they fail: calls pass, none waits long, and two lines tell of it."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from chat import stores
from chat.limits import Limits
from chat.sqlite_store import SQLite
from chat.stores import Look
from core.errors import ServiceError
from core.settings import Settings
from tests.conftest import ROOT, Service
from tests.redis_server import RedisServer

FEW = "brand * 2 calls/month"
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Lines:
    """All lines about the store that were logged so far."""
    found: list[dict[str, Any]] = []

    def read() -> list[dict[str, Any]]:
        logged = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        found.extend(line for line in logged if line["event"] == "limits_store")
        return found

    return read


@pytest.fixture
def ask_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "ASK_AGAIN_S", 0.05)


def limits(**environ: str) -> Limits:
    """Limits that are connected, or have said why not."""
    made = unconnected(**environ)
    assert made.store is not None
    made.store.open()
    return made


def unconnected(**environ: str) -> Limits:
    return Limits(Settings.read({"LIMITS": FEW, **environ}), lambda _record: None)


def in_file(path: Path, **environ: str) -> Limits:
    return limits(LIMITS_FILE=str(path / "limits.sqlite3"), **environ)


def passes(limits: Limits, brand: str = "loop") -> bool:
    try:
        limits.check("web", brand)
    except ServiceError:
        return False
    return True


def passed(limits: Limits, calls: int, brand: str = "loop") -> int:
    return sum(passes(limits, brand) for _ in range(calls))


def wait_of(limits: Limits) -> float:
    """Seconds that a call waits which passes."""
    start = time.monotonic()
    assert passes(limits, new_brand())
    return time.monotonic() - start


def waits_of(limits: Limits, count: int) -> list[float]:
    """How long each of so many calls at once waits for the store."""
    with ThreadPoolExecutor(count) as calls:
        return list(calls.map(wait_of, [limits] * count))


def new_brand() -> str:
    return uuid4().hex


def counts_again(limits: Limits, lines: Lines) -> None:
    """Wait until the store counts, as a line says."""
    Service.until(lambda: passes(limits, new_brand()) and lines()[-1]["state"] == "back")


def states(lines: Lines) -> list[str]:
    return [line["state"] for line in lines()]


@pytest.mark.usefixtures("ask_again_soon")
def test_a_locked_file_lets_calls_pass_and_is_asked_again(tmp_path: Path, lines: Lines) -> None:
    counted = in_file(tmp_path)
    assert passed(counted, 3) == 2
    waits = []
    for _ in range(3):
        holder = sqlite3.connect(tmp_path / "limits.sqlite3", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        waits.append(wait_of(counted))
        assert passed(counted, 100) == 100
        holder.execute("ROLLBACK")
        counts_again(counted, lines)
    assert min(waits) < 0.05
    assert states(lines) == ["gone", "back"] * 3
    assert lines()[0]["reason"] == "database is locked"
    assert passed(counted, 3) == 0  # what was counted before is still there


def test_no_call_but_the_first_waits_while_the_file_is_locked(tmp_path: Path, lines: Lines) -> None:
    counted = in_file(tmp_path)
    assert passes(counted)
    holder = sqlite3.connect(tmp_path / "limits.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert passes(counted)
    start = time.monotonic()
    assert passed(counted, 1000) == 1000
    assert time.monotonic() - start < 1
    assert states(lines) == ["gone"]


def test_all_who_wait_for_a_file_that_is_locked_pass_at_once(tmp_path: Path, lines: Lines) -> None:
    counted = in_file(tmp_path)
    assert passes(counted)
    holder = sqlite3.connect(tmp_path / "limits.sqlite3", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert sorted(waits_of(counted, 30))[15] < 0.06
    assert states(lines) == ["gone"]


def test_a_lock_that_is_short_makes_calls_wait_and_not_pass(tmp_path: Path, lines: Lines) -> None:
    counted = in_file(tmp_path)
    assert passed(counted, 2) == 2
    holder = sqlite3.connect(tmp_path / "limits.sqlite3", isolation_level=None)
    for _ in range(5):
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("UPDATE counters SET used = used")
        threading.Timer(0.005, passes, [counted]).start()
        holder.execute("COMMIT")
        assert not passes(counted)
    assert lines() == []


def test_several_may_make_a_new_file_at_once(tmp_path: Path, lines: Lines) -> None:
    holder = sqlite3.connect(
        tmp_path / "limits.sqlite3", isolation_level=None, check_same_thread=False
    )
    holder.execute("BEGIN IMMEDIATE")
    threading.Timer(0.1, holder.execute, ["ROLLBACK"]).start()
    assert passed(in_file(tmp_path), 3) == 2
    assert lines() == []


def test_a_call_that_waited_while_the_store_was_lost_does_not_say_that_it_is_back(
    tmp_path: Path, lines: Lines
) -> None:
    class Failing(SQLite):
        """Fails once its answer was waited for."""

        def take(self, looks: list[Look]) -> None:
            asked.set()
            fails.wait()
            raise TimeoutError

    asked, fails = threading.Event(), threading.Event()
    store = stores.Store(lambda: Failing(str(tmp_path / "file")))
    store.open()
    with ThreadPoolExecutor(2) as calls:
        first = calls.submit(store.take, [], 1.0)
        asked.wait()
        second = calls.submit(store.take, [], 2.0)
        fails.set()
        assert (first.result(), second.result()) == (None, None)
    assert states(lines) == ["gone"]


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_lets_calls_pass(tmp_path: Path, lines: Lines, content: bytes) -> None:
    (tmp_path / "limits.sqlite3").write_bytes(content)
    assert passed(in_file(tmp_path), 50) == 50
    (line,) = lines()
    assert line["state"] == "gone"
    assert line["reason"] in ("file is not a database", "database disk image is malformed")


def test_a_file_that_cannot_be_made_lets_calls_pass(tmp_path: Path, lines: Lines) -> None:
    (tmp_path / "gone").mkdir()
    where = {"LIMITS_FILE": str(tmp_path / "gone" / "limits.sqlite3")}
    counted = unconnected(**where)
    (tmp_path / "gone").rmdir()
    assert passed(counted, 50) == 50
    (line,) = lines()
    assert line["reason"] == "unable to open database file"


def test_a_full_disk_lets_calls_pass(tmp_path: Path) -> None:
    code = (
        "import resource; from tests.test_limit_stores import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "counted = in_file(Path(sys.argv[1]))\n"
        "assert sum(passes(counted, f'{i}' * 60) for i in range(1500)) == 1500\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[0])["reason"] in (
        "disk I/O error",
        "database or disk is full",
    )


@pytest.mark.usefixtures("ask_again_soon")
def test_a_file_that_is_replaced_is_left_for_the_new_one(tmp_path: Path, lines: Lines) -> None:
    counted, path = in_file(tmp_path), tmp_path / "limits.sqlite3"
    assert passed(counted, 3) == 2
    path.rename(tmp_path / "old")
    counted.clock = lambda: time.time() + 61  # it looks once a minute
    counts_again(counted, lines)
    assert passed(counted, 3) == passed(in_file(tmp_path), 3) + 2
    assert states(lines) == ["gone", "back"]


def test_windows_that_have_ended_are_removed(tmp_path: Path) -> None:
    counted = in_file(tmp_path, LIMITS="brand * 1 calls/minute")
    for i in range(1200):
        assert passes(counted, str(i))
    counted.clock = lambda: time.time() + 120
    passes(counted)
    counted.clock = time.time
    assert not passes(counted, "7")  # where the clock is set back
    counted.clock = lambda: time.time() + 4000
    for _ in range(5):  # some at a time
        passes(counted)
    file = sqlite3.connect(tmp_path / "limits.sqlite3")
    assert file.execute("SELECT count(*) FROM counters").fetchone() == (1,)


def test_counts_in_redis_go_away_by_themselves(redis_server: RedisServer) -> None:
    counted = limits(REDIS_URL=redis_server.url, LIMITS="brand * 1 calls/minute")
    assert passes(counted)
    (key,) = redis_server.ask("KEYS", "*")
    assert 3600 <= redis_server.ask("TTL", key) <= 3660


@pytest.mark.usefixtures("ask_again_soon")
def test_a_redis_that_stops_for_a_while_lets_calls_pass(
    redis_server: RedisServer, lines: Lines
) -> None:
    counted = limits(REDIS_URL=redis_server.url)
    assert passed(counted, 3) == 2
    waits = []
    for _ in range(3):
        redis_server.pause()
        waits.append(wait_of(counted))
        assert passed(counted, 100) == 100
        redis_server.resume()
        counts_again(counted, lines)
    assert min(waits) < 0.05
    assert states(lines) == ["gone", "back"] * 3
    assert passed(counted, 3) == 0


def test_all_who_wait_for_a_redis_that_stops_pass_at_once(
    redis_server: RedisServer, lines: Lines
) -> None:
    counted = limits(REDIS_URL=redis_server.url)
    assert passed(counted, 3) == 2
    redis_server.pause()
    assert sorted(waits_of(counted, 30))[15] < 0.06
    assert states(lines) == ["gone"]


@pytest.mark.usefixtures("ask_again_soon")
def test_a_redis_that_is_killed_and_comes_back_counts_again(
    redis_server: RedisServer, lines: Lines
) -> None:
    counted = limits(REDIS_URL=redis_server.url)
    assert passed(counted, 3) == 2
    redis_server.kill()
    assert passed(counted, 100) == 100
    with redis_server:
        counts_again(counted, lines)
        assert passed(counted, 3) == 2
    assert states(lines) == ["gone", "back"]


def test_a_script_that_redis_forgot_is_sent_again(redis_server: RedisServer, lines: Lines) -> None:
    counted = limits(REDIS_URL=redis_server.url)
    assert passes(counted)
    redis_server.ask("SCRIPT", "FLUSH")
    assert passed(counted, 3) == 1
    assert lines() == []


def test_a_full_redis_lets_calls_pass(redis_server: RedisServer, lines: Lines) -> None:
    counted = limits(REDIS_URL=redis_server.url)
    assert passes(counted)
    redis_server.ask("CONFIG", "SET", "maxmemory", "1")
    assert passed(counted, 9) == 9
    assert [line["reason"] for line in lines()] == ["OutOfMemoryError"]


def test_a_wrong_password_is_told_without_it(redis_server: RedisServer, lines: Lines) -> None:
    redis_server.ask("CONFIG", "SET", "requirepass", "right")
    url = f"redis://:a-secret@127.0.0.1:{redis_server.port}"
    assert passed(limits(REDIS_URL=url), 9) == 9
    assert lines()[0]["reason"] == "AuthenticationError"
    assert "a-secret" not in str(lines())
    assert passed(limits(REDIS_URL=url.replace("a-secret", "right")), 9) == 2


@pytest.fixture
def silence() -> Iterator[str]:
    """The URL of what takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}"


def test_no_call_waits_long_for_what_never_answers(silence: str, lines: Lines) -> None:
    assert wait_of(unconnected(REDIS_URL=silence)) < 0.15
    assert [line["reason"] for line in lines()] == ["no connection yet"]


def test_no_call_waits_long_for_a_name_that_is_looked_up(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()

    def look_up(*_args: Any) -> Any:
        ends.wait(30)
        raise socket.gaierror

    counted = unconnected(REDIS_URL="redis://redis.test")
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert wait_of(counted) < 0.15
    assert wait_of(counted) < 0.03
    ends.set()
    assert len(lines()) == 1


def test_where_the_system_gives_no_thread_calls_pass(
    tmp_path: Path, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    counted = unconnected(LIMITS_FILE=str(tmp_path / "limits.sqlite3"))
    monkeypatch.setattr(threading.Thread, "start", start)
    assert passed(counted, 9) == 9
    assert states(lines) == ["gone"]


def test_redis_is_reached_over_tls_with_any_certificate_or_that_of_an_authority(
    tmp_path: Path, lines: Lines
) -> None:
    authority = trustme.CA()
    certificate, bundle = tmp_path / "server.pem", tmp_path / "ca.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(bundle)
    with RedisServer(tls=certificate) as server:
        url = server.url.replace("redis:", "rediss:")
        for ca_bundle in ("any", str(bundle)):
            assert passed(limits(REDIS_URL=url, REDIS_CA_BUNDLE=ca_bundle), 1) == 1
        assert lines() == []
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            unconnected(REDIS_URL=url).store.connect()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_a_process_that_is_forked_has_a_connection_of_its_own(
    kind: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    where = {"REDIS_URL": redis_server.url} if kind == "redis" else {}
    counted = in_file(tmp_path, LIMITS="brand * 100 calls/month", **where)
    assert passes(counted)
    children = []
    for _ in range(2):
        if not (pid := os.fork()):
            os._exit(passed(counted, 30))
        children.append(pid)
    mine = passed(counted, 60)
    theirs = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert mine + sum(theirs) == 99


def test_what_a_store_needs_is_imported_only_where_it_is_used() -> None:
    code = "import sys, app; app.create_app(); print(*{'redis', 'sqlite3'} & set(sys.modules))"
    for environ, imported in (
        ({"REDIS_URL": "redis://h"}, ""),
        ({"LIMITS": FEW}, "sqlite3"),
        ({"LIMITS": FEW, "REDIS_URL": "redis://h"}, "redis"),
    ):
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == imported
