"""The two commands: what they set up, what .env says to them, and what `bin/serve` prints."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import requests

from tests.conftest import ROOT, Service, ask
from tests.upstream import Upstream

NOT_COPIED = {".env", ".git", ".venv", "tests", "bench"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that the service is."""
    made = tmp_path / "a folder"
    made.mkdir()
    for path in ROOT.iterdir():
        if path.is_dir() and path.name not in NOT_COPIED:
            (made / path.name).symlink_to(path)
        elif path.is_file() and path.name not in NOT_COPIED:
            shutil.copy(path, made)
    (made / ".venv").symlink_to(sys.prefix)
    return made


class Local(Service):
    """A start in another folder, with nothing in the environment but ports and `environ`."""

    def __init__(self, folder: Path, *command: str, **environ: str) -> None:
        super().__init__(folder.parent / "log", *command)
        self.folder = folder
        ports = {"PORT": str(self.port), "FLASK_RUN_PORT": str(self.port)}
        self._environ = {"PATH": os.environ["PATH"], "WEB_CONCURRENCY": "1", **ports, **environ}

    def pasted(self, option: str = "", **environ: str) -> str:
        """What the printed curl says, with or without -N, pasted into a shell."""
        self.until(lambda: "-N" in self.log)
        (command,) = re.findall(rf"^curl {option}http.*\n.*\n.*$", self.log, re.MULTILINE)
        return subprocess.run(
            ["sh", "-c", command], env=self._environ | environ, capture_output=True, check=True
        ).stdout.decode()


@pytest.fixture
def start_in(folder: Path) -> Iterator[Callable[..., Local]]:
    """Starts a command in `folder`; stops it when the test ends."""
    running = []

    def start_one(*command: str, **environ: str) -> Local:
        running.append(Local(folder, *command, **environ))
        running[-1].__enter__()
        return running[-1]

    yield start_one
    for service in running:
        service.__exit__()


def ended(folder: Path, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a command in `folder` that must fail left behind."""
    return subprocess.run(
        [folder / command],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# The file .env.

COMMANDS = [("bin/serve",), ("gunicorn",), ("flask", "run")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_env_file_counts_for_every_way_to_start_and_the_environment_wins(
    command: tuple[str, ...], folder: Path, start_in: Callable[..., Local]
) -> None:
    lines = (
        "\ufeff# Settings",
        'export ACCESS_TOKENS = "me:c2VjcmV0MTI=" # who may call',
        "MAX_BODY_BYTES=2000",
        "PORT=1",
        "OFFLINE='1'",
        "ACCES_TOKENS=x:y",
    )
    (folder / ".env").write_bytes("\r\n".join(lines).encode())
    service = start_in(*command, MAX_BODY_BYTES="3000")
    assert service.post(ask(), token="c2VjcmV0MTI=").status_code == 200
    assert service.post(ask(text="x" * 2500), token="c2VjcmV0MTI=").status_code == 200
    assert service.post(ask(text="x" * 3000), token="c2VjcmV0MTI=").status_code == 413
    assert service.log.count("ACCES_TOKENS") == 1


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_line_of_the_env_file_that_is_not_understood_stops_every_start(
    command: tuple[str, ...], folder: Path, start_in: Callable[..., Local]
) -> None:
    (folder / ".env").write_text("OFFLINE=1\nACCESS_TOKENS: me:secret\n")
    service = start_in(*command)
    assert service.process.returncode == 1
    told = [line for line in service.log.splitlines() if not line.startswith("python-dotenv")]
    assert told == [".env is wrong at line 2: it must be NAME=value"]


# What bin/serve prints.

HASHED = f"me:sha256={sha256(b'my-token').hexdigest()}"


@pytest.mark.parametrize(
    ("access_tokens", "token"),
    [
        ("", ""),
        ("me:it's $HOME", "it's $HOME"),
        (f"bound:other:b1|b2,{HASHED},me:plain", "plain"),
        ("me:my-token:it's|b2", "my-token"),
    ],
)
def test_what_is_printed_works_as_pasted(
    access_tokens: str, token: str, start_in: Callable[..., Local]
) -> None:
    service = start_in("bin/serve", ACCESS_TOKENS=access_tokens)
    whole = json.loads(service.pasted())
    assert "Hello" in whole["choices"][0]["message"]["content"]
    assert service.pasted("-N ").endswith("data: [DONE]\n\n")
    (told,) = re.findall(r"/#token=(\S+)$", service.log, re.MULTILINE)
    assert requests.utils.unquote(told) == (token or requests.utils.unquote(told))
    assert service.post(ask(), token=requests.utils.unquote(told)).status_code != 401


@pytest.mark.parametrize("access_tokens", [HASHED, f"{HASHED}:b1"])
def test_where_only_hashes_are_set_the_token_is_taken_from_the_shell(
    access_tokens: str, start_in: Callable[..., Local]
) -> None:
    service = start_in("bin/serve", ACCESS_TOKENS=access_tokens)
    assert "Hello" in service.pasted(ACCESS_TOKEN="my-token")
    assert "ACCESS_TOKENS has only hashes" in service.log
    assert "#token=" not in service.log


def test_with_an_openai_key_alone_a_model_of_openai_s_is_asked(
    start_in: Callable[..., Local], upstream: Upstream
) -> None:
    key = {"OPENAI_API_KEY": "sk-1", "OPENAI_BASE_URL": f"{upstream.url}/v1"}
    service = start_in("bin/serve", **key)
    assert json.loads(service.pasted())["choices"]
    assert len(upstream.received) == 1


def test_a_taken_port_is_one_line_and_no_invitation(folder: Path, tmp_path: Path) -> None:
    with Service(tmp_path / "other", OFFLINE="1") as other:
        done = ended(folder, "bin/serve", PORT=str(other.port))
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(f"PORT {other.port} cannot be used: Address already in use")


@pytest.mark.parametrize("setting", ["THREADS=many", "MODEL_ALIASES=no-such-model=x"])
def test_a_wrong_setting_is_one_line_and_no_invitation(setting: str, folder: Path) -> None:
    name, _, value = setting.partition("=")
    done = ended(folder, "bin/serve", **{name: value})
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(f"{name} is wrong")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(stop: signal.Signals, start_in: Callable[..., Local]) -> None:
    service = start_in("bin/serve")
    pids = service.worker_pids()
    service.process.send_signal(stop)
    assert service.process.wait(10) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "Traceback" not in service.log


# The set-up.

PINS = "flask==9.9.9\n    --hash=sha256:0\nnot-here==1.0 ; python_version < '3'\n"


@pytest.fixture
def own_environment(folder: Path) -> Path:
    """`folder` with an environment of its own, which sees the packages of this one."""
    (folder / ".venv").unlink()
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True, timeout=30
    )
    (packages,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (here,) = {path for path in sys.path if path.endswith("site-packages")}
    (packages / "these.pth").write_text(here)
    program = folder / ".venv" / "bin" / "gunicorn"
    program.write_text(f'#!/bin/sh\n\'\'\'exec\' "{folder}/.venv/bin/python" "$0" "$@"\n')
    return folder


def set_up(folder: Path) -> str:
    """What bin/setup says when it may not make an environment; empty if it need not."""
    stub = folder / "python"
    stub.write_text('#!/bin/sh\n[ "$2" != venv ]\n')
    stub.chmod(0o755)
    done = ended(folder, "bin/setup", PYTHON=str(stub))
    assert bool(done.stderr) == bool(done.returncode)
    return done.stderr


def test_an_environment_that_has_all_is_used_as_it_is(own_environment: Path) -> None:
    assert set_up(own_environment) == ""


def test_a_link_to_an_environment_that_has_all_is_used_as_it_is(folder: Path) -> None:
    assert set_up(folder) == ""


def test_a_link_to_an_environment_that_has_not_all_is_left_alone(folder: Path) -> None:
    (folder / "requirements.txt").write_text(PINS)
    assert ".venv is a link" in set_up(folder)
    assert (folder / ".venv").is_symlink()


def test_a_moved_folder_gets_a_new_environment(own_environment: Path) -> None:
    moved = own_environment.rename(own_environment.with_name("moved"))
    assert "Installing requirements.txt" in set_up(moved)


def test_a_copied_folder_gets_a_new_environment(own_environment: Path) -> None:
    copy = own_environment.with_name("copy")
    shutil.copytree(own_environment, copy, symlinks=True)
    assert "Installing requirements.txt" in set_up(copy)


def test_another_pin_gets_a_new_environment(own_environment: Path) -> None:
    (own_environment / "requirements.txt").write_text(PINS)
    assert "Installing requirements.txt" in set_up(own_environment)


def test_a_python_that_is_gone_gets_a_new_environment(own_environment: Path) -> None:
    for name in (own_environment / ".venv" / "bin").glob("python*"):
        name.unlink()
        name.symlink_to("/no/such/python")
    assert "Installing requirements.txt" in set_up(own_environment)


def test_a_python_of_another_version_gets_a_new_environment(own_environment: Path) -> None:
    (packages,) = (own_environment / ".venv" / "lib").glob("python*")
    packages.rename(packages.with_name("python3.10"))
    assert "Installing requirements.txt" in set_up(own_environment)


def test_all_that_is_pinned_to_run_comes_with_hashes() -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.txt").read_text())
    pins = [entry for entry in entries if not entry.startswith("#")]
    assert len(pins) > 15
    assert all(
        re.match(r"[\w.-]+==\S+( ; .+)? \\\n( +--hash=sha256:\w{64}( \\)?\n?)+$", pin)
        for pin in pins
    )
    wanted = re.findall(r"^[\w.-]+==\S+", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert {pin.split()[0] for pin in pins} >= set(wanted)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout")
def test_git_leaves_the_line_ends_of_schemas_and_scripts_as_they_are() -> None:
    paths = ["schemas/request.json", "bin/serve", "bin/setup", "bin/check", ".ci/run", "app.py"]
    command = ["git", "check-attr", "text", "eol", "--", *paths]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in paths:
        assert f"{path}: text: unset" in told or f"{path}: eol: lf" in told
