"""Lines on standard output: written without ever waiting, and counted where they are lost."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import records
from tests.conftest import Service, ask, pointed_at, server_after
from tests.upstream import Upstream, say

PIPE_ROOM = 65_536


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[records.Output, int]]:
    """What writes to a pipe, and the end of the pipe that reads."""
    reader, writer = os.pipe()
    there = records.Output(writer)
    monkeypatch.setattr(records, "_output", there)
    yield there, reader
    os.close(writer)
    os.close(reader)


def lines_of(reader: int) -> list[dict[str, object]]:
    os.set_blocking(reader, False)
    return [json.loads(line) for line in os.read(reader, 1_000_000).decode().splitlines()]


def test_a_line_that_nobody_takes_is_dropped_and_counted(
    output: tuple[records.Output, int],
) -> None:
    there, reader = output
    for number in range(1000):
        records.log("usage", number=number, padding="x" * 200)
    assert there.lost > 0
    lost, kept = there.lost, lines_of(reader)
    assert [line["number"] for line in kept] == list(range(1000 - lost))
    records.log("usage", number="next")
    after = lines_of(reader)
    assert [line["event"] for line in after] == ["usage", "lost_lines"]
    assert after[1]["count"] == lost
    assert there.lost == 0


def test_lines_of_many_threads_never_run_into_each_other(
    output: tuple[records.Output, int],
) -> None:
    _, reader = output

    def write() -> None:
        for _ in range(20):
            records.log("usage", padding="x" * 100)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_of(reader)) == 160


def test_the_flags_of_a_shared_pipe_stay_as_they_are(output: tuple[records.Output, int]) -> None:
    there, _ = output
    there.write("line\n")
    assert os.get_blocking(there._descriptor)


def test_a_file_is_written_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as file:
        records.Output(file.fileno()).write("after\n")
    assert path.read_text() == "before\nafter\n"


def test_a_socket_that_nobody_reads_loses_lines_and_holds_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        there = records.Output(ours.fileno())
        for _ in range(PIPE_ROOM):
            there.write("x" * 1000 + "\n")
            if there.lost:
                break
        assert there.lost == 1


def test_what_a_process_has_in_hand_is_written_where_it_is_not_zero(
    output: tuple[records.Output, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]
    monkeypatch.setitem(records.GAUGES, "calls", lambda: calls[0])
    assert records.log_load()["calls"] == 0
    calls[0] = 3
    records.log_load()
    (line,) = lines_of(output[1])
    assert (line["event"], line["calls"], line["lost_lines"]) == ("load", 3, 0)


def test_a_worker_says_once_a_minute_what_it_has_in_hand(
    tmp_path: Path, upstream: Upstream
) -> None:
    go_on = threading.Event()
    upstream.replies.append(say("Hel", go_on, "lo"))
    often = server_after("import server.worker; server.worker.LOAD_INTERVAL_S = 0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.settimeout(10)
        statsd.bind(("127.0.0.1", 0))
        command = (*often, "--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}")
        with (
            Service(tmp_path / "log", *command, **pointed_at(upstream)) as service,
            service.send(ask(stream=True)),
        ):
            service.until(lambda: '"event": "load"' in service.log)
            line = next(line for line in service.log.splitlines() if '"load"' in line)
            assert json.loads(line).items() >= {"calls": 1, "lost_lines": 0}.items()
            wanted = f"gateway.calls.{service.worker_pids()[0]}:1|g"
            while wanted not in statsd.recv(1000).decode():
                pass
            go_on.set()
