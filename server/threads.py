"""The threads that handle requests."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

# Python's own limits on nesting are made for stacks of this size; small systems give 1 MiB or
# less, and JSON of 5,000 levels then ended the worker. Only what is used takes memory.
STACK_BYTES = 8 * 2**20


class Threads(ThreadPoolExecutor):
    """A pool that makes do with the threads it has where the system gives no more."""

    def __init__(self, most: int) -> None:
        threading.stack_size(STACK_BYTES)
        super().__init__(most)

    def _adjust_thread_count(self) -> None:
        # By now the work is queued: a thread that is there will take it.
        with contextlib.suppress(RuntimeError):
            super()._adjust_thread_count()
