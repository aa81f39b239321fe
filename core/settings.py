"""Every environment variable of the service: read once, checked at start."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from core.access import Caller

_PRINTABLE = re.compile(r"[\x21-\x7e]+")


# Each parser below takes a variable's text and raises ValueError for what it cannot be.


def _callers(text: str) -> tuple[Caller, ...]:
    callers = []
    for entry in text.split(","):
        name, token, *bound_to = entry.strip(" ").split(":")
        brands = frozenset(bound_to[0].split("|")) if bound_to else None
        if not name or len(bound_to) > 1 or (brands and "" in brands):
            raise ValueError
        if not token.isprintable() or token != token.strip() or not token:
            raise ValueError  # no header could carry it
        callers.append(Caller(name, sha256(token.encode()).digest(), brands))
    if len({caller.token_sha256 for caller in callers}) < len(callers):
        raise ValueError
    return tuple(callers)


def _aliases(text: str) -> dict[str, str]:
    pairs = [_printable(entry.strip(" ")).split("=") for entry in text.split(",")]
    aliases = {_printable(asked): _printable(upstream) for asked, upstream in pairs}
    if len(aliases) < len(pairs):
        raise ValueError
    return aliases


def _printable(text: str) -> str:
    if not _PRINTABLE.fullmatch(text):
        raise ValueError
    return text


def _url(text: str) -> str:
    parts = urlsplit(_printable(text))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError for what is no port number
    return text.rstrip("/")


def _url_without_v1(text: str) -> str:
    if _url(text).endswith("/v1"):
        raise ValueError
    return _url(text)


def _file(text: str) -> str:
    if not os.path.isfile(text):
        raise ValueError
    return text


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _between(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        number = kind(_printable(text))
        if not low <= number <= high:  # NaN is not between anything
            raise ValueError
        return number

    return parse


def _variable(name: str, default: Any, parse: Callable[[str], Any], form: str, about: str) -> Any:
    secret = name.endswith(("_TOKENS", "_KEY"))
    about_it = {"name": name, "parse": parse, "form": form, "about": about}
    return field(default_factory=lambda: default, repr=not secret, metadata=about_it)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The service's settings; each field says its variable, form and purpose in its metadata."""

    access_tokens: tuple[Caller, ...] = _variable(
        "ACCESS_TOKENS",
        (),
        _callers,
        "name:token or name:token:brand-a|brand-b, comma-separated, every token once",
        "Who may call. None set: nobody gets in.",
    )
    anthropic_api_key: str | None = _variable(
        "ANTHROPIC_API_KEY", None, _printable, "a key without spaces", "Key for the claude models."
    )
    openai_api_key: str | None = _variable(
        "OPENAI_API_KEY", None, _printable, "a key without spaces", "Key for the gpt models."
    )
    anthropic_base_url: str = _variable(
        "ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
        _url_without_v1,
        "an http(s) URL without /v1",
        "Where Anthropic's Messages API is.",
    )
    openai_base_url: str = _variable(
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
        _url,
        "an http(s) URL with /v1",
        "Where OpenAI's Chat Completions API is.",
    )
    offline: bool = _variable(
        "OFFLINE", False, _flag, "0 or 1", "1: every model is answered without network, to try out."
    )
    model_aliases: Mapping[str, str] = _variable(
        "MODEL_ALIASES",
        {},
        _aliases,
        "model=upstream-model, comma-separated, every model once",
        "Sends another model name upstream, for models that were shut down.",
    )
    default_max_tokens: int = _variable(
        "DEFAULT_MAX_TOKENS",
        4096,
        _between(int, 1, 128_000),
        "a whole number from 1 to 128000",
        "max_tokens for Anthropic, which requires one, when the caller gives none.",
    )
    max_body_bytes: int = _variable(
        "MAX_BODY_BYTES",
        8_000_000,
        _between(int, 1_000, 100_000_000),
        "a whole number from 1000 to 100000000",
        "Larger request bodies are 413. 8 MB is more text than any of the models reads.",
    )
    max_answer_bytes: int = _variable(
        "MAX_ANSWER_BYTES",
        8_000_000,
        _between(int, 1_000, 100_000_000),
        "a whole number from 1000 to 100000000",
        "Larger provider answers are refused, so that memory stays bounded.",
    )
    connect_timeout_s: float = _variable(
        "CONNECT_TIMEOUT_S",
        4.0,
        _between(float, 0.1, 60),
        "seconds from 0.1 to 60",
        "To connect to a provider, TLS included: three tries still fit into Heroku's 30 s.",
    )
    read_timeout_s: float = _variable(
        "READ_TIMEOUT_S",
        25.0,
        _between(float, 0.1, 600),
        "seconds from 0.1 to 600",
        "How long a stream may be silent: below Heroku's 30 s to the first byte and 55 s after.",
    )
    total_timeout_s: float = _variable(
        "TOTAL_TIMEOUT_S",
        600.0,
        _between(float, 0.1, 3600),
        "seconds from 0.1 to 3600",
        "For a full answer in all, retries included: the vendors' own limit. 28 on Heroku.",
    )
    stream_timeout_s: float = _variable(
        "STREAM_TIMEOUT_S",
        900.0,
        _between(float, 0.1, 7200),
        "seconds from 0.1 to 7200",
        "For a stream in all: the longest answer at 140 tokens a second.",
    )
    arrival_timeout_s: float = _variable(
        "ARRIVAL_TIMEOUT_S",
        15.0,
        _between(float, 0.1, 300),
        "seconds from 0.1 to 300",
        "For a request's headers, then for its body, to arrive: slower callers hold a thread.",
    )
    grace_timeout_s: int = _variable(
        "GRACE_TIMEOUT_S",
        25,
        _between(int, 1, 3600),
        "a whole number of seconds from 1 to 3600",
        "From SIGTERM to exit: below the 30 s after which Heroku kills.",
    )
    upstream_proxy: str | None = _variable(
        "UPSTREAM_PROXY",
        None,
        _url,
        "an http(s) URL",
        "Proxy for all provider calls; HTTPS_PROXY and the like are ignored on purpose.",
    )
    upstream_ca_bundle: str | None = _variable(
        "UPSTREAM_CA_BUNDLE",
        None,
        _file,
        "the path of a PEM file",
        "Certificate authorities for provider calls, instead of certifi's.",
    )
    port: int = _variable(
        "PORT", 8000, _between(int, 1, 65535), "a port number", "Where gunicorn listens."
    )
    web_concurrency: int = _variable(
        "WEB_CONCURRENCY",
        2,
        _between(int, 1, 64),
        "a whole number from 1 to 64",
        "Worker processes: one a core.",
    )
    threads: int = _variable(
        "THREADS",
        1000,
        _between(int, 5, 4000),
        "a whole number from 5 to 4000",
        "Threads a worker. Four in five carry calls; the rest answer health checks and shed load.",
    )

    @property
    def call_slots(self) -> int:
        """How many calls one worker carries at once; more are answered 503."""
        return self.threads * 4 // 5

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings in `environ`; unset and empty variables take their defaults.

        Raises SystemExit with one line that names the variable that is wrong and its form.
        """
        values = {}
        for variable in fields(cls):
            about = variable.metadata
            text = environ.get(about["name"], "")
            try:
                if text:
                    values[variable.name] = about["parse"](text)
            except ValueError:
                # The value itself stays unsaid: it may be a secret.
                raise SystemExit(f"{about['name']} is wrong: it must be {about['form']}") from None
        return cls(**values)

    def gaps(self) -> list[str]:
        """What is not set and will be missed, one sentence each."""
        missing = []
        if not self.access_tokens:
            missing.append("ACCESS_TOKENS is not set: every call will be refused with 401.")
        if self.offline:
            missing.append("OFFLINE=1: no provider is called, every answer is made up here.")
        elif not self.anthropic_api_key:
            missing.append("ANTHROPIC_API_KEY is not set: calls for claude models will fail.")
        if not self.offline and not self.openai_api_key:
            missing.append("OPENAI_API_KEY is not set: calls for gpt models will fail.")
        return missing


def load() -> Settings:
    """The settings of this process."""
    return Settings.read(os.environ)
