"""The columns of the table: how each gateway is started, and how it wants to be spoken to.

Every gateway gets the same work and an equivalent configuration: two workers where it has
workers, both providers pointed at the mock, a token where it can check one.
"""

import json
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def redis_server(port: int, folder: Path) -> list[str]:
    """The command of a Redis that keeps nothing."""
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return ["redis-server", *options]


class Target:
    """A column. The defaults are those of a gateway with an OpenAI-style endpoint."""

    name = ""
    quick_start = True  # starts in a second or so: its cold start can be measured again and again

    def installed(self) -> bool:
        return True

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
            "PORT": str(place.port),
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
        options = {
            "--bind": f"127.0.0.1:{place.port}",
            "--worker-class": "gthread",
            "--workers": WORKERS,
            "--threads": "1000",
            "--worker-connections": "5000",
            "--keep-alive": "100",
            "--backlog": "512",
            "--pythonpath": str(PROJECT),
        }
        flags = [part for pair in options.items() for part in pair]
        return [str(SCRIPTS / "gunicorn"), *flags, "--no-control-socket", "bench.prototype:app"]

    def directory(self, place: Place) -> Path:
        return place.folder  # not the project's: its gunicorn.conf.py is the service's

    def environment(self, place: Place) -> dict[str, str]:
        return {"UPSTREAM": place.upstream}


class Peer(Target):
    """A gateway that is measured where its program is: named by a variable, or a command."""

    def __init__(self) -> None:
        named = os.environ.get(self.name.upper()) or shutil.which(self.name.lower())
        self.program = Path(named).absolute() if named else Path()

    def installed(self) -> bool:
        return self.program.is_file()

    def configured(self, place: Place, config: object) -> str:
        """The configuration as a file: JSON, which is YAML too."""
        file = place.folder / "config.yaml"
        file.write_text(json.dumps(config))
        return str(file)


class LiteLLM(Peer):
    name = "LiteLLM"
    quick_start = False

    def command(self, place: Place) -> list[str]:
        bases = {"openai": f"{place.upstream}/v1", "anthropic": place.upstream}
        models = []
        for route, model in MODELS.items():
            params = {"model": f"{route}/{model}", "api_key": "bench-key", "api_base": bases[route]}
            models.append({"model_name": model, "litellm_params": params})
        general = {"master_key": f"sk-{TOKEN}"}
        config = self.configured(place, {"model_list": models, "general_settings": general})
        options = ["--config", config, "--host", "127.0.0.1", "--port", str(place.port)]
        return [str(self.program), *options, "--num_workers", WORKERS, "--telemetry", "False"]

    def environment(self, place: Place) -> dict[str, str]:
        return {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}

    def headers(self, route: str, place: Place) -> dict[str, str]:
        return {"authorization": f"Bearer sk-{TOKEN}"}


class Portkey(Peer):
    name = "Portkey"

    def command(self, place: Place) -> list[str]:
        return ["node", str(self.program), f"--port={place.port}", "--headless"]

    def environment(self, place: Place) -> dict[str, str]:
        return {"NODE_ENV": "production"}

    def headers(self, route: str, place: Place) -> dict[str, str]:
        return {
            "authorization": f"Bearer {TOKEN}",
            "x-portkey-provider": route,
            "x-portkey-custom-host": f"{place.upstream}/v1",
        }


class MLflow(Peer):
    name = "MLflow"
    quick_start = False

    def command(self, place: Place) -> list[str]:
        endpoints = []
        for route, model in MODELS.items():
            config = {f"{route}_api_key": "bench-key", f"{route}_api_base": f"{place.upstream}/v1"}
            provider = {"provider": route, "name": model, "config": config}
            endpoints.append({"name": route, "endpoint_type": "llm/v1/chat", "model": provider})
        file = self.configured(place, {"endpoints": endpoints})
        options = ["--config-path", file, "--host", "127.0.0.1", "--port", str(place.port)]
        return [str(self.program), "gateway", "start", *options, "--workers", WORKERS]

    def environment(self, place: Place) -> dict[str, str]:
        return {
            "PATH": f"{self.program.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def path(self, route: str) -> str:
        return f"/gateway/{route}/invocations"

    def end_mark(self, route: str) -> str:
        return '"finish_reason":"stop"'  # it sends no [DONE]

    def body(self, route: str, messages: Messages, stream: bool) -> Mapping[str, object]:
        body = dict(super().body(route, messages, stream))
        del body["model"]  # the endpoint names it
        return body


def everyone() -> list[Target]:
    """The columns of the table, but for the mock itself."""
    return [Service(), Prototype(), LiteLLM(), Portkey(), MLflow()]


def limited() -> list[Target]:
    """The service with limits, in each store that is here."""
    redis = [Limited(IN_REDIS, free_port())] if shutil.which("redis-server") else []
    return [Limited(IN_SQLITE), *redis]
