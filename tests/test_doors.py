"""Who may know whom: the imports, read from the source."""

import ast
from pathlib import Path

import providers
import schemas
from tests.conftest import ROOT

FOLDERS = ("core", "schemas", "providers", "providers/http", "chat", "server", "reference", "usage")
PRODUCT = ("*.py", *(f"{folder}/*.py" for folder in FOLDERS))
HTTP = {"requests", "urllib3", "http.client", "httpx", "aiohttp"}


def sources() -> dict[str, Path]:
    """The product's modules by name."""
    found = {}
    for path in (path for pattern in PRODUCT for path in ROOT.glob(pattern)):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


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


def importers(*packages: str) -> set[str]:
    """The modules that import one of these packages, or something of them."""
    return {
        name
        for name, path in sources().items()
        if any(f"{found}.".startswith(f"{p}.") for found in imports(path) for p in packages)
    }


def test_only_the_routes_know_flask() -> None:
    assert importers("flask", "werkzeug") == {"app", "reference"}


def test_only_the_transport_knows_http_clients() -> None:
    assert importers("requests") == {"providers.http.exchange", "providers.http.connections"}
    assert all(name.startswith("providers.http.") for name in importers(*HTTP))


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


def test_only_the_schemas_know_the_validators() -> None:
    assert importers("jsonschema", "jsonschema_rs") == {"schemas"}


def test_providers_know_no_more_than_they_may() -> None:
    own = set(sources())
    allowed = {"core", "providers"}
    for name, path in sources().items():
        if name.startswith("providers"):
            known = {found for found in imports(path) if found.split(".")[0] in own}
            assert {found.split(".")[0] for found in known} <= allowed, name
            knows_http = any(found.startswith("providers.http") for found in known)
            assert not knows_http or name.startswith("providers.http"), name


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


def test_the_model_table_is_the_schema_s_enum() -> None:
    enum = schemas.DOCUMENTS["request"]["properties"]["model"]["enum"]
    assert list(providers.PROVIDER_OF) == enum
