"""Who gets in: the callers that the operator named, each known by the hash of a token."""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

_HASH = re.compile(r"sha256=([0-9A-Fa-f]{64})")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who may call: a name for the records, the token's SHA-256, and its brands (None: all)."""

    name: str
    token_sha256: bytes
    brands: frozenset[str] | None

    @property
    def token_id(self) -> str:
        """The first 8 hexadecimal digits of the token's hash: which of a caller's tokens it is."""
        return self.token_sha256[:4].hex()

    def may_use(self, brand_id: str) -> bool:
        return self.brands is None or brand_id in self.brands

    def __str__(self) -> str:
        """The caller and its brands, each short: a token with a colon in it reads as a brand."""
        brands = "any brand" if self.brands is None else ", ".join(map(_short, sorted(self.brands)))
        return f"{_short(self.name)} ({brands})"


def parse_callers(text: str) -> tuple[Caller, ...]:
    """The callers in a list of name:token:brand-a|brand-b; ValueError where it is none."""
    if not text.isprintable():  # no header could carry such a token, no log line such a name
        raise ValueError
    callers = []
    for entry in text.split(","):
        name, token, *bound_to = entry.strip(" ").split(":")
        brands = frozenset(bound_to[0].split("|")) if bound_to else None
        if not name or len(bound_to) > 1 or (brands and "" in brands):
            raise ValueError
        callers.append(Caller(name, _token_sha256(token), brands))
    if len({caller.token_sha256 for caller in callers}) < len(callers):
        raise ValueError
    return tuple(callers)


def identify(authorization: str, callers: Iterable[Caller]) -> Caller | None:
    """Who sent this Authorization header, as WSGI hands it over (latin-1); None if nobody known."""
    token = bearer_token(authorization)
    digest = sha256((token or "").encode("latin-1", "replace")).digest()
    # Every hash is compared, so that the time taken tells nothing.
    known = [c for c in callers if hmac.compare_digest(c.token_sha256, digest)]
    return known[0] if known and token is not None else None


def bearer_token(authorization: str) -> str | None:
    """The token in an Authorization header, maybe empty; None if it has another scheme, or none."""
    scheme, _, token = authorization.partition(" ")
    # No strip(): it would eat a U+00A0 of the token.
    return token.lstrip(" ") if scheme.lower() == "bearer" else None


def _token_sha256(token: str) -> bytes:
    if token == "sha256" or token.startswith("sha256="):  # noqa: S105 - the mark of a hash
        if not (found := _HASH.fullmatch(token)):
            raise ValueError
        return bytes.fromhex(found[1])
    if not token or token != token.strip():
        raise ValueError
    return sha256(token.encode()).digest()


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:8]}…"
