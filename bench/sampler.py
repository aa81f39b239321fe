"""A sampling profiler of a running worker: CPU time by layer and by line, over all its threads.

A thread of its own looks a thousand times a second at what every other thread is doing, and
charges that with the CPU time the thread has used since the last look. A thread that waits uses
none, so only work is counted.
"""

import contextlib
import ctypes
import json
import linecache
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

INTERVAL = 0.001
GIL_WAIT = 0.000001  # so that threads are met anywhere, not only where they let go by themselves
PR_SET_TIMERSLACK = 29
LINES = 60
PROJECT = Path(__file__).resolve().parent.parent
LIBRARY = Path(os.__file__).parent

LAYERS = {
    "gunicorn": "gunicorn",
    "flask": "flask, werkzeug",
    "werkzeug": "flask, werkzeug",
    "requests": "requests",
    "urllib3": "urllib3",
    "http": "http.client",
    "email": "http.client",
    "json": "json",
    "jsonschema": "jsonschema",
    "jsonschema_rs": "jsonschema",
    "referencing": "jsonschema",
    "logging": "logging",
}


def layer(file: str) -> str | None:
    """The layer that a source file belongs to; None where its caller's layer counts."""
    path = Path(file)
    if "site-packages" in path.parts:
        package = path.parts[path.parts.index("site-packages") + 1]
        return LAYERS.get(package.removesuffix(".py"))
    if path.is_relative_to(PROJECT):
        return "this service"
    if path.is_relative_to(LIBRARY):
        return LAYERS.get(path.relative_to(LIBRARY).parts[0].removesuffix(".py"))
    return None


def short(file: str) -> str:
    """A file's path below the project, the library or site-packages."""
    for root in (PROJECT, LIBRARY):
        file = file.removeprefix(f"{root}/")
    return file.split("site-packages/")[-1]


def wake_on_time() -> None:
    """Ask Linux to wake this thread when it is due (by itself it rounds to 50 us), and first.

    A thread that wakes late finds the others in system calls, where they let go of the
    interpreter lock, and nowhere else. Going first takes root; without it, keep a core free.
    """
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)


class Sampler(threading.Thread):
    """Samples until the process ends; writes its sums into a file once a second."""

    def __init__(self, file: Path) -> None:
        super().__init__(daemon=True, name="sampler")
        self.file = file
        self.layers: defaultdict[str, float] = defaultdict(float)
        self.lines: defaultdict[tuple[str, int, str], float] = defaultdict(float)
        self.clocks: dict[int, float] = {}
        self.known: dict[str, str | None] = {}

    def run(self) -> None:
        sys.setswitchinterval(GIL_WAIT)
        wake_on_time()
        next_report = time.monotonic() + 1
        while True:
            time.sleep(INTERVAL)
            self.look()
            if time.monotonic() >= next_report:
                self.report()
                next_report += 1

    def look(self) -> None:
        for thread, frame in sys._current_frames().items():
            if thread == self.ident:
                continue
            with contextlib.suppress(OSError):  # the thread has just ended
                clock = time.clock_gettime(time.pthread_getcpuclockid(thread))
                used = clock - self.clocks.get(thread, clock)
                self.clocks[thread] = clock
                if used > 0:
                    self.charge(frame, used)

    def charge(self, frame: FrameType, seconds: float) -> None:
        """The line pays, and the layer of the innermost frame that belongs to one."""
        code = frame.f_code
        self.lines[code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name] += seconds
        caller: FrameType | None = frame
        while caller:
            file = caller.f_code.co_filename
            if file not in self.known:
                self.known[file] = layer(file)
            if found := self.known[file]:
                self.layers[found] += seconds
                return
            caller = caller.f_back
        self.layers["the rest"] += seconds

    def report(self) -> None:
        costliest = sorted(self.lines.items(), key=lambda item: -item[1])[:LINES]
        lines = [
            [seconds, f"{short(file)}:{number}", name, linecache.getline(file, number).strip()]
            for (file, number, name), seconds in costliest
        ]
        unfinished = self.file.with_suffix(".part")
        unfinished.write_text(json.dumps({"layers": self.layers, "lines": lines}))
        unfinished.replace(self.file)
