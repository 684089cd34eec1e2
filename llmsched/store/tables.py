"""The query tables: what can be asked without folding the journal. Each is written in the transaction that changed it.

A row is a NamedTuple whose fields are the columns in order; the first `keys` of them are its key. Rows are replaced
whole. Tables never decide anything: dropping all but `tokens` and `idempotency` loses no truth.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from llmsched.core.explain import Reason
from llmsched.store.codec import from_data, to_data


class WorkloadRow(NamedTuple):
    """The latest spec and phase of one run."""

    id: str
    name: str
    run: int
    kind: str
    queue: str
    user: str
    phase: str
    message: str
    submitted_at: float
    finished_at: float | None
    spec: str  # canonical JSON


class ProgressRow(NamedTuple):
    """The last numbers a gang reported; JSON."""

    gang: str
    attempt: int
    at: float
    data: str


class ReasonRow(NamedTuple):
    """From `at` on, this is why the gang waits; `null` when it no longer does. JSON of a Reason."""

    gang: str
    at: float
    body: str

    @classmethod
    def of(cls, gang: str, at: float, reason: Reason | None) -> ReasonRow:
        return cls(gang, at, json.dumps(None if reason is None else to_data(Reason, reason)))

    def reason(self) -> Reason | None:
        data = json.loads(self.body)
        return None if data is None else from_data(Reason, data)


class IdempotencyRow(NamedTuple):
    """What a request with this key was, and what it was answered."""

    user: str
    key: str
    request: str  # sha256 of its canonical JSON
    response: str  # JSON
    at: float


class TokenRow(NamedTuple):
    """A key to the endpoint. Only the hash is kept: 256 random bits need no slow one."""

    id: str
    sha256: str
    name: str
    models: str  # JSON list of model ids; ["*"]: all
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


Row = WorkloadRow | ProgressRow | ReasonRow | IdempotencyRow | TokenRow
AnyRow = TypeVar("AnyRow", WorkloadRow, ProgressRow, ReasonRow, IdempotencyRow, TokenRow)


class Table(NamedTuple):
    name: str
    keys: int


TABLES: dict[type, Table] = {
    WorkloadRow: Table("workloads", 1),
    ProgressRow: Table("progress", 1),
    ReasonRow: Table("reasons", 2),
    IdempotencyRow: Table("idempotency", 2),
    TokenRow: Table("tokens", 1),
}


def new_token(name: str, models: Sequence[str], at: float, *, lifetime_s: float | None = None) -> tuple[str, TokenRow]:
    """(`llms_<id>_<secret>`, to be shown once and never kept; the row to store)."""
    token_id = secrets.token_hex(6)
    token = f"llms_{token_id}_{secrets.token_urlsafe(32)}"
    expires_at = None if lifetime_s is None else at + lifetime_s
    return token, TokenRow(token_id, token_sha256(token), name, json.dumps(list(models)), at, expires_at)


def token_sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def token_matches(token: str, sha256: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(token_sha256(token), sha256)
