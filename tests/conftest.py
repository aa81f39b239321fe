"""A real service for the tests: gunicorn as the Procfile starts it, and its upstream.

Where a new test goes:
- what a request may say, or an answer looks like: test_requests, test_request_fields, test_errors,
  test_access, test_headers, in this process (tests/inprocess.py; `responses` plays the provider);
- one provider's words: test_anthropic, test_openai; what both do: test_streams, test_retries,
  test_successors, test_provider_errors;
- what needs sockets, signals or time: test_hostile_callers, test_hostile_upstreams, test_hang_ups,
  test_overload, test_stopping, test_time_limits, with `service`, `start` and tests/upstream.py;
- settings and set-up: test_settings, test_setup; what is written down: test_usage_record,
  test_log_lines, test_secrets; the page: test_reference, test_browser;
  who may import whom: test_doors.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Self

import pytest
import requests
import responses

from core.settings import VARIABLES
from tests.upstream import Upstream

ROOT = Path(__file__).parent.parent
TOKEN = "test-token"
BOUND_TOKEN = "bound-token"
ANTHROPIC_KEY = "sk-ant-the-secret-key"
OPENAI_KEY = "sk-proj-the-secret-key"
NODE_PACKAGES = (
    "openai@7.57.0",
    "openapi-typescript@7.13.0",
    "ai@6.0.326",
    "@ai-sdk/openai@3.0.141",
    "@ai-sdk/openai-compatible@2.0.92",
)
CLAUDE, GPT = "claude-sonnet-4-6", "gpt-4o"


def ask(model: str = GPT, text: str = "Hi", **more: Any) -> dict[str, Any]:
    """A valid request body."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "brand_id": "loop", "requested_by": "me"} | more


class Service:
    """gunicorn (or a command like it) on a port of its own; a context manager that stops it."""

    def __init__(self, log: Path, *command: str, **environ: str) -> None:
        self.log_path = log
        self.folder = ROOT
        self._command = command or ("gunicorn",)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.token = TOKEN
        self._environ = {
            **dict.fromkeys(VARIABLES, ""),  # a developer's .env changes no test
            "PATH": os.environ["PATH"],
            "PORT": str(self.port),
            "FLASK_RUN_PORT": str(self.port),
            "ACCESS_TOKENS": f"team:{TOKEN},bound:{BOUND_TOKEN}:loop|acme",
            "WEB_CONCURRENCY": "1",
            "PYTHONUNBUFFERED": "1",
            **environ,
        }

    def __enter__(self) -> Self:
        given = self._command[0]
        program = self.folder / given if "/" in given else Path(sys.executable).with_name(given)
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [program, *self._command[1:]],
                cwd=self.folder,
                env=self._environ,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self._answers() or self.process.poll() is not None)
        return self

    def __exit__(self, *_exc: object) -> None:
        for pid in [*self.worker_pids(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=1).ok
        except requests.RequestException:
            return False

    @staticmethod
    def until(is_so: Callable[[], Any], timeout_s: float = 10) -> Any:
        """What `is_so` says once it is true; polled, as processes and logs send no events."""
        end = time.monotonic() + timeout_s
        while not (found := is_so()):
            if time.monotonic() > end:
                raise TimeoutError("it did not become so")
            time.sleep(0.02)
        return found

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def worker_pids(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    @staticmethod
    def threads_of(pid: int) -> int:
        """How many threads a worker has."""
        return len(os.listdir(f"/proc/{pid}/task"))

    def records(self, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """All usage records with these fields, once there are at least `count`."""

        def read() -> list[dict[str, Any]]:
            lines = [line for line in self.log.splitlines(keepends=True) if line.endswith("\n")]
            found = [json.loads(line) for line in lines if line.startswith("{")]
            return [line for line in found if line.items() >= ({"event": "usage"} | fields).items()]

        self.until(lambda: len(read()) >= count)
        return read()

    def record_of(self, response: requests.Response) -> dict[str, Any]:
        """The one usage record of the call that got this answer."""
        (record,) = self.records(request_id=response.headers["X-Request-Id"])
        return record

    def post(self, body: Any, token: str | None = TOKEN, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return requests.post(
            f"{self.url}/v1/chat/completions",
            data=data,
            headers=headers | more.pop("headers", {}),
            timeout=30,
            **more,
        )

    def stream(self, body: dict[str, Any]) -> list[str]:
        """All lines of a streamed answer but the empty ones."""
        response = self.post(body | {"stream": True}, stream=True)
        assert response.status_code == 200, response.text
        return [line for line in response.content.decode().split("\n") if line]

    def connect(self, buffer_bytes: int | None = None) -> socket.socket:
        """A connection that takes no more than about `buffer_bytes` (else megabytes) unread."""
        sock = socket.socket()
        sock.settimeout(30)
        if buffer_bytes is not None:  # has to be said before connecting
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def send(
        self, body: dict[str, Any], token: str = TOKEN, buffer_bytes: int | None = None
    ) -> socket.socket:
        """A connection on which the request has been sent, its answer unread."""
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        sock = self.connect(buffer_bytes)
        sock.sendall(head.encode() + data)
        return sock


def server_after(preparation: str) -> tuple[str, ...]:
    """The command that runs Python statements and then, in the same process, the server."""
    return ("python", "-c", f"{preparation}\nfrom gunicorn.app.wsgiapp import run\nrun()")


def answer_on(sock: socket.socket, method: str = "POST") -> HTTPResponse:
    """The answer that comes on a connection, its head read; reading a torn body raises."""
    response = HTTPResponse(sock, method=method)
    response.begin()
    return response


def chunks(lines: list[str]) -> list[dict[str, Any]]:
    """The JSON documents of a stream's lines."""
    return [json.loads(line[6:]) for line in lines if re.match(r"data: \{", line)]


def text_of(lines: list[str]) -> str:
    """The text that a stream brought."""
    choices = [choice for chunk in chunks(lines) for choice in chunk.get("choices", [])]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts services with settings of their own, by variable; stops them when the test ends."""
    running: list[Service] = []

    def start_one(**environ: Any) -> Service:
        texts = {name: str(value) for name, value in environ.items()}
        running.append(Service(tmp_path / f"log{len(running)}", **texts).__enter__())
        return running[-1]

    yield start_one
    for service in running:
        service.__exit__()


def pointed_at(upstream: Upstream) -> dict[str, str]:
    """The variables that send a service's calls to `upstream`."""
    return {
        "ANTHROPIC_API_KEY": ANTHROPIC_KEY,
        "OPENAI_API_KEY": OPENAI_KEY,
        "ANTHROPIC_BASE_URL": upstream.url,
        "OPENAI_BASE_URL": f"{upstream.url}/v1",
    }


@pytest.fixture(scope="session")
def offline_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service that needs no provider."""
    with Service(tmp_path_factory.mktemp("offline") / "log", OFFLINE="1") as service:
        yield service


def serve(
    tmp_path_factory: pytest.TempPathFactory, **environ: Any
) -> Iterator[tuple[Service, Upstream]]:
    """A service with these variables and its upstream: for a file whose tests share one."""
    log = tmp_path_factory.mktemp("service") / "log"
    texts = {name: str(value) for name, value in environ.items()}
    with Upstream() as server, Service(log, **pointed_at(server) | texts) as running:
        yield running, server


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Upstream]]:
    yield from serve(tmp_path_factory)


@pytest.fixture
def service(_shared: tuple[Service, Upstream]) -> Service:
    """A running service with default settings, unless the file says otherwise in `_shared`."""
    return _shared[0]


@pytest.fixture
def provider(_shared: tuple[Service, Upstream]) -> Upstream:
    """The upstream of `service`, without anything left over from another test."""
    server = _shared[1]
    server.replies.clear()
    server.received.clear()
    return server


@pytest.fixture(scope="session")
def node_modules(request: pytest.FixtureRequest) -> Path:
    """A folder from which node finds NODE_PACKAGES; kept between runs."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    name = hashlib.sha256(" ".join(NODE_PACKAGES).encode()).hexdigest()[:8]
    folder = Path(request.config.cache.mkdir(f"node-{name}"))
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # pytest-xdist's processes all come here
        if not (folder / "installed").exists():
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            run = subprocess.run(
                [*command, *NODE_PACKAGES], cwd=folder, capture_output=True, text=True, timeout=180
            )
            if run.returncode:
                pytest.skip(f"npm cannot install its packages: {run.stderr[-200:]}")
            (folder / "installed").touch()
    return folder


@pytest.fixture
def wire() -> Iterator[responses.RequestsMock]:
    """The providers, for the service inside this process: nothing goes out but to these replies."""
    with responses.RequestsMock() as mock:
        yield mock
