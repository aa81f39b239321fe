"""What a provider's error says: whose business it is, in the service's own kinds, and in words."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from core import errors
from core.errors import Kind
from providers.http.failures import Failure
from providers.http.retries import retry_after_s

MAX_QUOTE_CHARACTERS = 300
RETRYABLE_STATUSES = frozenset({408, 409, 429, *range(500, 600)})
# A parameter that a server does not know is a 422 where the server is made with FastAPI.
PARAMETER_STATUSES = (400, 422)

_KINDS_BY_STATUS = {
    401: errors.PROVIDER_AUTH_FAILED,
    402: errors.PROVIDER_AUTH_FAILED,
    403: errors.PROVIDER_AUTH_FAILED,
    404: errors.MODEL_NOT_AVAILABLE,
    408: errors.PROVIDER_TIMEOUT,
    409: errors.PROVIDER_UNAVAILABLE,
    429: errors.PROVIDER_RATE_LIMITED,
}
_KINDS_BY_HUNDRED = {4: errors.PROVIDER_REJECTED_REQUEST, 5: errors.PROVIDER_UNAVAILABLE}
# Error codes and types, without "_" and a last "error", and the status that they stand for:
# the more telling one of an error's words comes first.
_STATUS_OF_WORD = {
    word: status
    for status, words in {
        402: "insufficientquota billing billinghardlimitreached billingnotactive paymentrequired "
        "insufficientcredits insufficientbalance creditlimitreached spendlimitreached",
        404: "modelnotfound deploymentnotfound modelnotavailable modelnotsupported invalidmodel "
        "unsupportedmodel modeldecommissioned modeldeprecated",
        422: "contentfilter contentpolicyviolation contentpolicy moderation moderationblocked",
        429: "ratelimitexceeded ratelimit ratelimited toomanyrequests resourceexhausted slowdown",
        401: "invalidapikey authentication unauthorized unauthenticated",
        403: "permission permissiondenied forbidden unsupportedcountryregionterritory",
        400: "contextlengthexceeded requesttoolarge badrequest invalidargument unprocessableentity",
        408: "timeout requesttimeout gatewaytimeout deadlineexceeded",
        529: "overloaded serviceunavailable unavailable enginesoverloaded",
        500: "server internalserver internal api badgateway",
    }.items()
    for word in words.split()
}
# Words that say less than a status does, and count where there is none.
_STATUS_OF_VAGUE_WORD = {"invalidrequest": 400, "notfound": 404}
_ABOUT_MONEY = re.compile(
    r"credit balance|(?:insufficient|not enough|out of|any|more) (?:credits?|balance|funds|quota)"
    r"|(?:usage|spend(?:ing)?|billing|budget|credit)(?: hard)? limit|exceeded your current quota",
    re.IGNORECASE,
)
_ABOUT_INPUT = re.compile(r"\bflagged\b|moderation|content (?:policy|filter)", re.IGNORECASE)
# Only where the caller can do something about the cause do the provider's own words help.
_QUOTED = (errors.PROVIDER_REJECTED_REQUEST, errors.MODEL_NOT_AVAILABLE)
_KEY_LIKE = re.compile(r"(?:\b(?:sk-|gsk_|xai-|AIza|eyJ)|\bbearer\s)[^\s\"',;]+", re.IGNORECASE)
_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class ErrorObject:
    """What a provider's error document says; of an unknown shape, it says nothing.

    Read from every envelope that is known: nested, flat, `detail`, a list, or plain text.
    """

    def __init__(self, document: Any) -> None:
        if isinstance(document, list) and document:
            document = document[0]
        outer: dict[str, Any] = document if isinstance(document, dict) else {}
        error = outer.get("error")
        fields = {**outer, **error} if isinstance(error, dict) else outer
        said = [fields.get(name) for name in ("code", "type", "status", "status_code")]
        self._words = [word for word in said if isinstance(word, str) and _normal(word) in _KNOWN]
        self._number = next(filter(None, map(_status, said)), None)
        self.message = _message(fields)
        self._is_about_input = bool(_details(fields.get("metadata")).get("reasons"))
        self.param = _param(fields)
        self.request_id = plain_id(outer.get("request_id"))

    def status(self, http_status: int | None) -> int | None:
        """The status that says best what the error is; None where nothing does.

        `http_status` is that of the answer, or None for an error that came with a 200.
        """
        telling = [_STATUS_OF_WORD[w] for w in map(_normal, self._words) if w in _STATUS_OF_WORD]
        vague = [_STATUS_OF_VAGUE_WORD[w] for w in map(_normal, self._words) if w in _VAGUE]
        status = http_status or self._number or next(iter(telling + vague), None)
        if {402, 404} & set(telling):  # whatever else it comes with
            return next(word for word in telling if word in (402, 404))
        start = self.message[:MAX_QUOTE_CHARACTERS]
        if not telling and self.param is None and _ABOUT_MONEY.search(start):
            return 402
        if status == 403 and (422 in telling or self._is_about_input or _ABOUT_INPUT.search(start)):
            return 422
        return status

    def describe(self, kind: Kind, secrets: Iterable[str]) -> str:
        """The end of a sentence: its first word and, where it helps, its message without keys."""
        word = f" ({self._words[0]})" if self._words else ""
        message = self.message if kind in _QUOTED else ""
        for secret in secrets:
            message = message.replace(secret, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
        quote = _KEY_LIKE.sub("[key]", line)[:MAX_QUOTE_CHARACTERS].rstrip(". ")
        return f"{word}: {quote}" if quote else word


def kind_of_status(status: int | None) -> Kind:
    """The kind of an answer other than 200."""
    if status is None:
        return errors.PROVIDER_UNAVAILABLE
    default = _KINDS_BY_HUNDRED.get(status // 100, errors.PROVIDER_BAD_RESPONSE)
    return _KINDS_BY_STATUS.get(status, default)


def refusal(
    document: Any, http_status: int | None, headers: Mapping[str, str], secrets: Iterable[str]
) -> Failure:
    """The failure that an error document is; `http_status` is None where it came with a 200."""
    error = ErrorObject(document)
    status = error.status(http_status)
    kind = kind_of_status(status)
    text = "sent an error" if http_status is None else f"answered {http_status}"
    text += error.describe(kind, secrets)
    if http_status is not None and http_status // 100 == 3:
        text += ", a redirect, which is never followed"
    return Failure(
        kind,
        text,
        "error_event" if http_status is None else "status",
        is_retryable=status in RETRYABLE_STATUSES,
        is_final=headers.get("x-should-retry") == "false",
        wait_s=retry_after_s(headers),
        request_id=error.request_id,
        param=error.param,
        words=error.message if status in PARAMETER_STATUSES else None,
    )


def plain_id(value: Any) -> str | None:
    """`value` if it is what an id may look like."""
    return value if isinstance(value, str) and _PLAIN_ID.fullmatch(value) else None


_VAGUE = _STATUS_OF_VAGUE_WORD.keys()
_KNOWN = _STATUS_OF_WORD.keys() | _VAGUE


def _normal(word: str) -> str:
    normal = word.replace("_", "").replace("-", "").lower()
    return normal.removesuffix("error") or normal


def _status(value: Any) -> int | None:
    """A status written as a number or in a string."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 400 <= value < 600 else None


def _message(value: Any, depth: int = 0) -> str:
    """The words for people in an error, wherever they stand."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (_message(item, depth + 1) for item in value[:3])))
    names = ("message", "msg", "detail", "error", "errors")
    found = (_message(_details(value).get(name), depth + 1) for name in names)
    return next(filter(None, found), "")


def _param(fields: dict[str, Any]) -> str | None:
    """The parameter that the error is about; FastAPI says it as the last step of a path."""
    param = fields.get("param")
    for name in ("detail", "message"):
        details = _details(fields.get(name)).get("detail", fields.get(name))
        if not param and isinstance(details, list) and len(details) == 1:
            path = _details(details[0]).get("loc")
            param = path[-1] if isinstance(path, list) and path else None
    return param if isinstance(param, str) and param else None


def _details(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
