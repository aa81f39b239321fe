"""Say where the CPU of a full answer goes, and that of a stream's chunk.

    python -m bench.profile
    python -m bench.profile --only full --lines 30

One caller, one worker. A run without the sampler says what an answer or a chunk costs, a run
with it says which layer and which line that is spent in. A line that calls C code or the
operating system (`sendall`, `recv`, `json`) stands for all that it takes there.
"""

import argparse
import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from bench.fleet import Fleet
from bench.scenarios import FLAT_OUT, FULL, ROUTES, Scenario, measure, order
from bench.targets import Place, Service

SECONDS = 4.0
WORK: dict[str, Scenario] = {
    "full": replace(FULL, about="a full answer", callers=1, seconds=SECONDS),
    "chunk": replace(FLAT_OUT, about="a stream's chunk", callers=1, seconds=SECONDS),
}


class OneWorker(Service):
    name = "one worker"

    def environment(self, place: Place) -> dict[str, str]:
        return {**super().environment(place), "WEB_CONCURRENCY": "1"}


class Sampled(OneWorker):
    """The same with the sampler in it."""

    name = "one worker, sampled"

    def command(self, place: Place) -> list[str]:
        return [*super().command(place), "--config", "python:bench.sampled"]

    def environment(self, place: Place) -> dict[str, str]:
        return {**super().environment(place), "BENCH_SAMPLES": str(samples(place))}


def samples(place: Place) -> Path:
    return place.folder / "samples.json"


@dataclass(frozen=True)
class Profile:
    """Microseconds of CPU for one answer or chunk: in all, by layer, by line."""

    total: float
    layers: dict[str, float]
    lines: list[tuple[float, str, str, str]]


def profile(scenario: Scenario, route: str) -> Profile:
    """The scenario's profile on one route."""
    with Fleet() as fleet:
        fleet.start_mock()
        plain = fleet.start(OneWorker())
        found = measure(plain.server, order(plain.target, plain.place, scenario, route))
        sampled = fleet.start(Sampled())
        measure(sampled.server, order(sampled.target, sampled.place, scenario, route))
        sums = json.loads(samples(sampled.place).read_text())
    pieces = found.outcome.intact * (scenario.words if scenario.stream else 1)
    total = found.cpu_seconds / pieces * 1e6
    scale = total / sum(sums["layers"].values())
    layers = {name: seconds * scale for name, seconds in sums["layers"].items()}
    lines = [(seconds * scale, *where) for seconds, *where in sums["lines"]]
    return Profile(total, layers, lines)


def table(found: Profile, lines: int) -> str:
    """The layers from the costliest down, then the costliest lines."""
    rows = [
        f"{cost:9.1f} us {cost / found.total:5.0%}  {name}"
        for name, cost in sorted(found.layers.items(), key=lambda item: -item[1])
    ]
    rows.append("")
    rows += [
        f"{cost:9.1f} us {cost / found.total:5.1%}  {where} {name}: {text[:60]}"
        for cost, where, name, text in found.lines[:lines]
    ]
    return "\n".join(rows)


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
