"""The columns of the table: how each gateway is started, and how it wants to be spoken to.

Every gateway gets the same work and an equivalent configuration: two workers where it has
workers, both providers pointed at the mock, a token where it can check one.
"""

import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-6"}
NATIVE_PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
TOKEN = "bench-token"
WORKERS = "2"
SERVICE = "this service"
IN_SQLITE, IN_REDIS = "limits in SQLite", "limits in Redis"
# Nothing is refused by these: they are counted, which is what costs.
LIMITS = "caller * 1000000000 calls/minute; brand * 1000000000000 tokens/day"

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Place:
    """Where one start of a gateway happens: its port, the mock's URL, a folder of its own."""

    port: int
    upstream: str
    folder: Path


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def redis_server(port: int, folder: Path) -> list[str]:
    """The command of a Redis that keeps nothing."""
    options = f"--bind 127.0.0.1 --port {port} --save".split()
    return ["redis-server", *options, "", "--dir", str(folder)]


def size_of(files: Iterable[Path], packages: int) -> dict[str, float]:
    mib = sum(file.stat().st_size for file in files if file.is_file()) / 1024 / 1024
    return {"installed MiB": mib, "packages": packages}


def size_of_packages(distributions: Iterable[metadata.Distribution]) -> dict[str, float]:
    packages = list(distributions)
    files = (Path(str(file.locate())) for package in packages for file in package.files or [])
    return size_of(files, len(packages))


class Target:
    """A column. The defaults are those of a gateway with an OpenAI-style endpoint."""

    name = ""
    quick_start = True  # starts in a second or so: its cold start can be measured again and again

    def installed(self) -> bool:
        return True

    def size(self) -> dict[str, float]:
        """What is installed for it on the disk; nothing where that tells nothing."""
        return {}

    def command(self, place: Place) -> list[str]:
        raise NotImplementedError

    def environment(self, place: Place) -> dict[str, str]:
        return {}

    def beside(self, place: Place) -> list[str]:
        """The command of a server that it needs beside it, if any."""
        return []

    def directory(self, place: Place) -> Path:
        return place.folder

    def path(self, route: str) -> str:
        return "/v1/chat/completions"

    def headers(self, route: str, place: Place) -> dict[str, str]:
        return {"authorization": f"Bearer {TOKEN}"}

    def end_mark(self, route: str) -> str:
        """What tells that a stream came to its end."""
        return "data: [DONE]"

    def body(self, route: str, messages: Messages, stream: bool) -> Mapping[str, object]:
        return {
            "model": MODELS[route],
            "messages": messages,
            "temperature": 0.7,
            "max_tokens": 256,
            "stream": stream,
        }


class Direct(Target):
    """The mock itself, spoken to in each provider's own form."""

    name = "direct"

    def command(self, place: Place) -> list[str]:
        return [sys.executable, "-m", "bench.upstream", "--port", str(place.port)]

    def directory(self, place: Place) -> Path:
        return PROJECT

    def path(self, route: str) -> str:
        return NATIVE_PATHS[route]

    def end_mark(self, route: str) -> str:
        return "event: message_stop" if route == "anthropic" else super().end_mark(route)

    def body(self, route: str, messages: Messages, stream: bool) -> Mapping[str, object]:
        body = dict(super().body(route, messages, stream))
        if route == "anthropic" and messages[0]["role"] == "system":
            body |= {"system": messages[0]["content"], "messages": messages[1:]}
        return body


class Service(Target):
    name = SERVICE

    def size(self) -> dict[str, float]:
        """Of what requirements.txt pins, which is all that comes along."""
        lines = (PROJECT / "requirements.txt").read_text().splitlines()
        names = [line.partition("==")[0] for line in lines if "==" in line and line[0] not in "# "]
        installed = {one.name.lower(): one for one in metadata.distributions()}
        # A line may be for other versions of Python only.
        return size_of_packages(installed[name] for name in names if name in installed)

    def command(self, place: Place) -> list[str]:
        return [str(SCRIPTS / "gunicorn"), "--bind", f"127.0.0.1:{place.port}"]

    def directory(self, place: Place) -> Path:
        return PROJECT

    def environment(self, place: Place) -> dict[str, str]:
        return {
            "ACCESS_TOKENS": f"bench:{TOKEN}",
            "ANTHROPIC_API_KEY": "bench-key-a",
            "OPENAI_API_KEY": "bench-key-o",
            "ANTHROPIC_BASE_URL": place.upstream,
            "OPENAI_BASE_URL": f"{place.upstream}/v1",
            "WEB_CONCURRENCY": WORKERS,
        }

    def body(self, route: str, messages: Messages, stream: bool) -> Mapping[str, object]:
        own = {"brand_id": "bench", "requested_by": "bench"}
        return {**super().body(route, messages, stream), **own}


class Limited(Service):
    """The service with limits set, so that each call is counted in a store."""

    def __init__(self, name: str, redis_port: int | None = None) -> None:
        self.name = name
        self.redis_port = redis_port

    def environment(self, place: Place) -> dict[str, str]:
        store = {"LIMITS_FILE": str(place.folder / "limits.sqlite3")}
        if self.redis_port:
            store = {"REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0"}
        return {**super().environment(place), "LIMITS": LIMITS, **store}

    def beside(self, place: Place) -> list[str]:
        return redis_server(self.redis_port, place.folder) if self.redis_port else []


class Prototype(Direct):
    """`bench/prototype.py` under plain gthread, with as many workers and threads as the service."""

    name = "prototype"

    def command(self, place: Place) -> list[str]:
        options = f"--bind 127.0.0.1:{place.port} --workers {WORKERS} --worker-class gthread"
        options += " --threads 1000 --worker-connections 5000 --keep-alive 100 --backlog 512"
        gunicorn = [str(SCRIPTS / "gunicorn"), *options.split(), "--no-control-socket"]
        return [*gunicorn, "--pythonpath", str(PROJECT), "bench.prototype:app"]

    def directory(self, place: Place) -> Path:
        return place.folder  # not the project's: its gunicorn.conf.py is the service's

    def environment(self, place: Place) -> dict[str, str]:
        return {"UPSTREAM": place.upstream}


def limited() -> list[Target]:
    """The service with limits, in each store that is here."""
    redis = [Limited(IN_REDIS, free_port())] if shutil.which("redis-server") else []
    return [Limited(IN_SQLITE), *redis]
