"""The gateways of others: where their programs are, how they are configured and spoken to."""

import json
import os
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from bench.targets import (
    MODELS,
    TOKEN,
    WORKERS,
    Messages,
    Place,
    Target,
    size_of,
    size_of_packages,
)

TOOLS = {"pip", "setuptools", "wheel"}


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


class InPython(Peer):
    """A peer that is alone in its environment, and slow to start."""

    quick_start = False

    def size(self) -> dict[str, float]:
        folders = self.program.parent.parent.glob("lib/python*/site-packages")
        found = {one.name.lower(): one for one in metadata.distributions(path=[*map(str, folders)])}
        return size_of_packages(found[name] for name in found.keys() - TOOLS)


class LiteLLM(InPython):
    name = "LiteLLM"

    def command(self, place: Place) -> list[str]:
        bases = {"openai": f"{place.upstream}/v1", "anthropic": place.upstream}
        models = []
        for route, model in MODELS.items():
            params = {"model": f"{route}/{model}", "api_key": "bench-key", "api_base": bases[route]}
            models.append({"model_name": model, "litellm_params": params})
        general = {"master_key": f"sk-{TOKEN}"}
        config = self.configured(place, {"model_list": models, "general_settings": general})
        options = f"--host 127.0.0.1 --port {place.port} --num_workers {WORKERS} --telemetry False"
        return [str(self.program), "--config", config, *options.split()]

    def environment(self, place: Place) -> dict[str, str]:
        return {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}

    def headers(self, route: str, place: Place) -> dict[str, str]:
        return {"authorization": f"Bearer sk-{TOKEN}"}


class Portkey(Peer):
    name = "Portkey"

    def size(self) -> dict[str, float]:
        root = next(folder for folder in self.program.parents if folder.name == "node_modules")
        patterns = ("node_modules/*/package.json", "node_modules/@*/*/package.json")
        packages = [file for pattern in patterns for file in root.parent.rglob(pattern)]
        return size_of(root.rglob("*"), len(packages))

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


class MLflow(InPython):
    name = "MLflow"

    def command(self, place: Place) -> list[str]:
        endpoints = []
        for route, model in MODELS.items():
            config = {f"{route}_api_key": "bench-key", f"{route}_api_base": f"{place.upstream}/v1"}
            provider = {"provider": route, "name": model, "config": config}
            endpoints.append({"name": route, "endpoint_type": "llm/v1/chat", "model": provider})
        file = self.configured(place, {"endpoints": endpoints})
        options = f"--host 127.0.0.1 --port {place.port} --workers {WORKERS}".split()
        return [str(self.program), "gateway", "start", "--config-path", file, *options]

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
