"""What a gateway takes on the disk: MiB and packages installed for it."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bench.targets import PROJECT, LiteLLM, MLflow, Portkey, Service, Target

TOOLS = {"pip", "setuptools", "wheel"}
MIB = 1024 * 1024


def footprint(target: Target) -> dict[str, float]:
    """The target's footprint; empty where there is nothing to install."""
    if isinstance(target, Service):  # requirements.txt pins all that comes along
        lines = (PROJECT / "requirements.txt").read_text().splitlines()
        names = [line.partition("==")[0] for line in lines if "==" in line and line[0] not in "# "]
        installed = {one.name.lower(): one for one in metadata.distributions()}
        # A line may be for other versions of Python only.
        return _of_distributions(installed[name] for name in names if name in installed)
    if isinstance(target, (LiteLLM, MLflow)):  # alone in its environment
        folders = target.program.parent.parent.glob("lib/python*/site-packages")
        found = {one.name.lower(): one for one in metadata.distributions(path=map(str, folders))}
        return _of_distributions(found[name] for name in found.keys() - TOOLS)
    if isinstance(target, Portkey):
        root = next(folder for folder in target.program.parents if folder.name == "node_modules")
        patterns = ("node_modules/*/package.json", "node_modules/@*/*/package.json")
        packages = [file for pattern in patterns for file in root.parent.rglob(pattern)]
        return _figures(root.rglob("*"), len(packages))
    return {}


def _of_distributions(distributions: Iterable[metadata.Distribution]) -> dict[str, float]:
    packages = list(distributions)
    files = (Path(str(file.locate())) for package in packages for file in package.files or [])
    return _figures(files, len(packages))


def _figures(files: Iterable[Path], packages: int) -> dict[str, float]:
    mib = sum(file.stat().st_size for file in files if file.is_file()) / MIB
    return {"installed MiB": mib, "packages": packages}
