"""The gateways under measurement, all started beside each other against one mock."""

import contextlib
import http.client
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.processes import Server, free_port
from bench.targets import Direct, Place, Target

START_SECONDS = 120.0  # the slowest peer needs a third of it


@dataclass(frozen=True)
class Running:
    """A target that answers."""

    target: Target
    server: Server
    place: Place
    cold_start: float  # seconds from the start of its process to its first answer


@dataclass(frozen=True)
class Start:
    """What a start took: seconds to the first answer, and MiB once it is idle."""

    cold_start: float
    idle_mib: float


class Fleet:
    """Starts targets, and stops all of them when its block ends, however it ends."""

    def __init__(self) -> None:
        self.exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        self.folder = Path(self.exits.enter_context(folder))
        self.upstream = free_port()
        return self

    def __exit__(self, *exception: object) -> None:
        self.exits.close()

    def start_mock(self) -> Running:
        """The mock upstream: it has to run before anything else does."""
        return self._start(Direct(), self.upstream, self.exits)

    def start(self, target: Target) -> Running:
        """The target, once it has given its first answer."""
        return self._start(target, free_port(), self.exits)

    def start_alone(self, target: Target) -> Start:
        """What a start of the target takes; it is stopped again."""
        with contextlib.ExitStack() as exits:
            running = self._start(target, free_port(), exits)
            return Start(running.cold_start, idle_memory(running.server))

    def _start(self, target: Target, port: int, exits: contextlib.ExitStack) -> Running:
        place = Place(port, self.upstream, Path(tempfile.mkdtemp(dir=self.folder)))
        if beside := target.beside(place):
            exits.enter_context(Server(beside, {}, place.folder, place.folder / "log-beside"))
        command, log = target.command(place), place.folder / "log"
        server = Server(command, target.environment(place), target.directory(place), log)
        exits.enter_context(server)
        wait_for_answer(target, place, server)
        return Running(target, server, place, time.perf_counter() - server.started)


def wait_for_answer(target: Target, place: Place, server: Server) -> None:
    """Ask until an answer comes; RuntimeError with the end of the log otherwise."""
    messages = [{"role": "user", "content": "Hello?"}]
    body = json.dumps(target.body("openai", messages, stream=False))
    headers = {"content-type": "application/json", **target.headers("openai", place)}
    refusal = "none"
    while time.perf_counter() - server.started < START_SECONDS and not server.has_ended():
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=START_SECONDS)
        try:
            connection.request("POST", target.path("openai"), body, headers)
            answer = connection.getresponse()
            if answer.status == 200:
                return
            refusal = f"{answer.status} {answer.read(500)!r}"
            if answer.status < 500:
                break  # it is up, and waiting will not change its mind
        except (OSError, http.client.HTTPException):
            pass  # not there yet
        finally:
            connection.close()
        time.sleep(0.005)
    log = server.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{target.name} is not ready. Its answer: {refusal}. Its log ends:\n{log}")


def idle_memory(server: Server) -> float:
    """The tree's PSS in MiB once it no longer grows: all its workers are up."""
    before = server.pss_mib()
    for _ in range(20):
        time.sleep(0.5)
        now = server.pss_mib()
        if abs(now - before) < 0.01 * now:
            break
        before = now
    return now
