"""A real Redis for the tests, on a free port; it can be killed, stopped for a while, restarted."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest
import redis


class RedisServer:
    """redis-server, keeping nothing on disk; a context manager that ends it."""

    def __init__(self, *options: str, tls: Path | None = None) -> None:
        if not shutil.which("redis-server"):
            pytest.skip("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        port = ["--port", str(self.port)]
        if tls is not None:
            port = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            port += ["--tls-cert-file", str(tls), "--tls-key-file", str(tls)]
        quiet = ["--save", "", "--loglevel", "warning", "--bind", "127.0.0.1"]
        self._command = ["redis-server", *port, *quiet, *options]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        # As if on a machine of its own: 35 ms without a CPU, and calls would rightly pass.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, self.process.pid, -10)
        end = time.monotonic() + 20
        while not self._listens():
            assert time.monotonic() < end, "redis-server does not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    def kill(self) -> None:
        self.process.kill()  # even while it is stopped
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: Any) -> Any:
        """The answer to one command."""
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
