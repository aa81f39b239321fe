"""Every environment variable of the service: read once, checked at start.

A variable is one entry of Settings: it has the field's name in capitals, and its form says what
the parser takes. What the environment does not set may stand in the file .env beside app.py.
"""

import difflib
import os
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from core import env_file, forms
from core.access import Caller
from core.forms import Form, seconds, whole
from core.limit import Limit

ENV_FILE = Path(__file__).parent.parent / ".env"
# As alike as OPENAI_KEY is to OPENAI_API_KEY; Heroku's own REDIS_TLS_URL is less like REDIS_URL.
ALIKE = 0.83


def _setting(default: Any, form: Form, about: str, secret: bool = False) -> Any:
    metadata = {"form": form.words, "parse": form.parse, "about": about}
    return field(default_factory=lambda: default, repr=not secret, metadata=metadata)


# One entry is a line or two.
# fmt: off
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The service's settings; VARIABLES has each by its variable's name."""

    access_tokens: tuple[Caller, ...] = _setting(
        (), forms.CALLERS, "Who may call. None set: nobody gets in.", secret=True)
    anthropic_api_key: str | None = _setting(
        None, forms.KEY, "Key for the claude models.", secret=True)
    openai_api_key: str | None = _setting(
        None, forms.KEY, "Key for the gpt models.", secret=True)
    anthropic_base_url: str = _setting(
        "https://api.anthropic.com", forms.BASE_URL, "Where Anthropic's Messages API is.")
    openai_base_url: str = _setting(
        "https://api.openai.com/v1", forms.BASE_URL_V1, "Where OpenAI's Chat Completions API is.")
    offline: bool = _setting(
        False, forms.FLAG, "1: every model is answered without network, to try out.")
    model_aliases: Mapping[str, str] = _setting(
        {}, forms.ALIASES, "Sends another model name upstream, for models that were shut down.")
    upstream_fields: Mapping[str, Mapping[str, Any]] = _setting(
        {}, forms.UPSTREAM_FIELDS, "Fields that are added to the requests to an upstream model.")
    default_max_tokens: int = _setting(
        4096, whole(1, 128_000),
        "max_tokens for Anthropic, which requires one, when the caller gives none.")
    max_body_bytes: int = _setting(
        8_000_000, whole(1000, 100_000_000),
        "Larger request bodies are 413. 8 MB is more text than any of the models reads.")
    max_answer_bytes: int = _setting(
        8_000_000, whole(1000, 100_000_000),
        "Larger provider answers are refused, so that memory stays bounded.")
    connect_timeout_s: float = _setting(
        4.0, seconds(0.1, 60),
        "To connect to a provider, TLS included: three tries still fit into Heroku's 30 s.")
    read_timeout_s: float = _setting(
        25.0, seconds(0.1, 600),
        "How long a stream may be silent: below Heroku's 30 s to the first byte and 55 s after.")
    total_timeout_s: float = _setting(
        600.0, seconds(0.1, 3600),
        "For a full answer in all, retries included: the vendors' own limit. 28 on Heroku.")
    stream_timeout_s: float = _setting(
        900.0, seconds(0.1, 7200),
        "For a stream in all: the longest answer at 140 tokens a second.")
    arrival_timeout_s: float = _setting(
        15.0, seconds(0.1, 300),
        "For a request's headers, then its body, to arrive, and for each write to be taken.")
    grace_timeout_s: int = _setting(
        25, whole(1, 3600, "a whole number of seconds"),
        "From SIGTERM to exit: below the 30 s after which Heroku kills.")
    upstream_proxy: str | None = _setting(
        None, forms.PROXY_URL,
        "Proxy for all provider calls; HTTPS_PROXY and the like are ignored on purpose.")
    upstream_ca_bundle: str | None = _setting(
        None, forms.CA_BUNDLE, "Certificate authorities for provider calls, instead of certifi's.")
    limits: tuple[Limit, ...] = _setting(
        (), forms.LIMITS,
        "How much a brand or caller may use (docs/limits.md). None set: no limits.")
    limits_file: str = _setting(
        "limits.sqlite3", forms.NEW_FILE,
        "Where the workers of one machine count for LIMITS, if there is no REDIS_URL.")
    redis_url: str | None = _setting(
        None, forms.REDIS_URL, "Where several machines count together.", secret=True)
    redis_ca_bundle: str | None = _setting(
        None, forms.CA_BUNDLE_OR_ANY,
        "Certificate authorities for rediss://, instead of the system's; any: for Heroku's own.")
    port: int = _setting(
        8000, whole(1, 65535), "Where gunicorn listens.")
    web_concurrency: int = _setting(
        2, whole(1, 64), "Worker processes: one a core.")
    threads: int = _setting(
        1000, whole(5, 4000),
        "Threads a worker. Four in five carry calls; the rest answer health checks and shed load.")

    misspelt: tuple[str, ...] = field(default=(), compare=False)
    """Variables that are set and look like one of these, but are none."""
# fmt: on

    @property
    def call_slots(self) -> int:
        """How many calls one worker carries at once; more are answered 503."""
        return self.threads * 4 // 5

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings in `environ`; unset and empty variables take their defaults.

        Raises SystemExit with one line that names the variable that is wrong and its form.
        """
        values: dict[str, Any] = {"misspelt": tuple(filter(_meant, environ))}
        for name, variable in VARIABLES.items():
            if environ.get(name, "").startswith(("'", '"')):
                # docker run --env-file keeps them, and no key or token begins with one.
                raise SystemExit(f"{name} is wrong: its value must stand without quotes")
            try:
                if text := environ.get(name):
                    values[variable.name] = variable.metadata["parse"](text)
            except (LookupError, ValueError, RecursionError):
                # The value itself stays unsaid: it may be a secret.
                form = variable.metadata["form"]
                raise SystemExit(f"{name} is wrong: it must be {form}") from None
        return cls(**values)

    def require_models(self, known: Collection[str]) -> None:
        """Raises SystemExit with one line if an alias is for a model that is not `known`."""
        if not self.model_aliases.keys() <= set(known):
            raise SystemExit(f"MODEL_ALIASES is wrong: a model must be one of {', '.join(known)}")

    def warnings(self) -> list[str]:
        """What is not set and will be missed, or is set in vain: one sentence each."""
        found = [f"{name} is no setting: is {_meant(name)} meant?" for name in self.misspelt]
        if not self.access_tokens:
            found.append("ACCESS_TOKENS is not set: every call will be refused with 401.")
        if self.offline:
            found.append("OFFLINE=1: no provider is called, every answer is made up here.")
        elif not self.anthropic_api_key:
            found.append("ANTHROPIC_API_KEY is not set: calls for claude models will fail.")
        if not self.offline and not self.openai_api_key:
            found.append("OPENAI_API_KEY is not set: calls for gpt models will fail.")
        return found

    def callers(self) -> str:
        """Who may call and for which brands, in one line without tokens."""
        return f"Callers: {', '.join(map(str, self.access_tokens)) or 'none'}."


VARIABLES: dict[str, Field[Any]] = {
    variable.name.upper(): variable for variable in fields(Settings) if variable.metadata
}


def _meant(name: str) -> str | None:
    """The variable that `name` was probably to be; None if it is one, or not like any."""
    if name in VARIABLES:
        return None
    return next(iter(difflib.get_close_matches(name.upper(), VARIABLES, 1, ALIKE)), None)


def environment() -> dict[str, str]:
    """What the environment sets and, where that does not, the file .env."""
    return {**env_file.read(ENV_FILE, os.environ), **os.environ}


def set_defaults(**texts: str) -> None:
    """Set in this process's environment what neither it nor the file .env sets."""
    given = environment()
    os.environ |= {name: text for name, text in texts.items() if not given.get(name)}


def load() -> Settings:
    """The settings of this process."""
    return Settings.read(environment())
