"""The documents, the example files and the settings say the same."""

import json
import re
from pathlib import Path

import pytest

from core import errors
from core.settings import VARIABLES, Settings
from tests.conftest import Service, ask

ROOT = Path(__file__).parent.parent


def rows_of(document: str) -> list[list[str]]:
    """The cells of the table in this document."""
    text = (ROOT / "docs" / document).read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def default_of(name: str) -> str:
    """A variable's default as the table writes it."""
    value = getattr(Settings(), VARIABLES[name].name)
    if value in (None, (), {}):
        return ""
    if isinstance(value, bool):
        value = int(value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_settings_table_is_that_of_settings_py() -> None:
    rows = rows_of("settings.md")
    assert [row[0].strip("`") for row in rows] == list(VARIABLES)
    for name, default, form, about in rows:
        variable = VARIABLES[name.strip("`")].metadata
        assert default == default_of(name.strip("`"))
        assert form.replace("&#124;", "|") == variable["form"]
        assert about == variable["about"]


def test_the_error_table_is_that_of_errors_py() -> None:
    table = {(status, code.strip("`"), remedy) for status, code, remedy in rows_of("errors.md")}
    assert table == {(str(kind.status), kind.code, kind.remedy) for kind in errors.KINDS}


def test_the_example_file_describes_every_variable_and_only_those() -> None:
    text = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)) == set(VARIABLES)
    for variable in VARIABLES.values():
        assert variable.metadata["form"] in text
        assert variable.metadata["about"] in text


def test_the_example_file_is_a_valid_environment() -> None:
    text = (ROOT / ".env.example").read_text()
    pairs = re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", text, re.MULTILINE)
    assert Settings.read(dict(pairs)) == Settings()


def test_app_json_describes_every_variable_that_heroku_does_not_set() -> None:
    described = json.loads((ROOT / "app.json").read_text())["env"]
    heroku_s_own = {"PORT", "WEB_CONCURRENCY"}
    assert set(VARIABLES) - heroku_s_own <= set(described)
    for name in set(described) & set(VARIABLES) - heroku_s_own:
        assert VARIABLES[name].metadata["form"] in described[name]["description"]


def test_app_json_s_values_are_valid_and_hold_no_secret() -> None:
    described = json.loads((ROOT / "app.json").read_text())["env"]
    values = {n: str(about["value"]) for n, about in described.items() if about.get("value")}
    Settings.read({name: value for name, value in values.items() if name in VARIABLES})
    assert not {"ACCESS_TOKENS", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"} & set(values)


def test_heroku_gets_a_full_answers_limit_below_its_own_30_s() -> None:
    environ = json.loads((ROOT / "app.json").read_text())["env"]
    assert float(environ["TOTAL_TIMEOUT_S"]["value"]) < 30
    values = {name: variable["value"] for name, variable in environ.items() if "value" in variable}
    assert Settings.read(values).total_timeout_s == float(environ["TOTAL_TIMEOUT_S"]["value"])


# What is written in documents is so.

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert link.startswith("http") or (document.parent / link).exists(), link


def test_the_python_of_the_readme_runs_as_it_stands(
    offline_service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("http://localhost:8000", offline_service.url)
    exec(code.replace("YOUR_ACCESS_TOKEN", offline_service.token), {})
    assert capsys.readouterr().out.count("You said: Hello") == 2
    exec(code.replace("YOUR_ACCESS_TOKEN", "wrong"), {})
    assert "Authorization" in capsys.readouterr().out


def test_what_the_readme_says_is_ignored_is_and_what_it_says_is_refused_is(
    offline_service: Service,
) -> None:
    said = (ROOT / "README.md").read_text().split("**Text only.**")[1].split("\n- ")[0]
    refused, ignored = said.split("400.")
    ignored = ignored.split("do nothing here")[0]
    assert "image" in refused
    assert "image" not in ignored
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    messages = [{"role": "user", "content": [image]}]
    assert offline_service.post(ask(messages=messages)).status_code == 400
    names = re.findall(r"`(\w+)`", ignored)
    answer = offline_service.post(ask(**dict.fromkeys(names, 1)))
    assert answer.headers["X-Ignored-Parameters"].split(", ") == names


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 6_500


def test_every_field_of_the_usage_record_is_explained(offline_service: Service) -> None:
    record = offline_service.record_of(offline_service.post(ask()))
    rows = re.findall(r"^\| (`.+?`) \|", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(record) <= explained
