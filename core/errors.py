"""Every way a call can fail: a code, its HTTP status, and what the caller should do about it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table, as the callers, the reference page and the OpenAPI file see it.

    `final` marks what asking again cannot heal: the answer then tells SDKs not to retry.
    """

    code: str
    status: int
    remedy: str
    final: bool = False


# The whole error table, in the order in which it is shown.
KINDS: list[Kind] = []


def _kind(code: str, status: int, remedy: str, *, final: bool = False) -> Kind:
    KINDS.append(Kind(code, status, remedy, final))
    return KINDS[-1]


INVALID_JSON = _kind("invalid_json", 400, "Send one JSON object, encoded in UTF-8.")
INVALID_INPUT = _kind("invalid_input", 400, "Correct the field that the message names.")
INCOMPLETE_BODY = _kind(
    "incomplete_body", 400, "Send the whole body without long pauses, with the right length."
)
MALFORMED_HTTP = _kind("malformed_http", 400, "Send a well-formed HTTP/1.1 request.")
UNAUTHORIZED = _kind(
    "unauthorized", 401, "Send `Authorization: Bearer TOKEN` with a token this service knows."
)
BRAND_NOT_ALLOWED = _kind(
    "brand_not_allowed", 403, "Use a brand_id your token is bound to, or ask for another token."
)
NOT_FOUND = _kind("not_found", 404, "Check the path: the endpoint is POST /v1/chat/completions.")
METHOD_NOT_ALLOWED = _kind("method_not_allowed", 405, "Use a method that the Allow header names.")
BODY_TOO_LARGE = _kind("body_too_large", 413, "Send a shorter conversation.")
UNSUPPORTED_ENCODING = _kind("unsupported_encoding", 415, "Send the body uncompressed.")
URI_TOO_LONG = _kind("uri_too_long", 414, "Send parameters in the body.")
HEADERS_TOO_LARGE = _kind("headers_too_large", 431, "Send fewer or shorter headers.")
PROVIDER_REJECTED_REQUEST = _kind(
    "provider_rejected_request",
    500,
    "Change the request as the provider's words in the message say.",
    final=True,
)
PROVIDER_AUTH_FAILED = _kind(
    "provider_auth_failed",
    500,
    "Tell the operators: the provider refuses this service's key or account.",
    final=True,
)
PROVIDER_NOT_CONFIGURED = _kind(
    "provider_not_configured",
    500,
    "Tell the operators: this service has no key for the model's provider.",
    final=True,
)
MODEL_NOT_AVAILABLE = _kind(
    "model_not_available",
    500,
    "Use another model, or ask the operators for an alias to its successor.",
    final=True,
)
PROVIDER_RATE_LIMITED = _kind(
    "provider_rate_limited", 500, "Wait for the seconds in Retry-After, then send it again."
)
PROVIDER_UNAVAILABLE = _kind(
    "provider_unavailable", 500, "Send it again later; the provider is down or overloaded."
)
PROVIDER_TIMEOUT = _kind(
    "provider_timeout",
    500,
    "For a full answer: ask for a stream, or for less with max_tokens.",
    final=True,
)
PROVIDER_BAD_RESPONSE = _kind(
    "provider_bad_response",
    500,
    "Send it again; if it stays, report the request id to the operators.",
)
INTERNAL_ERROR = _kind("internal_error", 500, "Report the request id to the operators.")
RATE_LIMITED = _kind(
    "rate_limited", 429, "Wait for the seconds in Retry-After, then send it again."
)
BUDGET_EXHAUSTED = _kind(
    "budget_exhausted", 429, "Wait for the time that the message names, or ask the operators."
)
OVERLOADED = _kind("overloaded", 503, "Wait for the seconds in Retry-After, then send it again.")
STOPPING = _kind("stopping", 503, "Send it again: another process will answer.")


class ServiceError(Exception):
    """A failure that the caller is told of, with its kind and one sentence that is safe to send.

    `message` holds no secret and no stack, and prompt text only where a provider quotes it back.
    `retry_after` is the value of that header; `is_final` tells SDKs not to try again.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        retry_after: str | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry_after = retry_after
        self.is_final = is_final or kind.final

    @property
    def body(self) -> dict[str, str]:
        """The contract's error object."""
        return {"error": self.kind.code, "message": self.message}


def unexpected() -> ServiceError:
    """What the caller is told of a crash; its type and place are in the log alone."""
    return ServiceError(INTERNAL_ERROR, "An unexpected error in this service.")


class CallerLeft(Exception):
    """The caller closed the connection; nobody is there to be told anything."""
