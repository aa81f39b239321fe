"""What a variable's text must be: in words, and as the parser that holds to them."""

import json
import os
import re
import ssl
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from core.access import parse_callers
from core.limit import parse_limits

_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_OURS_IN_UPSTREAM_FIELDS = {"model", "messages", "stream"}


class Form(NamedTuple):
    """What a variable's text must be, in words, and what reads it: ValueError if it is not that."""

    words: str
    parse: Callable[[str], Any]


class URL(str):
    """A URL whose user and password are not told in a repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(re.sub(r"//[^/]*@", "//***@", str(self)))


def _refuse(_text: str) -> Any:
    raise ValueError


def _printable(text: str) -> str:
    if not _PRINTABLE.fullmatch(text):
        raise ValueError
    return text


def _url(path: str = ".*", schemes: str = "https?") -> Callable[[str], URL]:
    def parse(text: str) -> URL:
        parts = urlsplit(_printable(text))
        if not re.fullmatch(schemes, parts.scheme) or not parts.hostname:
            raise ValueError
        _ = parts.port  # raises ValueError for what is no port number
        if parts.query or parts.fragment or not re.fullmatch(path, parts.path.rstrip("/")):
            raise ValueError
        return URL(text.rstrip("/"))

    return parse


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError
    return found


def _aliases(text: str) -> dict[str, str]:
    pairs = [_printable(entry.strip(" ")).split("=") for entry in text.split(",")]
    return _once((_printable(asked), _printable(upstream)) for asked, upstream in pairs)


def _upstream_fields(text: str) -> dict[str, dict[str, Any]]:
    found = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError
    for more in found.values():
        if not isinstance(more, dict) or _OURS_IN_UPSTREAM_FIELDS & more.keys():
            raise ValueError
    return found


def _ca_bundle(path: str) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except OSError:
        raise ValueError from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError
    return path


def _new_file(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise ValueError
    return path


def _between(kind: type[int] | type[float], low: float, high: float, words: str) -> Form:
    def parse(text: str) -> float:
        number = kind(_printable(text))
        if not low <= number <= high:  # NaN is not between anything
            raise ValueError
        return number

    return Form(f"{words} from {low} to {high}", parse)


def whole(low: int, high: int, words: str = "a whole number") -> Form:
    return _between(int, low, high, words)


def seconds(low: float, high: float) -> Form:
    return _between(float, low, high, "seconds")


CALLERS = Form(
    "name:token or name:token:brand-a|brand-b, comma-separated, every token once; "
    "a token may be given as sha256= and the 64 hexadecimal digits of its hash",
    parse_callers,
)
KEY = Form("a key without spaces", _printable)
BASE_URL = Form("an http(s) URL without /v1", _url(r".*(?<!/v1)(?<!/v1/messages)"))
BASE_URL_V1 = Form(
    "an http(s) URL with /v1, without /chat/completions",
    _url(r".*/v\d.*(?<!/chat/completions)"),  # Google's is v1beta, and Cloudflare's goes on
)
PROXY_URL = Form("an http(s) URL", _url())
FLAG = Form("0 or 1", {"0": False, "1": True}.__getitem__)
ALIASES = Form("model=upstream-model, comma-separated, every model once", _aliases)
UPSTREAM_FIELDS = Form(
    "a JSON object of one JSON object for each upstream model, without model, messages or stream",
    _upstream_fields,
)
CA_BUNDLE = Form("the path of a PEM file with a certificate", _ca_bundle)
LIMITS = Form(
    "`brand loop 10 calls/minute` or the like: brand or caller, a name or * for each, a number, "
    "calls, tokens or USD, minute, day or month; semicolons between several, each once",
    parse_limits,
)
NEW_FILE = Form("a file's path in a folder that exists", _new_file)
REDIS_URL = Form("a redis:// or rediss:// URL", _url(r"(/\d*)?", "rediss?"))
CA_BUNDLE_OR_ANY = Form(
    f"{CA_BUNDLE.words}, or any", lambda text: text if text == "any" else _ca_bundle(text)
)
