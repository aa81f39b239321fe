"""What a gateway takes on the disk: MiB and packages installed for it."""

import re
from collections.abc import Iterable
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
        return _of_distributions(_closure(_requirements(PROJECT / "requirements.txt")))
    if isinstance(target, (LiteLLM, MLflow)) and target.program:
        return _of_environment(target.program)
    if isinstance(target, Portkey) and target.program:
        return _of_node_modules(target.program)
    return None


def _requirements(file: Path) -> list[str]:
    lines = (line.strip() for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def _closure(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The installed distributions that these requirements bring with them."""
    found: dict[str, metadata.Distribution] = {}
    open_ends = list(requirements)
    for requirement in open_ends:
        if "extra ==" in requirement:
            continue
        name = _canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # only for another platform or Python
        open_ends += found[name].requires or []
    return list(found.values())


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
