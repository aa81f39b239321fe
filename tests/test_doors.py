"""Who may know whom: one rule a door, the imports read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import providers
import schemas
from tests.conftest import ROOT

# A folder of the product, or app.py, and the folders it may know besides itself.
ARROWS = {
    "core": set(),
    "schemas": set(),
    "providers": {"core"},
    "providers/http": {"core", "providers"},
    "chat": {"core", "schemas", "providers", "providers/http"},
    "server": {"core"},
    "reference": {"core", "schemas", "providers"},
    "usage": set(),
    "gunicorn.conf": {"core", "server"},
    "app": {"core", "schemas", "providers", "providers/http", "chat", "reference", "usage"},
}
# A library, or several for one purpose, and the rooms that may know them.
LIBRARIES = {
    ("flask", "werkzeug"): {"app", "reference"},
    ("requests", "urllib3", "http.client"): {"providers/http"},
    ("httpx", "aiohttp"): set(),
    ("gunicorn",): {"server", "gunicorn.conf"},
    ("jsonschema", "fastjsonschema"): {"schemas"},
    ("sqlite3", "redis"): {"chat"},
}
FOLDERS = [name for name in ARROWS if (ROOT / name).is_dir()]


def sources() -> dict[str, Path]:
    """The product's modules by name."""
    paths = [*ROOT.glob("*.py"), *(path for name in FOLDERS for path in ROOT.glob(f"{name}/*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def room_of(module: str) -> str:
    """The folder that a module of ours is in, or its own name at the top."""
    if module == "gunicorn.conf":
        return module
    path = module.replace(".", "/")
    return path if path in FOLDERS else path.rpartition("/")[0] or path


def imports(path: Path) -> set[str]:
    """Every module that a source names, at its top or anywhere inside."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_app_py_and_the_server_s_settings_stand_at_the_top() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"app.py", "gunicorn.conf.py"}


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_knows_the_rooms_it_may_and_no_others(room: str) -> None:
    ours = sources()
    known = {
        room_of(found)
        for module, path in ours.items()
        if room_of(module) == room
        for found in imports(path)
        if found in ours
    }
    assert known - {room} <= ARROWS[room]


@pytest.mark.parametrize("libraries", LIBRARIES, ids=", ".join)
def test_a_library_is_known_where_it_may_be_and_nowhere_else(libraries: tuple[str, ...]) -> None:
    importers = {
        room_of(module)
        for module, path in sources().items()
        if any(f"{found}.".startswith(f"{name}.") for found in imports(path) for name in libraries)
    }
    assert importers <= LIBRARIES[libraries]


def test_only_the_settings_read_the_environment() -> None:
    reading = {
        name
        for name, path in sources().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"))
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert reading == {"core.settings"}
    assert not any("os.environ" in imports(path) for path in sources().values())


def test_only_the_records_write_lines() -> None:
    printing = {
        name
        for name, path in sources().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write")
    }
    assert printing <= {"core.records"}


def test_no_provider_knows_another() -> None:
    names = {"providers.anthropic", "providers.openai", "providers.offline"}
    for name in names:
        assert not imports(sources()[name]) & (names - {name})


def test_there_are_no_circles() -> None:
    known = sources()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        # A module runs its package first, so importing that once more adds nothing.
        outside = {found for found in imports(path) if not name.startswith(f"{found}.")}
        graph[name] = outside & set(known) - {name}
    done: set[str] = set()
    while left := graph.keys() - done:
        free = {name for name in left if graph[name] <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


def test_importing_reads_no_environment_and_prints_nothing() -> None:
    names = ", ".join(name for name in sources() if name != "gunicorn.conf")
    wrong = {"PORT": "no port", "THREADS": "none", "ACCESS_TOKENS": ":::"}  # would stop the start
    run = subprocess.run(
        [sys.executable, "-c", f"import {names}"],
        cwd=ROOT,
        env=wrong,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_model_table_is_the_schema_s_enum() -> None:
    enum = schemas.DOCUMENTS["request"]["properties"]["model"]["enum"]
    assert list(providers.PROVIDER_OF) == enum
