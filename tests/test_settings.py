"""The settings: every variable, its form, and how a wrong one stops the start."""

import dataclasses
import os
import re
import subprocess
import sys
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import certifi
import pytest

from app import create_app
from core.access import Caller
from core.limit import Limit
from core.settings import VARIABLES, Settings
from tests.conftest import ROOT, Service

NAMES = list(VARIABLES)
DEFAULTS = {
    "access_tokens": (),
    "anthropic_api_key": None,
    "openai_api_key": None,
    "anthropic_base_url": "https://api.anthropic.com",
    "openai_base_url": "https://api.openai.com/v1",
    "offline": False,
    "model_aliases": {},
    "default_max_tokens": 4096,
    "max_body_bytes": 8_000_000,
    "port": 8000,
}


def read(**environ: str) -> Settings:
    return Settings.read(environ)


def test_the_names_of_the_vendors_and_of_heroku_are_read() -> None:
    assert {
        "ACCESS_TOKENS",
        "ANTHROPIC_API_KEY",
        "OPENAI_API_KEY",
        "ANTHROPIC_BASE_URL",
        "OPENAI_BASE_URL",
        "OFFLINE",
        "MODEL_ALIASES",
        "PORT",
        "WEB_CONCURRENCY",
    } <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)


def test_an_empty_environment_gives_the_defaults() -> None:
    found = dataclasses.asdict(read())
    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert read(**dict.fromkeys(NAMES, "")) == read()


def test_variables_that_are_not_ours_are_ignored() -> None:
    assert read(HOME="/", HTTPS_PROXY="http://x", access_tokens="a:b") == read()


HASH = sha256(b"1").hexdigest()


def caller(name: str, token: str, *brands: str) -> Caller:
    return Caller(name, sha256(token.encode()).digest(), frozenset(brands) or None)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("ACCESS_TOKENS", "a:1", "access_tokens", (caller("a", "1"),)),
        ("ACCESS_TOKENS", "a:1,b:2", "access_tokens", (caller("a", "1"), caller("b", "2"))),
        ("ACCESS_TOKENS", "a:1, b:2", "access_tokens", (caller("a", "1"), caller("b", "2"))),
        ("ACCESS_TOKENS", "a:1,a:2", "access_tokens", (caller("a", "1"), caller("a", "2"))),
        ("ACCESS_TOKENS", "a:1:x|y", "access_tokens", (caller("a", "1", "x", "y"),)),
        ("ACCESS_TOKENS", "a:1=2/3+4", "access_tokens", (caller("a", "1=2/3+4"),)),
        ("ACCESS_TOKENS", f"a:sha256={HASH}", "access_tokens", (caller("a", "1"),)),
        ("ACCESS_TOKENS", f"a:sha256={HASH.upper()}", "access_tokens", (caller("a", "1"),)),
        ("ACCESS_TOKENS", f"a:sha256={HASH}:x", "access_tokens", (caller("a", "1", "x"),)),
        ("ANTHROPIC_API_KEY", "sk-ant-1", "anthropic_api_key", "sk-ant-1"),
        ("OPENAI_API_KEY", "sk-1", "openai_api_key", "sk-1"),
        ("ANTHROPIC_BASE_URL", "http://localhost:9", "anthropic_base_url", "http://localhost:9"),
        ("ANTHROPIC_BASE_URL", "http://h/p/", "anthropic_base_url", "http://h/p"),
        ("OPENAI_BASE_URL", "https://h/v1/", "openai_base_url", "https://h/v1"),
        ("ANTHROPIC_BASE_URL", "https://h/v1/acme/anthropic", "anthropic_base_url", ANY),
        ("OPENAI_BASE_URL", "https://acme.openai.azure.com/openai/v1", "openai_base_url", ANY),
        ("OPENAI_BASE_URL", "https://openrouter.ai/api/v1", "openai_base_url", ANY),
        ("OPENAI_BASE_URL", "https://g.example/v1beta/openai", "openai_base_url", ANY),
        ("OPENAI_BASE_URL", "http://[::1]:9/v1", "openai_base_url", "http://[::1]:9/v1"),
        ("OFFLINE", "1", "offline", True),
        ("OFFLINE", "0", "offline", False),
        ("MODEL_ALIASES", "gpt-4o=x", "model_aliases", {"gpt-4o": "x"}),
        (
            "MODEL_ALIASES",
            "gpt-4-turbo=gpt-4.1, gpt-3.5-turbo=x",
            "model_aliases",
            {"gpt-4-turbo": "gpt-4.1", "gpt-3.5-turbo": "x"},
        ),
        ("UPSTREAM_FIELDS", "{}", "upstream_fields", {}),
        (
            "UPSTREAM_FIELDS",
            '{"m": {"a": {"model": 1}}}',
            "upstream_fields",
            {"m": {"a": {"model": 1}}},
        ),
        ("UPSTREAM_CA_BUNDLE", certifi.where(), "upstream_ca_bundle", certifi.where()),
        ("DEFAULT_MAX_TOKENS", "1", "default_max_tokens", 1),
        ("DEFAULT_MAX_TOKENS", "128000", "default_max_tokens", 128_000),
        ("MAX_BODY_BYTES", "1000", "max_body_bytes", 1000),
        ("CONNECT_TIMEOUT_S", "0.5", "connect_timeout_s", 0.5),
        ("READ_TIMEOUT_S", "30", "read_timeout_s", 30.0),
        ("LIMITS_FILE", "/tmp/limits", "limits_file", "/tmp/limits"),
        ("REDIS_URL", "rediss://:pw@h:6380/1", "redis_url", "rediss://:pw@h:6380/1"),
        ("REDIS_CA_BUNDLE", "any", "redis_ca_bundle", "any"),
        ("PORT", "65535", "port", 65535),
        ("WEB_CONCURRENCY", "4", "web_concurrency", 4),
        ("THREADS", "5", "threads", 5),
        ("UPSTREAM_PROXY", "http://proxy:3128", "upstream_proxy", "http://proxy:3128"),
    ],
)
def test_a_variable_in_its_form_is_read(name: str, text: str, field: str, value: Any) -> None:
    assert getattr(read(**{name: text}), field) == value


def test_limits_are_read_as_they_are_written() -> None:
    text = "brand loop 60 calls/minute; brand * 2000000 tokens/day;caller  a%3Bb%20c 50.5 USD/month"
    loop, each, odd = read(LIMITS=text).limits
    assert loop == Limit(
        "brand loop 60 calls/minute", "brand", "loop", Decimal(60), "calls", "minute"
    )
    assert (each.scope, each.name, each.unit, each.window) == ("brand", None, "tokens", "day")
    assert (odd.scope, odd.name, odd.number) == ("caller", "a;b c", Decimal("50.5"))
    assert read(LIMITS="brand %2A 1 calls/day").limits[0].name == "*"


LIMITS = [
    "60 calls/minute",
    "team x 60 calls/minute",
    "brand x 60 requests/minute",
    "brand x 60 calls/hour",
    "brand x 60 calls / minute",
    "brand x y 60 calls/minute",
    "brand x -1 calls/minute",
    "brand x 0 calls/minute",
    "brand x 0.00 USD/day",
    "brand x 1.5 calls/minute",
    "brand x 1e6 tokens/day",
    "brand x 1_000 tokens/day",
    "brand x \u0663 tokens/day",
    "brand x% 5 calls/day",
    "brand %FF 5 calls/day",
    "brand x\u200b 5 calls/day",
    "brand x 5 calls/day;",
    "brand x 5 calls/day, brand y 5 calls/day",
    "brand x 5 calls/day; brand x 6 calls/day",
    "brand x 5 calls/day; brand %78 6 calls/day",
    "brand x 5 calls/day\n",
    " ",
]
WRONG = {
    "ACCESS_TOKENS": [
        *("x", ":x", "x:", "a:1,", ",", " ", "a:1:", "a:1:x|", "a:1:x:y", "a:1,b:1", "a\nb:1"),
        *(f"a:sha256:{HASH}", f"a:sha256={HASH[1:]}", "a:sha256=x", f"a:1,b:sha256={HASH}"),
    ],
    "ANTHROPIC_API_KEY": ["two words", "a\n", "é", " "],
    "OPENAI_API_KEY": ["two words", "a\n", "é", "\t"],
    "ANTHROPIC_BASE_URL": [
        *("https://h/v1", "https://h/v1/", "https://h/v1/messages"),
        *("x", "ftp://h", "https://", "//h", "http://h?a=b", "http://h#a"),
    ],
    "OPENAI_BASE_URL": [
        *("localhost:9000", "http://h:x/v1", "http://h:99999/v1", "http://h /v1"),
        *("https://h", "https://h/", "https://h/api", "https://h/v1/chat/completions"),
    ],
    "OFFLINE": ["true", "yes", "2", "-1", "on"],
    "MODEL_ALIASES": ["x", "=x", "x=", "a=b,", "a=b=c", "a b=c", ","],
    "UPSTREAM_FIELDS": [
        *("x", "[]", "null", '{"m": 1}', '{"m": {}, "m": {}}', '{"m": {"a": NaN}}', "[" * 100_000),
        *('{"m": {"model": "n"}}', '{"m": {"messages": []}}', '{"m": {"stream": true}}'),
    ],
    "DEFAULT_MAX_TOKENS": ["0", "-1", "1.5", "x", "128001"],
    "MAX_BODY_BYTES": ["0", "8MB", "999", "-8000000", "1e6"],
    "MAX_ANSWER_BYTES": ["0", "x"],
    "CONNECT_TIMEOUT_S": ["0", "-1", "x", "nan", "inf", "1s"],
    "READ_TIMEOUT_S": ["0", "nan", "inf", "601"],
    "TOTAL_TIMEOUT_S": ["0", "nan", "99999"],
    "STREAM_TIMEOUT_S": ["0", "nan", "-inf"],
    "ARRIVAL_TIMEOUT_S": ["0", "nan", "301"],
    "GRACE_TIMEOUT_S": ["0", "2.5", "x"],
    "UPSTREAM_PROXY": ["proxy:3128", "socks5://h", "x"],
    "UPSTREAM_CA_BUNDLE": ["/not/there.pem", "/", __file__],
    "LIMITS": LIMITS,
    "LIMITS_FILE": ["/not/there/limits.sqlite3", "/tmp"],
    "REDIS_URL": ["http://h", "localhost:6379", "redis:///0", "redis://h:x", "redis://h/a", "x y"],
    "REDIS_CA_BUNDLE": ["/not/there.pem", "none", __file__],
    "PORT": ["0", "65536", "http", "80.5"],
    "WEB_CONCURRENCY": ["0", "two", "65"],
    "THREADS": ["4", "x", "4001"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(n, text) for n, texts in WRONG.items() for text in texts]
)
def test_a_variable_in_a_wrong_form_stops_the_start_and_is_named_but_not_told(
    name: str, text: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        read(**{name: text})
    line = str(stop.value.code)
    assert line.startswith(name)
    assert VARIABLES[name].metadata["form"] in line
    assert "\n" not in line
    assert len(text) < 3 or text not in line
    assert stop.value.__cause__ is None


def test_every_variable_has_a_wrong_form_here() -> None:
    assert set(WRONG) == set(NAMES)


def test_secrets_are_not_in_the_settings_repr() -> None:
    keys = {"ANTHROPIC_API_KEY": "key-1", "OPENAI_API_KEY": "key-2"}
    settings = read(ACCESS_TOKENS="a:token-1", REDIS_URL="redis://:word@host", **keys)
    assert not re.search("token-1|key-1|key-2|word", repr(settings))
    assert sha256(b"token-1").hexdigest() not in repr(settings)


@pytest.mark.parametrize("name", ["ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "UPSTREAM_PROXY"])
@pytest.mark.parametrize("path", ["", "/v1beta"])
def test_user_and_password_in_a_url_are_not_in_the_settings_repr(name: str, path: str) -> None:
    url = f"http://me:secret@host:1{path or '/v1' * (name == 'OPENAI_BASE_URL')}"
    settings = read(**{name: url})
    assert getattr(settings, VARIABLES[name].name) == url
    assert "secret" not in repr(settings)
    assert "host:1" in repr(settings)


def test_an_alias_for_a_model_that_the_contract_does_not_have_stops_the_start() -> None:
    with pytest.raises(SystemExit) as stop:
        create_app(read(MODEL_ALIASES="gpt-4o=x,gpt-5=x"))
    assert str(stop.value.code).startswith("MODEL_ALIASES")
    assert "gpt-4o-mini" in str(stop.value.code)
    create_app(read(MODEL_ALIASES="gpt-4o=gpt-5"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ACCES_TOKENS", "ACCESS_TOKENS"),
        ("ACCESS_TOKEN", "ACCESS_TOKENS"),
        ("access_tokens", "ACCESS_TOKENS"),
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("MODEL_ALIAS", "MODEL_ALIASES"),
        ("READ_TIMEOUT", "READ_TIMEOUT_S"),
    ],
)
def test_a_variable_that_is_almost_ours_is_told_without_its_value(name: str, meant: str) -> None:
    (line,) = [line for line in read(**{name: "secret"}).warnings() if "no setting" in line]
    assert line.startswith(f"{name} ")
    assert meant in line
    assert "secret" not in line


@pytest.mark.parametrize("name", ["HOME", "HTTPS_PROXY", "PATH", "DYNO", "REDIS_TLS_URL", "POST"])
def test_a_variable_that_is_something_else_is_not_told(name: str) -> None:
    assert read(**{name: "x"}).warnings() == read().warnings()


def test_callers_and_their_brands_are_told_without_tokens() -> None:
    tokens = f"team:token-1,bound:token-2:loop|acme,hashed:sha256={HASH},long:token-3:{'b' * 40}"
    told = read(ACCESS_TOKENS=tokens).callers()
    assert "team (any brand), bound (acme, loop), hashed (any brand), long (bbbbbbbb…)" in told
    assert not re.search("token-|" + HASH[:8], told)


def test_what_is_not_set_is_told() -> None:
    everything = {"ACCESS_TOKENS": "a:1", "ANTHROPIC_API_KEY": "x", "OPENAI_API_KEY": "y"}
    assert read(**everything).warnings() == []
    for name in everything:
        (gap,) = read(**{**everything, name: ""}).warnings()
        assert name in gap
    offline = " ".join(read(OFFLINE="1").warnings())
    assert "OFFLINE" in offline
    assert "API_KEY" not in offline


# The start itself.

GOOD = {"ACCESS_TOKENS": "team:token-1", "ANTHROPIC_API_KEY": "key-1", "OPENAI_API_KEY": "key-2"}


def started(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """What a start that must fail left behind."""
    path = Path(sys.executable).parent
    return subprocess.run(
        [path / command[0], *command[1:]],
        cwd=ROOT,
        env={
            **dict.fromkeys(NAMES, ""),
            "PATH": os.environ["PATH"],
            "PORT": "0",
            "WEB_CONCURRENCY": "1",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("command", [["gunicorn"], ["flask", "run", "--port", "0"]], ids=str)
def test_a_wrong_variable_stops_the_real_start_with_one_line(command: list[str]) -> None:
    done = started(command, **GOOD | {"PORT": "8000", "MODEL_ALIASES": "secret-value"})
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).strip().split("\n")
    assert len(lines) == 1
    assert lines[0].startswith("MODEL_ALIASES")
    assert "model=upstream-model" in lines[0]
    assert "secret-value" not in lines[0]


def test_a_real_start_without_keys_serves_and_says_what_is_missing(tmp_path: Path) -> None:
    with Service(tmp_path / "log", ACCESS_TOKENS="") as service:
        service.until(lambda: "OPENAI_API_KEY" in service.log)
        assert service.post({}, token="").status_code == 401
        for name in ("ACCESS_TOKENS", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
            assert len(re.findall(f"{name} is not set", service.log)) == 1


@pytest.mark.parametrize("command", [["gunicorn"], ["flask", "run"]], ids=str)
def test_a_real_start_says_who_may_call(command: list[str], tmp_path: Path) -> None:
    tokens = "team:token-1,other:token-2:brand-a"
    with Service(tmp_path / "log", *command, ACCESS_TOKENS=tokens) as service:
        service.until(lambda: "team (any brand), other (brand-a)" in service.log)
        assert service.log.count("OPENAI_API_KEY is not set") == 1
        assert "token-" not in service.log


@pytest.mark.parametrize("command", [["routes"], ["usage", os.devnull]], ids=str)
def test_a_command_that_serves_nothing_says_nothing_of_it(command: list[str]) -> None:
    done = started(["flask", *command], PORT="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "is not set" not in done.stdout


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_value_in_quotes_that_nobody_took_off_stops_the_start(name: str, quote: str) -> None:
    with pytest.raises(SystemExit) as stop:
        Settings.read({name: f"{quote}me:secret{quote}"})
    assert str(stop.value) == f"{name} is wrong: its value must stand without quotes"
