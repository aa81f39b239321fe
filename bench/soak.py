"""Mixed load for minutes, then the growth of memory and descriptors since the warm-up.

    python -m bench.soak --minutes 3

Callers who get full answers and streams, who hang up, who send invalid requests or wrong tokens,
whose provider fails, refuses or cuts the stream. Every answer is looked at. The exit code is 1
when one is wrong or when something has grown over its bound.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

from bench.load import Order
from bench.scenarios import ROUTES, asking_for
from bench.servers import Fleet, Running
from bench.targets import Direct, Service

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


async def load(running: Running, seconds: float, made: Counter[str], wrong: Counter[str]) -> None:
    """Keep all callers busy for so long, each call on a connection of its own."""
    end = time.monotonic() + seconds

    async def keep_calling(chance: random.Random) -> None:
        while time.monotonic() < end:
            call = chance.choices(CALLS, [call.share for call in CALLS])[0]
            work = make(running, call, chance.choice(ROUTES))
            try:
                fault = await asyncio.wait_for(work, ANSWER_LIMIT)
            except OSError as error:  # TimeoutError is one, too
                fault = type(error).__name__
            made[call.name] += 1
            if fault:
                wrong[f"{call.name}: {fault}"] += 1

    await asyncio.gather(*(keep_calling(random.Random(number)) for number in range(CALLERS)))


async def make(running: Running, call: Call, route: str) -> str | None:
    """Make the call; what is wrong with its answer, or None."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.place.port)
    try:
        writer.write(request(running, call, route))
        if call.hang_up_after is not None:
            await asyncio.sleep(call.hang_up_after)
            return None
        answer = await reader.read()  # the connection ends with it
    finally:
        writer.transport.abort()
    if answer[9:12] != str(call.status).encode():
        return f"not a {call.status}: {answer[:20]!r} … {answer[-60:]!r}"
    return None if call.must_hold in answer else f"without {call.must_hold.decode()}"


def request(running: Running, call: Call, route: str) -> bytes:
    target, place = running.target, running.place
    document = dict(target.body(route, asking_for(call.mock), call.stream))
    headers = target.headers(route, place) | {"connection": "close"}
    if not call.valid:
        del document["brand_id"]
    if not call.token:
        headers["authorization"] = "Bearer wrong"
    return Order(place.port, target.path(route), headers, json.dumps(document), words=0).request()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    seconds = parser.parse_args().minutes * 60
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    made, wrong, sizes = Counter[str](), Counter[str](), list[tuple[float, int]]()
    with Fleet() as fleet:
        fleet.start(Direct(), fleet.upstream)
        running = fleet.start(Service())
        for share in (WARM_UP_SHARE, 1 - WARM_UP_SHARE):
            asyncio.run(load(running, seconds * share, made, wrong))
            time.sleep(SETTLE_SECONDS)
            server = running.server
            sizes.append((server.pss_mib(), server.descriptors()))
            print(
                f"after {made.total():9,} calls: {sizes[-1][0]:6.1f} MiB (PSS), "
                f"{sizes[-1][1]} descriptors, {server.threads()} threads",
                flush=True,
            )
    for name, count in made.most_common():
        print(f"{count:10,}  {name}")
    more_mib, more_descriptors = (after - before for before, after in zip(*sizes, strict=True))
    found = [f"{count} times {what}" for what, count in wrong.most_common()]
    if more_mib > MORE_MIB:
        found.append(f"memory grew by more than {MORE_MIB} MiB")
    if more_descriptors > MORE_DESCRIPTORS:
        found.append(f"more than {MORE_DESCRIPTORS} descriptors were left behind")
    print("\n".join(f"NOT HELD: {fault}" for fault in found) or "held")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
