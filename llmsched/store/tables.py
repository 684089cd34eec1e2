"""The query tables: what can be asked without folding the journal. Each is written in the transaction that changed it.

A row is a NamedTuple whose fields are the columns in order; the first `keys` of them are its key. Rows are replaced
whole. Tables never decide anything: dropping all but `idempotency` and `secrets` loses no truth.
"""

from __future__ import annotations

import json
from typing import NamedTuple, TypeVar

from llmsched import sanitize
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
    message: str  # JSON of a core.message.Message; "": none
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
        data = sanitize.loads(self.body)
        return None if data is None else from_data(Reason, data)


class IdempotencyRow(NamedTuple):
    """What a request with this key was, and what it was answered."""

    user: str
    key: str
    request: str  # sha256 of its canonical JSON
    response: str  # JSON
    at: float


class SecretRow(NamedTuple):
    """A value that specs name, sealed. `owner` "": everyone's. `sealed` "": it was removed."""

    owner: str
    name: str
    sealed: str
    by: str
    at: float


Row = WorkloadRow | ProgressRow | ReasonRow | IdempotencyRow | SecretRow
AnyRow = TypeVar("AnyRow", WorkloadRow, ProgressRow, ReasonRow, IdempotencyRow, SecretRow)


class Table(NamedTuple):
    name: str
    keys: int


TABLES: dict[type, Table] = {
    WorkloadRow: Table("workloads", 1),
    ProgressRow: Table("progress", 1),
    ReasonRow: Table("reasons", 2),
    IdempotencyRow: Table("idempotency", 2),
    SecretRow: Table("secrets", 2),
}
