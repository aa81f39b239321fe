"""What a gateway takes on the disk: MiB and packages installed for it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.targets import PROJECT, LiteLLM, MLflow, Portkey, Service, Target

TOOLS = {"pip", "setuptools", "wheel"}
MIB = 1024 * 1024


@dataclass(frozen=True)
class Footprint:
    mib: float
    packages: int


def footprint(target: Target) -> Footprint | None:
    """The target's footprint; None where there is nothing to install."""
    if isinstance(target, Service):
        return _of_distributions(_pinned(PROJECT / "requirements.txt"))
    if isinstance(target, (LiteLLM, MLflow)) and target.program:
        return _of_environment(target.program)
    if isinstance(target, Portkey) and target.program:
        return _of_node_modules(target.program)
    return None


def _pinned(file: Path) -> Iterator[metadata.Distribution]:
    """What requirements.txt names; it pins all that comes along."""
    for line in file.read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            yield metadata.distribution(line.partition("==")[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _of_distributions(distributions: Iterable[metadata.Distribution]) -> Footprint:
    packages = list(distributions)
    files = (Path(str(file.locate())) for package in packages for file in package.files or [])
    return Footprint(_mib(files), len(packages))


def _of_environment(program: Path) -> Footprint:
    """All of the virtual environment that holds the program, but for its tools."""
    folders = [str(path) for path in program.parent.parent.glob("lib/python*/site-packages")]
    packages = {
        _canonical(package.name): package for package in metadata.distributions(path=folders)
    }
    return _of_distributions(packages[name] for name in packages.keys() - TOOLS)


def _of_node_modules(program: Path) -> Footprint:
    root = next(folder for folder in program.parents if folder.name == "node_modules")
    own_files = "*/package.json", "@*/*/package.json"
    packages = sum(1 for pattern in own_files for _ in root.rglob(f"node_modules/{pattern}"))
    packages += sum(1 for pattern in own_files for _ in root.glob(pattern))
    return Footprint(_mib(root.rglob("*")), packages)


def _mib(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file()) / MIB
