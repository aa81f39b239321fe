"""The work that every gateway is given, and one measurement of one gateway doing it."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from bench.load import Order, Outcome
from bench.processes import Server
from bench.targets import PROJECT, Messages, Place, Target
from bench.upstream import FULL_WORDS

ROUTES = ("openai", "anthropic")
LONG = 500
SENTENCE = "A line of a long conversation, about as long as such lines are when people type them. "


def asking_for(mock: str) -> Messages:
    """A conversation of one message that tells the mock what to do."""
    return [{"role": "user", "content": f"Say something. mock {mock or 'cut=0'};"}]


@dataclass(frozen=True)
class Scenario:
    """One kind of work: who calls how, and what the mock is told to do."""

    name: str
    about: str
    callers: int
    mock: str = ""
    stream: bool = False
    words: int = FULL_WORDS
    seconds: float | None = None
    requests: int | None = None
    messages: int = 1
    ramp: float = 0.0
    limit: float = 60.0
    rounds: int = 3
    routes: tuple[str, ...] = ROUTES
    watch_memory: bool = False
    gateways_only: bool = False

    def quick(self) -> "Scenario":
        """The same work in one short round."""
        return replace(
            self,
            rounds=1,
            seconds=self.seconds / 2 if self.seconds else None,
            requests=max(self.requests * 2 // 5, self.callers) if self.requests else None,
        )

    def conversation(self) -> Messages:
        """The messages: one, or a system message and turns that end with the user's."""
        if self.messages == 1:
            return asking_for(self.mock)
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": SENTENCE}
            for number in range(self.messages - 1)
        ]
        return [{"role": "system", "content": "Be brief."}, *turns]


ONE_CALLER = Scenario("one-caller", "full answers, one caller", callers=1, seconds=1.0)
FULL = Scenario("full", "full answers, 32 callers", callers=32, seconds=2.0)
WAITING = Scenario(
    "waiting",
    "full answers, 200 callers, the upstream takes 300 ms",
    callers=200,
    mock="delay_ms=300",
    seconds=2.4,
    rounds=2,
)
STREAMS = Scenario(
    "streams",
    "200 streams, 40 at a time, 50 chunks each 20 ms",
    callers=40,
    mock="chunks=50 interval_ms=20",
    stream=True,
    words=50,
    requests=200,
    rounds=2,
)
FLAT_OUT = Scenario(
    "flat-out",
    "32 streams of 500 chunks, flat out",
    callers=32,
    mock="chunks=500",
    stream=True,
    words=500,
    seconds=1.5,
)
CROWD = Scenario(
    "crowd",
    "1000 streams at once, 12 chunks each 500 ms",
    callers=1000,
    mock="chunks=12 interval_ms=500",
    stream=True,
    words=12,
    requests=1000,
    ramp=3.0,
    limit=45.0,
    rounds=1,
    routes=("openai",),
    watch_memory=True,
    gateways_only=True,
)
SHORT_TALK = Scenario("talk-1", "full answers to 1 message", callers=8, seconds=1.0, rounds=5)
LONG_TALK = replace(
    SHORT_TALK, name="talk-500", about=f"full answers to {LONG} messages", messages=LONG
)
WARM_UP = (replace(FULL, seconds=0.7), replace(FLAT_OUT, seconds=0.7))
"""Given to every gateway before anything is measured; some compile while they run."""

SCENARIOS = (ONE_CALLER, FULL, WAITING, STREAMS, FLAT_OUT, SHORT_TALK, LONG_TALK, CROWD)


@dataclass(frozen=True)
class Measurement:
    """What the callers saw, the CPU seconds the gateway used for it, its peak of memory."""

    outcome: Outcome
    cpu_seconds: float
    peak_mib: float = 0.0

    @property
    def cpu_per_1000(self) -> float:
        return self.cpu_seconds / self.outcome.intact * 1000 if self.outcome.intact else 0.0


def order(target: Target, place: Place, scenario: Scenario, route: str) -> Order:
    """The scenario as a request to this target."""
    body = target.body(route, scenario.conversation(), scenario.stream)
    return Order(
        port=place.port,
        path=target.path(route),
        headers=target.headers(route, place),
        body=json.dumps(body),
        words=scenario.words,
        end_mark=target.end_mark(route) if scenario.stream else "",
        callers=scenario.callers,
        requests=scenario.requests,
        seconds=scenario.seconds,
        ramp=scenario.ramp,
        limit=scenario.limit,
    )


def measure(server: Server, work: Order, watch_memory: bool = False) -> Measurement:
    """Let a load process carry the order out and say what it cost the server."""
    before = server.cpu_seconds()
    with peak_memory(server) if watch_memory else contextlib.nullcontext([0.0]) as peak:
        outcome = generate_load(work)
    return Measurement(outcome, server.cpu_seconds() - before, max(peak))


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


@contextlib.contextmanager
def peak_memory(server: Server) -> Iterator[list[float]]:
    """Look at the server's memory once a second for as long as the block runs."""
    seen = [server.pss_mib()]
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(1.0):
            seen.append(server.pss_mib())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        finished.set()
        thread.join()


def parsing_ms(work: Order) -> float:
    """The time that reading this body as JSON and writing it again takes."""
    rounds = 20
    start = time.process_time()
    for _ in range(rounds):
        json.dumps(json.loads(work.body))
    return (time.process_time() - start) / rounds * 1000
