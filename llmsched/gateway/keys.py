"""Who may ask, and for which models. Keys are known by their sha256 only; a key itself is never kept or written."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmsched.gateway.refusals import Refused
from llmsched.spec.endpoint_keys import PRIORITIES

SHEDDABLE, STANDARD, CRITICAL = range(len(PRIORITIES))
TOKEN = "llms_"  # how a token of the API begins


@dataclass(frozen=True, slots=True)
class Key:
    """`models`: the ids that it reaches. What is not among them is not there for its holder. `expires`: in seconds
    since 1970, None for never. `priority`: a higher one goes first where replicas are full, and the lowest does not
    wait then. None of a limit: no limit."""

    id: str
    sha256: str
    models: frozenset[str] = frozenset()
    expires: float | None = None
    user: str = ""
    priority: int = STANDARD
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def reaches(self, model: str) -> bool:
        return model in self.models

    def is_over(self) -> bool:
        return self.expires is not None and self.expires <= time.time()


class KeyRing:
    """With no key in it, nobody may ask."""

    def __init__(self, keys: Iterable[Mapping[str, Any]] = ()) -> None:
        self._keys = [_key(one) for one in keys]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def find(self, sha256: str) -> Key | None:
        """Looks at every key, always: how long it takes must not tell which one came close."""
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, sha256):
                found = key
        return found

    def check(self, authorization: str | None) -> Key:
        """The key behind an `Authorization` header. Raises Refused (401)."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refused(401, "No key. Send the header `Authorization: Bearer <key>`.", code="missing_api_key")
        found = self.find(hashlib.sha256(token.strip().encode()).hexdigest())
        if found is None and token.strip().startswith(TOKEN):
            raise Refused(
                401,
                "This is a token of llmsched's API. Endpoints take its key, which `llmsched token key` prints.",
                code="invalid_api_key",
            )
        if found is None:
            raise Refused(401, "This key is not known here.", code="invalid_api_key")
        if found.is_over():
            raise expired()
        return found


def expired() -> Refused:
    return Refused(401, "This key has expired.", code="invalid_api_key")


def _key(data: Mapping[str, Any]) -> Key:
    expires = data.get("expires")
    return Key(
        str(data["id"]),
        str(data["sha256"]).lower(),
        frozenset(data.get("models") or ()),
        None if expires is None else float(expires),
        user=str(data.get("user") or ""),
        priority=PRIORITIES.index(data.get("priority") or "standard"),
        requests_per_minute=data.get("requests_per_minute"),
        tokens_per_minute=data.get("tokens_per_minute"),
    )
