"""The file .env is read as people write it, and as python-dotenv reads it."""

import io
from pathlib import Path

import dotenv
import pytest

from core import env_file

UNDERSTOOD = [
    "",
    "A=1",
    "A=1\nB=2\n",
    "A=1\r\nB=2\r\n",
    "\ufeffA=1",
    "A = 1",
    "  A=1  ",
    "\tA\t=\t1\t",
    "export A=1",
    "export\tA=1",
    "export=1",
    "A=",
    "A=  ",
    "A= # a comment",
    "A=1 # a comment",
    "A=1\t# a comment",
    "A=1#2",
    "A=#1",
    "# A=1\n\n   # B=1\nC=1 #",
    'A="1 2"',
    "A='1 2'",
    'A="1"#2',
    "A='1 # 2' # 3",
    'A="1 # 2"   ',
    'A=""',
    "A=''\nB=1",
    r'A="a\nb\t\"\\"',
    r"A='a\nb\'\\'",
    r"A=a\nb",
    r'A="\d\$"',
    "A='{\n  \"m\": {}\n}'\nB=1",
    'A="1\r\n2"\nB=3',
    "A=it's",
    'A=say "1"',
    "A=a b  c",
    "A==1",
    "A=1=2==",
    "A=me:c2VjcmV0MTI=,you:x:a|b",
    "A=1\nA=2",
    "B=1\nA=${B}2",
    "B=1\nA='${B}'",
    "A=${HOME}",
    "A=${NOT_SET}",
    "A=${NOT_SET:-1}",
    "A=$B",
    "A=1\\\nB=2",
    "a.b-c=1",
    "A=é",
    "A=\x0c1",
]
NOT_UNDERSTOOD = [
    "A",
    "=1",
    "A: 1",
    "A='1",
    'A="1',
    "A='1'2",
    "A='1' '2'",
    "export A",
    "A B=1",
    "<<<",
]


@pytest.mark.parametrize("text", UNDERSTOOD)
def test_what_python_dotenv_understands_means_the_same_here(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": "/home/me", "B": "environment"}
    monkeypatch.setattr("os.environ", environ)
    path = tmp_path / ".env"
    path.write_bytes(text.encode())
    expected = dotenv.main.DotEnv(path, encoding="utf-8", override=False).dict()
    assert env_file.read(path, environ) == dict(expected)


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_a_line_that_is_not_understood_is_refused_by_its_number(text: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"FIRST=1\n# A comment\n{text}\nLAST=1\n")
    with pytest.raises(SystemExit) as stop:
        env_file.read(tmp_path / ".env", {})
    assert stop.value.code == ".env is wrong at line 3: it must be NAME=value"
    assert None in dotenv.dotenv_values(stream=io.StringIO(text)).values() or not (
        dotenv.dotenv_values(stream=io.StringIO(text))
    )


def test_a_file_that_is_not_there_sets_nothing(tmp_path: Path) -> None:
    assert env_file.read(tmp_path / ".env", {}) == {}


@pytest.mark.parametrize("content", [b"A=\xff", "A=1".encode("utf-16")])
def test_a_file_in_another_encoding_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(SystemExit, match=r"^\.env is wrong: it must be encoded in UTF-8$"):
        env_file.read(tmp_path / ".env", {})


def test_a_folder_of_that_name_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    with pytest.raises(SystemExit, match=r"^\.env cannot be read: .+$"):
        env_file.read(tmp_path / ".env", {})
