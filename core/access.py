"""Who gets in: the callers that the operator named, each known by the hash of a token."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, slots=True)
class Caller:
    """Who may call: a name for the records, the token's SHA-256, and its brands (None: all)."""

    name: str
    token_sha256: bytes
    brands: frozenset[str] | None

    def may_use(self, brand_id: str) -> bool:
        return self.brands is None or brand_id in self.brands


def identify(authorization: str, callers: Iterable[Caller]) -> Caller | None:
    """Who sent this Authorization header, as WSGI hands it over (latin-1); None if nobody known."""
    scheme, _, token = authorization.partition(" ")
    # No strip(): it would eat a U+00A0 of the token.
    digest = sha256(token.lstrip(" ").encode("latin-1", "replace")).digest()
    # Every hash is compared, so that the time taken tells nothing.
    known = [c for c in callers if hmac.compare_digest(c.token_sha256, digest)]
    return known[0] if known and scheme.lower() == "bearer" else None
