"""The load generator: N callers at once over kept-alive connections, each answer looked at.

    python -m bench.load < order.json

reads one `Order` as JSON from standard input and prints one `Outcome` as JSON. It runs as its
own process and works on raw bytes, so that what it takes from the machine stays small.
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from bench.upstream import WORD

MARK = WORD.encode()
TAIL = 1000  # a stream's end mark is looked for in so many last bytes
CONTENT_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
IN_CHUNKS = re.compile(rb"transfer-encoding:\s*chunked", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """What to send, where to, by how many, until when."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    words: int  # every answer must hold so many
    end_mark: str = ""  # what the end of a stream must hold
    callers: int = 1
    requests: int | None = None  # stop after so many in all …
    seconds: float | None = None  # … or start none after so long
    ramp: float = 0.0  # spread the callers' first requests over so many seconds
    limit: float = 60.0  # give up after so long, whatever is still under way

    def request(self) -> bytes:
        """The request as it goes over the wire."""
        body = self.body.encode()
        lines = [f"POST {self.path} HTTP/1.1", f"host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Outcome:
    """What came of an order. Times are in ms, rates per second."""

    intact: int = 0
    p50: float = 0.0
    first_p50: float = 0.0
    first_p99: float = 0.0
    gap_p99: float = 0.0  # between two reads of one stream
    rate: float = 0.0
    words_rate: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


class Run:
    """The state that all callers of one order share."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.request = order.request()
        self.end_mark = order.end_mark.encode()
        self.left = order.requests
        self.latencies: list[float] = []
        self.first_words: list[float] = []
        self.gaps: list[float] = []
        self.failures = Counter[str]()
        self.started = self.last_end = time.perf_counter()

    def next_request(self) -> bytes | None:
        """The next request to send, or None when the order is fulfilled."""
        seconds = self.order.seconds
        if seconds is not None and time.perf_counter() - self.started >= seconds:
            return None
        if self.left is not None:
            if self.left <= 0:
                return None
            self.left -= 1
        return self.request

    async def call(self, number: int) -> None:
        """Send requests until the order is fulfilled; after an answer that was cut, dial again."""
        await asyncio.sleep(self.order.ramp * number / self.order.callers)
        loop = asyncio.get_running_loop()
        was_cut = True
        while was_cut:
            try:
                _, caller = await loop.create_connection(
                    lambda: Caller(self), "127.0.0.1", self.order.port
                )
            except OSError as error:
                self.failures[type(error).__name__] += 1
                return
            was_cut = await caller.was_cut

    def outcome(self) -> Outcome:
        rate = len(self.latencies) / (self.last_end - self.started or 1.0)
        return Outcome(
            intact=len(self.latencies),
            p50=percentile(self.latencies, 50),
            first_p50=percentile(self.first_words, 50),
            first_p99=percentile(self.first_words, 99),
            gap_p99=percentile(self.gaps, 99),
            rate=rate,
            words_rate=rate * self.order.words,
            failures=dict(self.failures),
        )


class Caller(asyncio.Protocol):
    """One caller: sends a request, reads its answer to the end, sends the next."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.waiting = False
        self.was_cut: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        request = self.run.next_request()
        if request is None:
            self.transport.close()
            return
        self.received = bytearray()
        self.body_start = 0
        self.body_end: int | None = None
        self.saw_word = False
        self.waiting = True
        self.sent = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self.received
        received += data
        if self.saw_word:
            now = time.perf_counter()
            self.run.gaps.append(now - self.last_read)
            self.last_read = now
        if not self.saw_word and MARK in data:
            self.saw_word = True
            self.last_read = time.perf_counter()
            self.first_word = self.last_read - self.sent
        if not self.body_start and not self.read_head():
            return
        if self.body_end is None:
            if received.endswith(b"\r\n0\r\n\r\n"):
                self.finish(without_chunk_framing(received[self.body_start :]))
        elif len(received) >= self.body_end:
            self.finish(bytes(received[self.body_start :]))

    def read_head(self) -> bool:
        """Find out where the body starts and ends; False while the head is incomplete."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        self.body_start = end + 4
        length = CONTENT_LENGTH.search(self.received, 0, end)
        if length:
            self.body_end = self.body_start + int(length.group(1))
        elif not IN_CHUNKS.search(self.received, 0, end):
            self.body_end = sys.maxsize  # the body ends with the connection: never intact
        return True

    def finish(self, body: bytes) -> None:
        self.waiting = False
        self.run.last_end = time.perf_counter()
        fault = self.fault(body)
        if fault:
            self.run.failures[fault] += 1
        else:
            self.run.latencies.append(self.run.last_end - self.sent)
            self.run.first_words.append(self.first_word)
        self.send()

    def fault(self, body: bytes) -> str | None:
        """What is wrong with the answer, or None: all its words and its end mark are there."""
        status = bytes(self.received[9:12])
        if status != b"200":
            return f"status {status.decode()}"
        if body.count(MARK) != self.run.order.words:
            return "words missing"
        if self.run.end_mark not in body[-TAIL:]:
            return "no end mark"
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that was cut counts as failed."""
        if self.waiting:
            self.run.failures["cut" if self.received else "reset"] += 1
        self.was_cut.set_result(self.waiting)


def without_chunk_framing(body: bytearray) -> bytes:
    """The content of a body in chunked transfer coding."""
    parts: list[bytes] = []
    at = 0
    while True:
        line_end = body.find(b"\r\n", at)
        size = int(body[at:line_end], 16)
        if not size:
            return b"".join(parts)
        parts.append(bytes(body[line_end + 2 : line_end + 2 + size]))
        at = line_end + 4 + size


def percentile(seconds: list[float], share: int) -> float:
    """So many per cent of the times are below this one, in ms; 0 where there are none."""
    ordered = sorted(seconds)
    return ordered[len(ordered) * share // 100] * 1000 if ordered else 0.0


async def carry_out(order: Order) -> Outcome:
    """Carry the order out and say what came of it."""
    run = Run(order)
    calls = [asyncio.create_task(run.call(number)) for number in range(order.callers)]
    _, late = await asyncio.wait(calls, timeout=order.limit)
    if late:
        run.failures["not finished in time"] += 1
    for call in late:
        call.cancel()
    return run.outcome()


def main() -> None:
    order = Order(**json.load(sys.stdin))
    json.dump(asdict(asyncio.run(carry_out(order))), sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
