"""A server under measurement: started, watched through /proc, and stopped with all its children."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS = 3.0


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def inherited() -> dict[str, str]:
    """What every program needs of this one's environment: nothing that could set a gateway."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


class Server:
    """A command that was started, and the process tree below it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
    ) -> None:
        self.log = log
        self.started = time.perf_counter()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                env={**inherited(), **environment},
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
        for way, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self.process.pid, way)
            except ProcessLookupError:
                return
            if self._ended_within(patience):
                return

    def _ended_within(self, seconds: float) -> bool:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.process.poll()
            if not _group_lives(self.process.pid):
                return True
            time.sleep(0.02)
        return False

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def pids(self) -> list[int]:
        """The process and all its descendants."""
        children: dict[int, list[int]] = {}
        for pid, fields in _stats():
            children.setdefault(int(fields[1]), []).append(pid)
        found = [self.process.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time that the tree has used so far, ended children included."""
        family = set(self.pids())
        ticks = (map(int, fields[11:15]) for pid, fields in _stats() if pid in family)
        return sum(map(sum, ticks)) / TICKS_PER_SECOND

    def pss_mib(self) -> float:
        """Memory of the tree, shared pages counted once (proportional set size)."""
        return self._total("smaps_rollup", r"^Pss:\s+(\d+)") / 1024

    def rss_mib(self) -> float:
        return self._total("status", r"^VmRSS:\s+(\d+)") / 1024

    def threads(self) -> int:
        return self._total("status", r"^Threads:\s+(\d+)")

    def descriptors(self) -> int:
        return sum(_descriptors(pid) for pid in self.pids())

    def _total(self, file: str, pattern: str) -> int:
        texts = (_read(f"/proc/{pid}/{file}") for pid in self.pids())
        found = (re.search(pattern, text, re.MULTILINE) for text in texts)
        return sum(int(match.group(1)) for match in found if match)


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Every process's id and the fields of its /proc/PID/stat from the state on."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            text = _read(f"/proc/{entry}/stat")
            if text:
                yield int(entry), text[text.rindex(")") + 2 :].split()


def _group_lives(group: int) -> bool:
    """Whether a process of the group is left that is not a zombie."""
    return any(int(fields[2]) == group and fields[0] != "Z" for _, fields in _stats())


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""  # the process ended meanwhile
