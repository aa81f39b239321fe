"""Say where the CPU of a full answer goes, and that of a stream's chunk.

    python -m bench.profile
    python -m bench.profile --only full --lines 30

One worker does the work that the bench gives it. The kernel's part is what Linux counts as such;
the rest is shared out by samples that py-spy takes of the thread that runs Python. A line that
calls C code (`json`, a regular expression) stands for all that it takes there.
"""

import argparse
import linecache
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.fleet import Fleet, Running
from bench.scenarios import FLAT_OUT, FULL, ROUTES, WARM_UP, Measurement, Scenario, measure, order
from bench.targets import PROJECT, SCRIPTS, Place, Service

SAMPLES_PER_SECOND = 250
SECONDS = 8.0
WORK: dict[str, Scenario] = {
    "full": replace(FULL, about="a full answer", seconds=SECONDS),
    "chunk": replace(FLAT_OUT, about="a stream's chunk", seconds=SECONDS),
}
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
}
FRAME = re.compile(r"(?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)")


class OneWorker(Service):
    name = "one worker"

    def environment(self, place: Place) -> dict[str, str]:
        return {**super().environment(place), "WEB_CONCURRENCY": "1"}


@dataclass(frozen=True)
class Profile:
    """Microseconds of CPU for one answer or chunk: in all, by layer, by line."""

    total: float
    layers: Mapping[str, float]
    lines: Mapping[str, float]


def profile(scenario: Scenario, route: str) -> Profile:
    """The scenario's profile on one route."""
    with Fleet() as fleet:
        fleet.start_mock()
        running = fleet.start(OneWorker())
        for warm_up in WARM_UP:
            work(running, warm_up, route)
        kernel_before = running.server.kernel_seconds()
        found = work(running, scenario, route)
        kernel = running.server.kernel_seconds() - kernel_before
        stacks = sampled(running, scenario, route)
    pieces = found.outcome.intact * (scenario.words if scenario.stream else 1)
    in_python = (found.cpu_seconds - kernel) / pieces * 1e6
    layers = defaultdict(float, {"the kernel": kernel / pieces * 1e6})
    lines: defaultdict[str, float] = defaultdict(float)
    for stack, count in stacks.items():
        cost = in_python * count / stacks.total()
        layers[next(filter(None, map(layer, reversed(stack))), "the rest")] += cost
        lines[stack[-1]] += cost
    return Profile(found.cpu_seconds / pieces * 1e6, layers, lines)


def work(running: Running, scenario: Scenario, route: str) -> Measurement:
    return measure(running.server, order(running.target, running.place, scenario, route))


def sampled(running: Running, scenario: Scenario, route: str) -> Counter[tuple[str, ...]]:
    """The stacks that py-spy sees while the worker works, each from the outermost frame in."""
    _master, worker = running.server.pids()
    with tempfile.NamedTemporaryFile() as file:
        options = ["--pid", str(worker), "--rate", str(SAMPLES_PER_SECOND), "--gil"]
        options += ["--full-filenames", "--format", "raw", "--output", file.name]
        spy = subprocess.Popen(
            [py_spy(), "record", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        work(running, scenario, route)
        spy.send_signal(signal.SIGINT)  # it writes down what it has seen
        errors = spy.communicate()[1]
        stacks: Counter[tuple[str, ...]] = Counter()
        for line in Path(file.name).read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            stacks[tuple(stack.split(";"))] += int(count)
    if not stacks:
        raise SystemExit(f"py-spy saw nothing. It says: {errors}")
    return stacks


def py_spy() -> str:
    program = shutil.which("py-spy", path=f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise SystemExit("py-spy is not installed; requirements-dev.txt has it.")
    return program


def layer(frame: str) -> str | None:
    """The layer that a frame's file belongs to; None where its caller's layer counts."""
    found = FRAME.fullmatch(frame)
    path = Path(found["file"]) if found else Path()
    if "site-packages" in path.parts:
        package = path.parts[path.parts.index("site-packages") + 1]
        return LAYERS.get(package.removesuffix(".py"))
    if path.is_relative_to(PROJECT):
        return "this service"
    if path.is_relative_to(LIBRARY):
        return LAYERS.get(path.relative_to(LIBRARY).parts[0].removesuffix(".py"))
    return None


def described(frame: str) -> str:
    """A frame with its path cut short and its line of code."""
    found = FRAME.fullmatch(frame)
    if not found:
        return frame
    path = found["file"].split("site-packages/")[-1]
    for root in (PROJECT, LIBRARY):
        path = path.removeprefix(f"{root}/")
    code = linecache.getline(found["file"], int(found["line"])).strip()
    return f"{path}:{found['line']} {found['function']}: {code[:60]}"


def table(found: Profile, lines: int) -> str:
    """The layers from the costliest down, then the costliest lines."""
    rows = [f"{cost:9.1f} us {cost / found.total:5.0%}  {name}" for name, cost in top(found.layers)]
    rows.append("")
    rows += [
        f"{cost:9.1f} us {cost / found.total:5.1%}  {described(frame)}"
        for frame, cost in top(found.lines)[:lines]
    ]
    return "\n".join(rows)


def top(costs: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(costs.items(), key=lambda item: -item[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--only", choices=list(WORK), help="only this kind of work")
    parser.add_argument("--lines", type=int, default=20, help="how many lines to show")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    for kind, scenario in WORK.items():
        if options.only in (None, kind):
            for route in ROUTES:
                found = profile(scenario, route)
                print(f"\n{scenario.about}, {route}: {found.total:.1f} us of CPU")
                print(table(found, options.lines))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
