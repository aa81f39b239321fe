"""Mixed load for minutes, then the growth of memory and descriptors since the warm-up.

    python -m bench.soak --minutes 3

Callers who get full answers and streams, who hang up in mid-stream or before the first byte,
who send invalid requests or wrong tokens, whose provider fails, refuses or cuts the stream. Every
answer is looked at. The exit code is 1 when an answer is wrong or when something has grown over
its bound.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.fleet import Fleet, Running
from bench.load import CONTENT_LENGTH, Order
from bench.processes import Server
from bench.scenarios import ROUTES, asking_for
from bench.targets import Place, Service

CALLERS = 24
WARM_UP_SHARE = 0.25  # of the time; pools and threads reach their size in it
SETTLE_SECONDS = 6.0  # without load, before anything is counted
ANSWER_LIMIT = 30.0

MORE_MIB = 8.0
MORE_DESCRIPTORS = 2 * CALLERS  # the pools may hold that many connections more or fewer


@dataclass(frozen=True)
class Call:
    """A kind of call: what the mock is told, what must come back, how often it is made."""

    name: str
    share: int
    mock: str = ""
    stream: bool = False
    status: int = 200
    must_hold: bytes = b""
    valid: bool = True
    token: bool = True
    hang_up_after: float | None = None  # seconds


CALLS = (
    Call("full answer", 40, must_hold=b" word49"),
    Call("stream", 20, mock="chunks=100", stream=True, must_hold=b"data: [DONE]"),
    Call("slow stream", 3, "chunks=20 interval_ms=20", stream=True, must_hold=b"data: [DONE]"),
    Call("hang-up in a stream", 8, "chunks=100 interval_ms=20", True, hang_up_after=0.1),
    Call("hang-up while waiting", 4, "delay_ms=2000", hang_up_after=0.05),
    Call("invalid request", 8, status=400, valid=False),
    Call("wrong token", 8, status=401, token=False),
    Call("provider refuses", 4, "status=400", status=500, must_hold=b"provider_rejected_request"),
    Call("provider fails", 1, "status=529", status=500, must_hold=b"provider_unavailable"),
    Call("provider cuts the stream", 4, "chunks=40 cut=1", stream=True, must_hold=b'"error"'),
)


class Callers:
    """Callers who make one call after another, each on a connection of its own, until told."""

    def __init__(self, target: Service, place: Place) -> None:
        self.target = target
        self.place = place
        self.made: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def load(self, seconds: float) -> None:
        """Keep all callers busy for so long."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self.keep_calling(random.Random(number), end))

    async def keep_calling(self, chance: random.Random, end: float) -> None:
        weights = [call.share for call in CALLS]
        while time.monotonic() < end:
            call = chance.choices(CALLS, weights)[0]
            try:
                fault = await asyncio.wait_for(self.make(call, chance), ANSWER_LIMIT)
            except TimeoutError:
                fault = "no end in time"
            except (OSError, asyncio.IncompleteReadError) as error:
                fault = type(error).__name__
            self.made[call.name] += 1
            if fault:
                self.wrong[f"{call.name}: {fault}"] += 1

    async def make(self, call: Call, chance: random.Random) -> str | None:
        """Make the call; what is wrong with its answer, or None."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.place.port)
        try:
            writer.write(self.request(call, chance.choice(ROUTES)))
            if call.hang_up_after is not None:
                await asyncio.sleep(call.hang_up_after)
                return None
            status, body = await answer(reader)
        finally:
            writer.transport.abort()
        if status != call.status:
            return f"status {status}, {body[:60]!r}"
        return None if call.must_hold in body else f"without {call.must_hold.decode()}"

    def request(self, call: Call, route: str) -> bytes:
        document = dict(self.target.body(route, asking_for(call.mock), call.stream))
        if not call.valid:
            del document["brand_id"]
        headers = self.target.headers(route, self.place)
        if not call.token:
            headers["authorization"] = "Bearer wrong"
        path = self.target.path(route)
        return Order(self.place.port, path, headers, json.dumps(document), words=0).request()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of an answer, with the framing of its chunks left in."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = CONTENT_LENGTH.search(head)
    if length:
        body = await reader.readexactly(int(length.group(1)))
    else:
        body = b""
        while not body.endswith(b"\r\n0\r\n\r\n"):
            piece = await reader.read(65536)
            if not piece:
                raise asyncio.IncompleteReadError(body, None)
            body += piece
    return int(head[9:12]), body


@dataclass(frozen=True)
class Size:
    """What the service's process tree holds."""

    pss_mib: float
    rss_mib: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, server: Server) -> "Size":
        return cls(server.pss_mib(), server.rss_mib(), server.descriptors(), server.threads())

    def __str__(self) -> str:
        return (
            f"PSS {self.pss_mib:6.1f} MiB  RSS {self.rss_mib:6.1f} MiB  "
            f"{self.descriptors:4} descriptors  {self.threads:4} threads"
        )


def soak(running: Running, minutes: float) -> tuple[Size, Size, Callers]:
    """The size after the warm-up, the size at the end, and what the callers saw."""
    assert isinstance(running.target, Service)
    callers = Callers(running.target, running.place)
    warm_up = minutes * 60 * WARM_UP_SHARE
    sizes = []
    for name, seconds in (("warm-up", warm_up), ("load", minutes * 60 - warm_up)):
        asyncio.run(callers.load(seconds))
        time.sleep(SETTLE_SECONDS)
        sizes.append(Size.of(running.server))
        made = sum(callers.made.values())
        print(f"after the {name:8} {made:8,} calls  {sizes[-1]}", flush=True)
    return sizes[0], sizes[1], callers


def faults(before: Size, after: Size, wrong: Counter[str]) -> Sequence[str]:
    """What is not as it should be."""
    found = [f"{count} times {what}" for what, count in wrong.most_common()]
    if after.pss_mib - before.pss_mib > MORE_MIB:
        found.append(f"memory grew by more than {MORE_MIB} MiB")
    if after.descriptors - before.descriptors > MORE_DESCRIPTORS:
        found.append(f"more than {MORE_DESCRIPTORS} descriptors were left behind")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    with Fleet() as fleet:
        fleet.start_mock()
        running = fleet.start(Service())
        print(f"at the start                        {Size.of(running.server)}", flush=True)
        before, after, callers = soak(running, options.minutes)
    for name, count in callers.made.most_common():
        print(f"{count:10,}  {name}")
    print(
        f"growth: {after.pss_mib - before.pss_mib:+.1f} MiB (bound {MORE_MIB:+}), "
        f"{after.descriptors - before.descriptors:+} descriptors (bound {MORE_DESCRIPTORS:+}), "
        f"{after.threads - before.threads:+} threads"
    )
    found = faults(before, after, callers.wrong)
    for fault in found:
        print(f"NOT HELD: {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
