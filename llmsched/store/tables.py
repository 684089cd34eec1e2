"""The tables beside the journal: what can be asked without folding it. Each row is written in the transaction of the
entries that it belongs to.

A row is a NamedTuple whose fields are the columns in order; the first `keys` of them are its key. Rows are replaced
whole. Tables never decide anything: dropping all but `idempotency`, `secrets`, `notices` and `key_usage` loses no truth
while the journal has not been compacted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar


class SnapshotRow(NamedTuple):
    """The state as of entry `seq`, as `store.snapshots` spells it; `digest` is that state's."""

    seq: int
    at: float
    digest: str
    body: bytes


class ArchiveRow(NamedTuple):
    """A workload that ended and has left the state, with its gangs in `body`; see `control.archive`."""

    id: str
    name: str
    run: int
    kind: str
    queue: str
    user: str
    outcome: str
    submitted_at: float
    finished_at: float
    artifact: str | None
    labels: str  # of `labels_of`
    body: bytes


def labels_of(labels: Iterable[tuple[str, str]]) -> str:
    """One a line, with a line end before the first, so that each is found whole."""
    return "\n" + "".join(f"{key}={value}\n" for key, value in labels)


class UsageRow(NamedTuple):
    """A row of the book of a workload that has left the state; see `core.usage`. `amounts`: whole numbers with blanks
    between them, as text, so that each of many rows is held against its checksum in microseconds."""

    day: int
    workload: str
    queue: str
    flavor: str
    user: str
    amounts: str


class KeyUsageRow(NamedTuple):
    """What a key has used of a model on one day through one gateway; see `control.key_usage`."""

    day: int
    key: str
    model: str
    gateway: str
    user: str
    amounts: str


class ProgressRow(NamedTuple):
    """The last numbers a gang reported; JSON."""

    gang: str
    attempt: int
    at: float
    data: str


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


class NoticeRow(NamedTuple):
    """A message about a workload that was or is to be sent; see `control.notices`. `what` happened, to whom by the
    `number` of the entry of its `notify`; `target`: JSON of that entry. `body` "": it is made when it is `due`."""

    workload: str
    what: str
    number: int
    user: str
    target: str
    body: str
    outcome: str  # to send, sent, given up, over
    due: float  # of the next try
    tries: int
    error: str  # of the last try
    at: float  # of the first


Row = SnapshotRow | ArchiveRow | UsageRow | KeyUsageRow | ProgressRow | IdempotencyRow | SecretRow | NoticeRow
AnyRow = TypeVar(
    "AnyRow", SnapshotRow, ArchiveRow, UsageRow, KeyUsageRow, ProgressRow, IdempotencyRow, SecretRow, NoticeRow
)


class Table(NamedTuple):
    name: str
    keys: int


TABLES: dict[type, Table] = {
    SnapshotRow: Table("snapshots", 1),
    ArchiveRow: Table("archive", 1),
    UsageRow: Table("usage", 4),
    KeyUsageRow: Table("key_usage", 4),
    ProgressRow: Table("progress", 1),
    IdempotencyRow: Table("idempotency", 2),
    SecretRow: Table("secrets", 2),
    NoticeRow: Table("notices", 3),
}


AGE: dict[type, str] = {ArchiveRow: "finished_at"}  # the column that says how old a row is; of the others it is `at`


def parent_of(name: str) -> str:
    """The name of the work that asked for work of this name; "" where nobody did."""
    return name.partition(".")[0] if "." in name else ""


class ArchiveQuery(NamedTuple):
    """Rows of the archive that fulfil all that is given.

    `of`: of that user, `queue`: of that queue, `outcomes`: that ended in one of these ways, `labels`: that bear all.
    `user` and `queues`: of that user or in one of those queues, which is all that somebody may see (None and none:
    everything). `parent`: what work of that name asked for ("": only what nobody asked for). `results`: only what left
    a result; `models`: only trainings that succeeded with one. Order: of one `name`, or of models, by name and from the
    highest run down, after (`name`, `run`) if given; else from the newest down, after (`submitted_at`, `id`) if given.
    """

    limit: int
    name: str | None = None
    user: str | None = None
    queues: tuple[str, ...] = ()
    results: bool = False
    models: bool = False
    of: str | None = None
    queue: str | None = None
    outcomes: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    parent: str | None = None
    after_run: tuple[str, int] | None = None
    after_age: tuple[float, str] | None = None

    @property
    def by_run(self) -> bool:
        return self.name is not None or self.models

    def takes(self, row: ArchiveRow) -> bool:
        """What the store's own selection says of a row that it does not have yet."""
        is_anybodys = self.user is None and not self.queues
        return (
            (self.name is None or row.name == self.name)
            and (not self.results or row.artifact is not None)
            and (not self.models or (row.kind, row.outcome) == ("train", "succeeded") and row.artifact is not None)
            and (self.after_run is None or (row.name, -row.run) > (self.after_run[0], -self.after_run[1]))
            and (self.after_age is None or (-row.submitted_at, row.id) > (-self.after_age[0], self.after_age[1]))
            and (self.of is None or row.user == self.of)
            and (self.queue is None or row.queue == self.queue)
            and (not self.outcomes or row.outcome in self.outcomes)
            and (self.parent is None or parent_of(row.name) == self.parent)
            and all(labels_of([label]) in row.labels for label in self.labels)
            and (is_anybodys or row.user == self.user or row.queue in self.queues)
        )

    def place(self, row: ArchiveRow) -> tuple[Any, ...]:
        """Rows are in the order of this."""
        return (row.name, -row.run) if self.by_run else (-row.submitted_at, row.id)


class UsageQuery(NamedTuple):
    """Rows of books of days `since` to `until` (both of them) in the order of their keys, after `after` if given."""

    since: int
    until: int
    limit: int
    after: tuple[int, str, str, str] | None = None
