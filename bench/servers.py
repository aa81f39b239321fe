"""The servers under measurement: started beside each other, watched through /proc, and stopped."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.targets import Place, Target, free_port

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120.0  # the slowest peer needs a third of it
# What every program needs of this one's environment: nothing that could set a gateway.
INHERITED = ("PATH", "HOME", "LANG")


class Server:
    """A command that was started, and the group of processes that it leads."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path
    ) -> None:
        self.log = log
        self.started = time.perf_counter()
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env={**inherited, **environment},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # one group: it can be stopped whole
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the whole group: politely first, then at once."""
        for way, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, way)
            end = time.perf_counter() + patience_s
            while time.perf_counter() < end:
                self.process.poll()
                if all(fields[0] == "Z" for fields in self._stats().values()):
                    return
                time.sleep(0.02)

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def cpu_seconds(self) -> float:
        """User and system time that the group has used so far, ended children included."""
        return sum(sum(map(int, f[11:15])) for f in self._stats().values()) / TICKS_PER_SECOND

    def pss_mib(self) -> float:
        """Memory of the group, shared pages counted once (proportional set size)."""
        return self._total("smaps_rollup", r"^Pss:\s+(\d+)") / 1024

    def threads(self) -> int:
        return self._total("status", r"^Threads:\s+(\d+)")

    def descriptors(self) -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").glob("*"))) for pid in self._stats())

    def _total(self, file: str, pattern: str) -> int:
        texts = (_read(f"/proc/{pid}/{file}") for pid in self._stats())
        found = (re.search(pattern, text, re.MULTILINE) for text in texts)
        return sum(int(match.group(1)) for match in found if match)

    def _stats(self) -> dict[int, list[str]]:
        """The fields of /proc/PID/stat from the state on, of every process of the group."""
        texts = {pid: _read(f"/proc/{pid}/stat") for pid in os.listdir("/proc") if pid.isdigit()}
        stats = {int(pid): text.rpartition(")")[2].split() for pid, text in texts.items() if text}
        return {pid: fields for pid, fields in stats.items() if int(fields[2]) == self.process.pid}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # the process ended meanwhile


@dataclass(frozen=True)
class Running:
    """A target that answers."""

    target: Target
    server: Server
    place: Place
    cold_start: float  # seconds from the start of its process to its first answer


class Fleet(contextlib.ExitStack):
    """Targets beside each other, all before one mock; stopped when its block ends."""

    def __init__(self) -> None:
        super().__init__()
        folder = tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
        self.folder = Path(self.enter_context(folder))
        self.upstream = free_port()

    def start(self, target: Target, port: int | None = None) -> Running:
        """The target, once it has given its first answer; the mock has to be the first of all."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        place = Place(port or free_port(), f"http://127.0.0.1:{self.upstream}", folder)
        if beside := target.beside(place):
            self.enter_context(Server(beside, {}, folder, folder / "log-beside"))
        command, directory = target.command(place), target.directory(place)
        server = Server(command, target.environment(place), directory, folder / "log")
        self.enter_context(server)
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
    """The group's PSS in MiB once it no longer grows: all its workers are up."""
    before = server.pss_mib()
    for _ in range(20):
        time.sleep(0.5)
        now = server.pss_mib()
        if abs(now - before) < 0.01 * now:
            break
        before = now
    return now
