"""What a provider's error means: whose business it is, in the service's own kinds, and in words."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from core import errors
from core.errors import Kind
from providers.http.envelopes import ErrorObject, first
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
# Error codes and types, without "_" and a last "error", and the status that they stand for.
_STATUS_OF_WORD = {
    word: status
    for status, words in {
        402: "insufficientquota insufficientuserquota billing billinghardlimitreached "
        "billingnotactive paymentrequired insufficientcredits insufficientbalance "
        "creditlimitreached spendlimitreached budgetexceeded",
        404: "modelnotfound deploymentnotfound modelnotavailable modelnotsupported invalidmodel "
        "unsupportedmodel modeldecommissioned modeldeprecated notfound",
        422: "contentfilter contentpolicyviolation contentpolicy moderation moderationblocked",
        429: "ratelimitexceeded ratelimit ratelimited toomanyrequests resourceexhausted slowdown",
        401: "invalidapikey authentication unauthorized unauthenticated",
        403: "permission permissiondenied forbidden unsupportedcountryregionterritory",
        400: "contextlengthexceeded requesttoolarge badrequest invalidargument unprocessableentity "
        "unsupportedparameter unknownparameter unsupportedvalue invalidvalue invalidprompt "
        "invalidrequest",
        408: "timeout requesttimeout gatewaytimeout deadlineexceeded",
        529: "overloaded serviceunavailable unavailable enginesoverloaded",
        500: "server internalserver internal api badgateway",
    }.items()
    for word in words.split()
}
# These say less than a status does, and count where nothing else tells one.
_VAGUE_WORDS = ("invalidrequest", "notfound")
_MONEY = (
    r"credit balance|(?:insufficient|not enough|out of|any|no|more) (?:account )?"
    r"(?:credits?|balance|funds)|credits? (?:are |is )?(?:exhausted|depleted)"
    r"|balance is (?:too low|insufficient)|spend(?:ing)? (?:limit|cap)"
    r"|budget (?:has been )?exceeded"
)
_ABOUT_MONEY_ALONE = re.compile(_MONEY, re.IGNORECASE)
# What a limit of calls or tokens is called, too, and then its code says so.
_ABOUT_MONEY = re.compile(
    rf"{_MONEY}|(?:usage|billing|budget|credit)(?: hard)? limit|exceeded your current quota"
    r"|(?:insufficient|not enough|out of|more) quota",
    re.IGNORECASE,
)
_ABOUT_INPUT = re.compile(
    r"\bflagged\b|moderation|content (?:management )?(?:policy|filter)", re.IGNORECASE
)
# Only where the caller can do something about the cause do the provider's own words help.
_QUOTED = (errors.PROVIDER_REJECTED_REQUEST, errors.MODEL_NOT_AVAILABLE)
# By how keys begin, or as long as they are without a hyphen, which names of models have.
_KEY_LIKE = re.compile(
    r"(?:\b(?:[a-z]{0,4}sk[-_]|xai-|AIza|eyJ|hf_|pplx-|nvapi-|gh[a-z]_|AKIA|bearer\s)"
    r"|api.key[=:]\s?)[^\s\"',;]+"
    r"|(?<=//)[^\s/@]+(?=@)|\b(?=\w*\d)(?=\w*[a-z])\w{32,}[\w+/=]*",
    re.IGNORECASE,
)


def refusal(
    document: Any, http_status: int | None, headers: Mapping[str, str], secrets: Iterable[str]
) -> Failure:
    """The failure that an error document is; `http_status` is None where it came with a 200."""
    error = ErrorObject(document)
    status = _status_of(error, http_status)
    kind = _kind_of(status or 500)
    text = "sent an error" if http_status is None else f"answered {http_status}"
    if word := first(code for code in error.codes if _normal(code) in _STATUS_OF_WORD):
        text += f" ({word})"
    if kind in _QUOTED and (quote := _without_keys(error.message, secrets)):
        text += f": {quote}"
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


def _status_of(error: ErrorObject, http_status: int | None) -> int | None:
    """The status that says best what the error is; None where nothing does."""
    words = [word for word in map(_normal, error.codes) if word in _STATUS_OF_WORD]
    telling = [_STATUS_OF_WORD[word] for word in words if word not in _VAGUE_WORDS]
    if certain := [status for status in telling if status in (402, 404)]:
        return certain[0]  # whatever else it comes with
    start = error.message[:MAX_QUOTE_CHARACTERS]
    about = " ".join([*(code.replace("_", " ") for code in error.codes), start])
    about_money = _ABOUT_MONEY_ALONE if 429 in telling else _ABOUT_MONEY
    if not {400, 422} & set(telling) and error.param is None and about_money.search(about):
        return 402
    vague = map(_STATUS_OF_WORD.get, words)
    status = http_status or error.status or first(telling) or first(vague)
    if status == 403 and (422 in telling or error.has_reasons or _ABOUT_INPUT.search(start)):
        return 422
    return status


def _kind_of(status: int) -> Kind:
    """The kind of an answer other than 200."""
    by_hundred = _KINDS_BY_HUNDRED.get(status // 100, errors.PROVIDER_BAD_RESPONSE)
    return _KINDS_BY_STATUS.get(status, by_hundred)


def _normal(word: str) -> str:
    normal = word.replace("_", "").replace("-", "").lower()
    return normal.removesuffix("error") or normal


def _without_keys(message: str, secrets: Iterable[str]) -> str:
    """The beginning of a message on one line, as the end of a sentence."""
    for secret in secrets:
        message = message.replace(secret, "[key]")
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return _KEY_LIKE.sub("[key]", line)[:MAX_QUOTE_CHARACTERS].rstrip(". ")
