"""Who may ask, and for which models. Keys are known by their sha256 only; a key itself is never kept or written."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmsched.gateway.refusals import Refused


@dataclass(frozen=True, slots=True)
class Key:
    """`models`: the ids that it reaches. What is not among them is not there for its holder."""

    id: str
    sha256: str
    models: frozenset[str] = frozenset()

    def reaches(self, model: str) -> bool:
        return model in self.models


class KeyRing:
    """With no key in it, nobody may ask."""

    def __init__(self, keys: Iterable[Mapping[str, Any]] = ()) -> None:
        self._keys = [Key(str(k["id"]), str(k["sha256"]).lower(), frozenset(k.get("models") or ())) for k in keys]

    def check(self, authorization: str | None) -> Key:
        """The key behind an `Authorization` header. Raises Refused (401)."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Refused(401, "No key. Send the header `Authorization: Bearer <key>`.", code="missing_api_key")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        found = None
        for key in self._keys:  # to the end, always: how long it takes must not tell which key came close
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            raise Refused(401, "This key is not known here.", code="invalid_api_key")
        return found
