"""The rows of the table: each a figure of the results, worked out alike for every column."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from bench.footprint import Footprint
from bench.scenarios import (
    CROWD,
    FLAT_OUT,
    FULL,
    LONG_TALK,
    ONE_CALLER,
    ROUTES,
    SHORT_TALK,
    STREAMS,
    WAITING,
    Measurement,
    Scenario,
)

ROUTE_NAMES = "OpenAI / Anthropic"
NOTHING = "\N{EN DASH}"


@dataclass
class Results:
    """All that a run of the bench has found."""

    columns: list[str]
    measurements: dict[tuple[str, str, str], list[Measurement]] = field(default_factory=dict)
    idle_mib: dict[str, float] = field(default_factory=dict)
    cold_start: dict[str, float] = field(default_factory=dict)
    footprints: dict[str, Footprint] = field(default_factory=dict)
    parsing_ms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, scenario: Scenario, route: str, column: str, found: Measurement) -> None:
        self.measurements.setdefault((scenario.name, route, column), []).append(found)

    def median(
        self,
        scenario: Scenario,
        route: str,
        column: str,
        figure: Callable[[Measurement], float],
    ) -> float | None:
        """The median of a figure over the rounds, or None when it was not measured."""
        rounds = self.measurements.get((scenario.name, route, column))
        return median(figure(found) for found in rounds) if rounds else None


Figure = Callable[[Results, str, str], float | None]


@dataclass(frozen=True)
class Row:
    """A line of the table: its figure for a column and a route."""

    name: str
    figure: Figure
    digits: int = 0
    routes: tuple[str, ...] = ROUTES
    more_is_better: bool = False

    def values(self, results: Results, column: str) -> list[float | None]:
        return [self.figure(results, column, route) for route in self.routes]

    def cell(self, results: Results, column: str) -> str:
        """The figures of a column, route by route, or a dash."""
        values = self.values(results, column)
        if all(value is None for value in values):
            return NOTHING
        return " / ".join(NOTHING if v is None else f"{v:,.{self.digits}f}" for v in values)


def of(scenario: Scenario, figure: Callable[[Measurement], float]) -> Figure:
    """The median of a measurement's figure."""
    return lambda results, column, route: results.median(scenario, route, column, figure)


def added_latency(results: Results, column: str, route: str) -> float | None:
    """What the gateway adds to the median latency of the bare upstream."""
    own = results.median(ONE_CALLER, route, column, lambda found: found.outcome.p50)
    direct = results.median(ONE_CALLER, route, "direct", lambda found: found.outcome.p50)
    return None if own is None or direct is None else own - direct


def cpu_per_request_ms(scenario: Scenario) -> Figure:
    return of(scenario, lambda found: found.cpu_per_1000)  # s per 1000 are ms per one


def cost_of_bytes(results: Results, route: str) -> float | None:
    """CPU ms that 499 more messages cost any gateway: passing them on and parsing them."""
    long = cpu_per_request_ms(LONG_TALK)(results, "prototype", route)
    short = cpu_per_request_ms(SHORT_TALK)(results, "prototype", route)
    if long is None or short is None or route not in results.parsing_ms:
        return None
    # Passing on costs something, though a noisy run has the prototype's 1 above its 500 messages.
    return max(0.0, long - short) + median(results.parsing_ms[route])


def long_talk_ratio(results: Results, column: str, route: str) -> float | None:
    """CPU of 500 messages less the cost of their bytes, over the CPU of 1 message."""
    long = cpu_per_request_ms(LONG_TALK)(results, column, route)
    short = cpu_per_request_ms(SHORT_TALK)(results, column, route)
    the_bytes = cost_of_bytes(results, route)
    if not long or not short or the_bytes is None or column in ("direct", "prototype"):
        return None
    return (long - the_bytes) / short


def per_column(values: Callable[[Results], Mapping[str, float]]) -> Figure:
    return lambda results, column, _: values(results).get(column)


ONCE = ("openai",)  # for rows that know no route

ROWS = (
    Row(f"added latency, one caller, ms ({ROUTE_NAMES})", added_latency, 2),
    Row(
        f"full answers, 32 callers: requests/s ({ROUTE_NAMES})",
        of(FULL, lambda found: found.outcome.rate),
        more_is_better=True,
    ),
    Row("… CPU s per 1000", of(FULL, lambda found: found.cpu_per_1000), 2),
    Row(
        "200 callers, 300 ms upstream: requests/s (666 ideal)",
        of(WAITING, lambda found: found.outcome.rate),
        more_is_better=True,
    ),
    Row(
        "40 streams, 50 chunks each 20 ms: first token p50, ms",
        of(STREAMS, lambda found: found.outcome.first_p50),
        1,
    ),
    Row("… first token p99, ms", of(STREAMS, lambda found: found.outcome.first_p99), 1),
    Row("… CPU s per 1000 streams", of(STREAMS, lambda found: found.cpu_per_1000), 2),
    Row(
        "32 streams flat out: chunks/s",
        of(FLAT_OUT, lambda found: found.outcome.words_rate),
        more_is_better=True,
    ),
    Row(
        "1000 streams at once: intact",
        of(CROWD, lambda found: found.outcome.intact),
        routes=ONCE,
        more_is_better=True,
    ),
    Row("… most open at one time", of(CROWD, lambda found: found.outcome.at_once), routes=ONCE),
    Row("… memory in all (PSS), MiB", of(CROWD, lambda found: found.peak_mib), routes=ONCE),
    Row("1 message: CPU ms per request", cpu_per_request_ms(SHORT_TALK), 2),
    Row("500 messages: CPU ms per request", cpu_per_request_ms(LONG_TALK), 2),
    Row("… less the cost of their bytes, over 1 message", long_talk_ratio, 2),
    Row("idle memory (PSS), MiB", per_column(lambda results: results.idle_mib), routes=ONCE),
    Row(
        "cold start to first answer, s",
        per_column(lambda results: results.cold_start),
        2,
        routes=ONCE,
    ),
    Row(
        "installed MiB",
        per_column(lambda results: {k: v.mib for k, v in results.footprints.items()}),
        1,
        routes=ONCE,
    ),
    Row(
        "… packages",
        per_column(lambda results: {k: v.packages for k, v in results.footprints.items()}),
        routes=ONCE,
    ),
)
