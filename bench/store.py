"""How many calls a second one store of the limits counts, by processes: `python -m bench.store`.

Each process does what a gateway's does for a call, one look that counts and one addition, as fast
as it can, over a connection of its own. The gateway itself is not part of it.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench.servers import Server
from bench.targets import free_port, redis_server
from chat.redis_store import redis_at
from chat.sqlite_store import SQLite
from chat.stores import Counter, Look

SECONDS = 3.0
WINDOW_S = 86_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    processes = parser.parse_args().processes
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        measure("file", str(folder / "limits.sqlite3"), processes, None)
        with Server(redis_server(port, folder), {}, folder, folder / "log") as redis:
            time.sleep(1)
            measure("redis", f"redis://127.0.0.1:{port}/0", processes, redis)


def measure(kind: str, where: str, processes: list[int], server: Server | None) -> None:
    for count in processes:
        before = server.cpu_seconds() if server else 0.0
        barrier, results = multiprocessing.Barrier(count), multiprocessing.SimpleQueue()
        running = [
            multiprocessing.Process(target=count_calls, args=(kind, where, barrier, results))
            for _ in range(count)
        ]
        for process in running:
            process.start()
        waits = [wait for _ in running for wait in results.get()]
        for process in running:
            process.join()
        rate = len(waits) / SECONDS
        store_us = (server.cpu_seconds() - before) / len(waits) * 1e6 if server else 0.0
        p50, p99 = (statistics.quantiles(waits, n=100)[at] * 1e6 for at in (49, 98))
        print(
            f"{kind:5} {count:3} processes: {rate:8,.0f} calls/s, a look {p50:6,.0f} us "
            f"(p99 {p99:6,.0f}), the store's CPU {store_us:5.1f} us a call"
        )


def count_calls(kind: str, where: str, barrier: Barrier, results: Any) -> None:
    store = SQLite(where) if kind == "file" else redis_at(where, None)()
    store.patience_s = 5.0  # nobody gives up here, however many share the CPUs
    now = time.time()
    ends = (int(now) // WINDOW_S + 1) * WINDOW_S
    looks = [
        Counter(ends, "caller calls", adds=1, most=10**12),
        Counter(ends, "brand tokens", 10**15),
    ]
    adding = [Counter(ends, "brand tokens", adds=500)]
    barrier.wait()
    waits, end = [], time.monotonic() + SECONDS
    while (start := time.monotonic()) < end:
        store.take([Look(looks, now)])
        waits.append(time.monotonic() - start)
        store.take([Look(adding, now)])
    results.put(waits)


if __name__ == "__main__":
    main()
