"""The work that every gateway is given, and one measurement of one gateway doing it."""

import json
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace

from bench.load import Order, Outcome
from bench.servers import Running
from bench.targets import PROJECT, Messages
from bench.upstream import FULL_WORDS

ROUTES = ("openai", "anthropic")
ONE_ROUTE = ("openai",)  # for work that is the same on both
SENTENCE = "A line of a long conversation, about as long as such lines are when people type them. "


def asking_for(mock: str) -> Messages:
    """A conversation of one message that tells the mock what to do."""
    return [{"role": "user", "content": f"Say something. mock {mock or 'cut=0'};"}]


@dataclass(frozen=True)
class Scenario:
    """One kind of work: who calls how, and what the mock is told to do."""

    name: str
    callers: int
    mock: str = ""
    chunks: int = 0  # of a stream; 0 for full answers
    seconds: float | None = None
    requests: int | None = None
    messages: int = 1
    ramp: float = 0.0
    rounds: int = 3
    routes: tuple[str, ...] = ROUTES
    watch_memory: bool = False
    gateways_only: bool = False
    limits: bool = False  # for the service without and with limits, and nobody else

    def quick(self) -> "Scenario":
        """The same work in one short round."""
        seconds = self.seconds / 2 if self.seconds else None
        return replace(self, rounds=1, seconds=seconds)

    def order(self, running: Running, route: str) -> Order:
        """The work as a request to this target."""
        target, place = running.target, running.place
        body = target.body(route, self._conversation(), self.chunks > 0)
        return Order(
            port=place.port,
            path=target.path(route),
            headers=target.headers(route, place),
            body=json.dumps(body),
            words=self.chunks or FULL_WORDS,
            end_mark=target.end_mark(route) if self.chunks else "",
            callers=self.callers,
            requests=self.requests,
            seconds=self.seconds,
            ramp=self.ramp,
        )

    def _conversation(self) -> Messages:
        """The messages: one, or a system message and turns that end with the user's."""
        if self.messages == 1:
            return asking_for(f"chunks={self.chunks} {self.mock}" if self.chunks else self.mock)
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": SENTENCE}
            for number in range(self.messages - 1)
        ]
        return [{"role": "system", "content": "Be brief."}, *turns]


ONE_CALLER = Scenario("one-caller", callers=1, seconds=1.0)
FULL = Scenario("full", callers=32, seconds=2.0)
WAITING = Scenario("waiting", callers=200, mock="delay_ms=300", seconds=2.4, rounds=2)
STREAMS = Scenario("streams", callers=40, mock="interval_ms=20", chunks=50, requests=200, rounds=2)
BROAD = Scenario("broad", callers=200, mock="interval_ms=20", chunks=100, requests=200)
# The same without the moment in which all of them start.
SPREAD = replace(BROAD, name="spread", ramp=1.0, routes=ONE_ROUTE)
FLAT_OUT = Scenario("flat-out", callers=32, chunks=500, seconds=1.5)
LONG_TALK = Scenario("talk-500", callers=8, seconds=1.0, messages=500)
CROWD = Scenario(
    "crowd",
    callers=1000,
    mock="interval_ms=500",
    chunks=12,
    requests=1000,
    ramp=3.0,
    rounds=1,
    routes=ONE_ROUTE,
    watch_memory=True,
    gateways_only=True,
)
LIMITS = replace(FULL, name="limits", rounds=5, routes=ONE_ROUTE, limits=True)
LIMITS_ONE = replace(ONE_CALLER, name="limits-one", rounds=5, routes=ONE_ROUTE, limits=True)
SCENARIOS = (
    *(ONE_CALLER, FULL, WAITING, STREAMS, BROAD, SPREAD),
    *(FLAT_OUT, LONG_TALK, LIMITS, LIMITS_ONE, CROWD),
)
WARM_UP = (replace(FULL, seconds=0.7), replace(FLAT_OUT, seconds=0.7))
"""Given to every gateway before anything is measured; some compile while they run."""


@dataclass(frozen=True)
class Measurement:
    """What the callers saw, the CPU seconds the gateway used for it, its peak of memory."""

    outcome: Outcome
    cpu_seconds: float
    peak_mib: float = 0.0

    @property
    def cpu_per_1000(self) -> float:
        return self.cpu_seconds / self.outcome.intact * 1000 if self.outcome.intact else 0.0


def measure(running: Running, scenario: Scenario, route: str) -> Measurement:
    """Let a load process carry the work out and say what it cost the server."""
    work, server = scenario.order(running, route), running.server
    before, mib, is_done = server.cpu_seconds(), [0.0], threading.Event()

    def look() -> None:
        while not is_done.wait(1.0):
            mib.append(server.pss_mib())

    if scenario.watch_memory:
        threading.Thread(target=look).start()
    try:
        outcome = generate_load(work)
    except subprocess.SubprocessError as error:  # one cell of the table, not the whole run
        outcome = Outcome(failures={f"no outcome, {type(error).__name__}": 1})
    finally:
        is_done.set()
    return Measurement(outcome, server.cpu_seconds() - before, max(mib))


def generate_load(work: Order) -> Outcome:
    """The outcome of an order, carried out by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=json.dumps(asdict(work)),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=work.limit + 15,
        check=True,
    )
    return Outcome(**json.loads(done.stdout))
