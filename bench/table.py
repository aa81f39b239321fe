"""The table, the verdict on the project's own bounds, and the JSON of a run's results."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from statistics import median

from bench import scenarios
from bench.scenarios import ROUTES, Measurement, Scenario
from bench.targets import IN_REDIS, IN_SQLITE, SERVICE

PEERS = ("LiteLLM", "Portkey", "MLflow")
NOTHING = "\N{EN DASH}"


@dataclass
class Results:
    """All that a run of the bench has found; `alone` has idle memory, start and size."""

    columns: list[str]
    measurements: dict[tuple[str, str, str], list[Measurement]] = field(default_factory=dict)
    alone: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, scenario: Scenario, route: str, column: str, found: Measurement) -> None:
        self.measurements.setdefault((scenario.name, route, column), []).append(found)


Figure = Callable[[Results, str, str], float | None]  # by column and route


@dataclass(frozen=True)
class Row:
    """A line of the table: its figure for a column and a route."""

    name: str
    figure: Figure
    digits: int = 0

    def cell(self, results: Results, column: str) -> str:
        """The figures of a column, route by route as far as they were measured, or a dash."""
        values = (self.figure(results, column, route) for route in ROUTES)
        return " / ".join(f"{v:,.{self.digits}f}" for v in values if v is not None) or NOTHING


def of(scenario: Scenario, name: str) -> Figure:
    """The median of what a measurement calls so over the rounds; None where it was not measured."""

    def value(results: Results, column: str, route: str) -> float | None:
        rounds = results.measurements.get((scenario.name, route, column))
        return median(map(attrgetter(name), rounds)) if rounds else None

    return value


def added_latency(results: Results, column: str, route: str) -> float | None:
    """What the gateway adds to the median latency of the bare upstream."""
    p50 = of(scenarios.ONE_CALLER, "outcome.p50")
    own, direct = p50(results, column, route), p50(results, "direct", route)
    return None if own is None or direct is None else own - direct


def with_limits(store: str, figure: Figure, *, as_ratio: bool) -> Figure:
    """The figure with limits in `store`, over or less that without; in the service's column."""

    def value(results: Results, column: str, route: str) -> float | None:
        on, off = figure(results, store, route), figure(results, SERVICE, route)
        if column != SERVICE or not on or not off:
            return None
        return on / off if as_ratio else on - off

    return value


def alone(name: str) -> Figure:
    """What was found with no other gateway running, once for both routes."""
    return lambda results, column, route: (
        results.alone.get(column, {}).get(name) if route == ROUTES[0] else None
    )


def _limits_rows() -> Iterator[Row]:
    for store in (IN_SQLITE, IN_REDIS):
        over = with_limits(store, of(scenarios.LIMITS, CPU), as_ratio=True)
        more = with_limits(store, of(scenarios.LIMITS_ONE, "outcome.p50"), as_ratio=False)
        yield Row(f"{store}: CPU of a full answer, over that without", over, 3)
        yield Row("… added latency, one caller, ms", more, 2)


CPU = "cpu_per_1000"
full_cpu, streams_cpu = of(scenarios.FULL, CPU), of(scenarios.STREAMS, CPU)
waiting_rate = of(scenarios.WAITING, "outcome.rate")
first_p50 = of(scenarios.STREAMS, "outcome.first_p50")
broad_gap = of(scenarios.BROAD, "outcome.gap_p99")
chunk_rate = of(scenarios.FLAT_OUT, "outcome.words_rate")
crowd_intact, crowd_memory = of(scenarios.CROWD, "outcome.intact"), of(scenarios.CROWD, "peak_mib")

ROWS = (
    Row("added latency, one caller, ms (OpenAI / Anthropic)", added_latency, 2),
    Row("full answers, 32 callers: requests/s", of(scenarios.FULL, "outcome.rate")),
    Row("… CPU s per 1000", full_cpu, 2),
    Row("200 callers, 300 ms upstream: requests/s (666 ideal)", waiting_rate),
    Row("40 streams, 50 chunks each 20 ms: first token p50, ms", first_p50, 1),
    Row("… first token p99, ms", of(scenarios.STREAMS, "outcome.first_p99"), 1),
    Row("… CPU s per 1000 streams", streams_cpu, 2),
    Row("200 streams, 20 ms apart: gap between chunks, p99, ms", broad_gap, 1),
    Row("… their starts spread over 1 s", of(scenarios.SPREAD, "outcome.gap_p99"), 1),
    Row("32 streams flat out: chunks/s", chunk_rate),
    Row("1000 streams at once: intact", crowd_intact),
    Row("… memory in all (PSS), MiB", crowd_memory),
    Row("500 messages: CPU s per 1000", of(scenarios.LONG_TALK, CPU), 2),
    *_limits_rows(),
    Row("idle memory (PSS), MiB", alone("idle MiB")),
    Row("cold start to first answer, s", alone("cold start"), 2),
    Row("installed MiB", alone("installed MiB"), 1),
    Row("… packages", alone("packages")),
)


def table(results: Results) -> str:
    """The rows that were measured, as a Markdown table."""
    lines = [["", *results.columns], ["---"] * (len(results.columns) + 1)]
    for row in ROWS:
        cells = [row.cell(results, column) for column in results.columns]
        if any(cell != NOTHING for cell in cells):
            lines.append([row.name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def failures(results: Results) -> list[str]:
    """What went wrong, one line for each scenario, route and column where anything did."""
    return [
        f"{', '.join(key)}: {count} times {why}"
        for key, rounds in results.measurements.items()
        for found in rounds
        for why, count in found.outcome.failures.items()
    ]


@dataclass(frozen=True)
class Bound:
    """What the service's figure must keep to: a number, or so many times the best peer's."""

    what: str
    figure: Figure
    limit: float | None = None
    times_best: float = 1.0  # where there is no number
    more_is_better: bool = False

    def verdicts(self, results: Results) -> Iterator[str]:
        best, sign = (max, "≥") if self.more_is_better else (min, "≤")
        for route in ROUTES:
            value = self.figure(results, SERVICE, route)
            of_peers = [found for peer in PEERS if (found := self.figure(results, peer, route))]
            limit = self.limit
            if limit is None and of_peers:
                limit = self.times_best * best(of_peers)
            verdict, against = "-     ", "no peer was measured"
            if value is not None and limit is not None:
                verdict = "held  " if best(value, limit) == value else "MISSED"
                against = f"{sign} {limit:,.2f}"
            if value is not None:
                yield f"{verdict}  {route}: {self.what}: {value:,.2f} ({against})"


BOUNDS = (
    Bound("added latency, ms, below every peer", added_latency),
    Bound("CPU s of 1000 full answers, below every peer", full_cpu),
    Bound("CPU s of 1000 streams, below every peer", streams_cpu),
    Bound("chunks/s flat out, 1.4 times the best peer", chunk_rate, None, 1.4, more_is_better=True),
    Bound("200 streams: gap p99, ms", broad_gap, 50),
    Bound("1000 streams at once: intact", crowd_intact, 1000, more_is_better=True),
    Bound("1000 streams at once: MiB in all", crowd_memory, 200),
    Bound(
        f"{IN_SQLITE}: CPU over that without",
        with_limits(IN_SQLITE, of(scenarios.LIMITS, CPU), as_ratio=True),
        1.08,
    ),
    Bound("idle memory, MiB", alone("idle MiB"), 58),
    Bound("cold start, s", alone("cold start"), 0.4),
    Bound("installed, MiB", alone("installed MiB"), 20),
    Bound("packages", alone("packages"), 20),
)


def bounds(results: Results) -> list[str]:
    """The project's own bounds, each with the figure of this run."""
    return [line for bound in BOUNDS for line in bound.verdicts(results)]


def write_json(results: Results, file: Path) -> None:
    """Every round behind the table, one a line."""
    rounds = [
        json.dumps({"scenario": scenario, "route": route, "column": column, **asdict(found)})
        for (scenario, route, column), measured in results.measurements.items()
        for found in measured
    ]
    file.write_text("[\n" + ",\n".join(rounds) + "\n]\n")


def write_readme(results: Results, file: Path) -> None:
    """The run in the README, between its two marks."""
    before, begin, rest = file.read_text().partition("<!-- written by python -m bench -->\n")
    _, end, after = rest.partition("<!-- end of what is written -->\n")
    if not end:
        raise ValueError(f"{file} has no place for the table.")
    day = datetime.now(UTC).date().isoformat()
    head = f"{day}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
    head += f"Python {platform.python_version()}."
    verdicts = "\n".join(["```text", *failures(results), *bounds(results), "```"])
    parts = [before, begin, head, "\n\n", table(results), "\n\n", verdicts, "\n", end, after]
    file.write_text("".join(parts))
