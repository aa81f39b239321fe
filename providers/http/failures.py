"""What a provider's failures mean: in the service's own kinds, and for another attempt."""

import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from urllib3.exceptions import HTTPError
from urllib3.util.retry import Retry

from core import errors
from core.errors import Kind

MAX_QUOTE_CHARACTERS = 300

RETRYABLE_STATUSES = frozenset({408, 409, 429, *range(500, 600)})
_KINDS_BY_STATUS = {
    401: errors.PROVIDER_AUTH_FAILED,
    402: errors.PROVIDER_AUTH_FAILED,
    403: errors.PROVIDER_AUTH_FAILED,
    404: errors.MODEL_NOT_AVAILABLE,
    408: errors.PROVIDER_TIMEOUT,
    409: errors.PROVIDER_UNAVAILABLE,
    429: errors.PROVIDER_RATE_LIMITED,
}
_KINDS_BY_HUNDRED = {
    4: errors.PROVIDER_REJECTED_REQUEST,
    5: errors.PROVIDER_UNAVAILABLE,
}
# Both vendors' error codes and types: all that an error in mid-stream has to tell it by.
_KINDS_BY_WORD = {
    "insufficient_quota": errors.PROVIDER_RATE_LIMITED,
    "rate_limit_exceeded": errors.PROVIDER_RATE_LIMITED,
    "rate_limit_error": errors.PROVIDER_RATE_LIMITED,
    "model_not_found": errors.MODEL_NOT_AVAILABLE,
    "not_found_error": errors.MODEL_NOT_AVAILABLE,
    "invalid_api_key": errors.PROVIDER_AUTH_FAILED,
    "authentication_error": errors.PROVIDER_AUTH_FAILED,
    "billing_error": errors.PROVIDER_AUTH_FAILED,
    "permission_error": errors.PROVIDER_AUTH_FAILED,
    "context_length_exceeded": errors.PROVIDER_REJECTED_REQUEST,
    "invalid_request_error": errors.PROVIDER_REJECTED_REQUEST,
    "request_too_large": errors.PROVIDER_REJECTED_REQUEST,
    "timeout_error": errors.PROVIDER_TIMEOUT,
    "overloaded_error": errors.PROVIDER_UNAVAILABLE,
    "api_error": errors.PROVIDER_UNAVAILABLE,
    "server_error": errors.PROVIDER_UNAVAILABLE,
}
# Only where the caller can do something about the cause do the provider's own words help.
_QUOTED = (errors.PROVIDER_REJECTED_REQUEST, errors.MODEL_NOT_AVAILABLE)
_KEY_LIKE = re.compile(r"\b(?:sk-|bearer\s)[^\s\"',;]+", re.IGNORECASE)


class Failure(Exception):
    """An attempt that failed: what to tell the caller, and what speaks for another attempt."""

    def __init__(
        self,
        kind: Kind,
        text: str,
        *,
        retryable: bool = False,
        forbidden: bool = False,
        unanswered: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.retryable = retryable and not forbidden
        self.forbidden = forbidden
        self.unanswered = unanswered
        self.wait_s = wait_s


class RetryBudget:
    """The retries that a process may make: one for every ten calls, and one a second.

    Without it, an outage would triple the load on a provider that is down already.
    """

    SAVED_AT_MOST = 10.0

    def __init__(self) -> None:
        self._saved = self.SAVED_AT_MOST
        self._at = time.monotonic()
        self._lock = threading.Lock()

    def note_call(self) -> None:
        with self._lock:
            self._saved = min(self.SAVED_AT_MOST, self._saved + 0.1)

    def take(self) -> bool:
        """Whether a retry may be made; if so, it is taken from the budget."""
        with self._lock:
            now = time.monotonic()
            self._saved = min(self.SAVED_AT_MOST, self._saved + now - self._at)
            self._at = now
            may = self._saved >= 1
            self._saved -= may
            return may


def kind_of_status(status: int) -> Kind:
    """The kind of an answer other than 200."""
    default = _KINDS_BY_HUNDRED.get(status // 100, errors.PROVIDER_BAD_RESPONSE)
    return _KINDS_BY_STATUS.get(status, default)


class ErrorObject:
    """What a provider's error document says; of an unknown shape, it says nothing."""

    def __init__(self, document: Any) -> None:
        error = document.get("error") if isinstance(document, dict) else None
        fields = error if isinstance(error, dict) else {}
        said = (fields.get("code"), fields.get("type"))
        self._words = [word for word in said if isinstance(word, str) and word in _KINDS_BY_WORD]
        self._message = fields.get("message")

    @property
    def kind(self) -> Kind:
        """The kind by its words alone, which is all there is in mid-stream."""
        return _KINDS_BY_WORD[self._words[0]] if self._words else errors.PROVIDER_UNAVAILABLE

    @property
    def is_out_of_credit(self) -> bool:
        return "insufficient_quota" in self._words

    def describe(self, kind: Kind, secrets: Iterable[str | None]) -> str:
        """The end of a sentence: its first word and, where it helps, its message without keys."""
        word = f" ({self._words[0]})" if self._words else ""
        if kind not in _QUOTED or not isinstance(self._message, str) or not self._message:
            return word
        message = self._message
        for secret in filter(None, secrets):
            message = message.replace(secret, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        return f"{word}: {_KEY_LIKE.sub('[key]', line)[:MAX_QUOTE_CHARACTERS]}"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait as the provider says, in OpenAI's milliseconds or the standard's forms."""
    try:
        if "retry-after-ms" in headers:
            wait_s = float(headers["retry-after-ms"]) / 1000
            return min(wait_s, Retry.DEFAULT_RETRY_AFTER_MAX) if wait_s >= 0 else None
        if "Retry-After" in headers:
            return Retry().parse_retry_after(headers["Retry-After"])
    except (HTTPError, ValueError, OverflowError):  # neither form
        pass
    return None
