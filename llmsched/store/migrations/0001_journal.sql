-- The journal, the lease that fences it, and the tables that answer questions. A file here is never edited once it was
-- released: what must change is a new file with the next number.

CREATE TABLE journal (
    seq      INTEGER PRIMARY KEY CHECK (seq > 0),
    epoch    INTEGER NOT NULL,
    at       REAL NOT NULL,
    kind     TEXT NOT NULL,
    workload TEXT,
    body     TEXT NOT NULL,
    checksum TEXT NOT NULL
);
CREATE INDEX journal_by_workload ON journal (workload, seq) WHERE workload IS NOT NULL;
-- One attempt is launched once, whatever the controller believes.
CREATE UNIQUE INDEX one_launch_an_attempt
    ON journal (json_extract(body, '$.gang'), json_extract(body, '$.attempt')) WHERE kind = 'Launch';
-- History is not rewritten.
CREATE TRIGGER journal_is_append_only BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END;
CREATE TRIGGER journal_keeps_all BEFORE DELETE ON journal BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END;

CREATE TABLE lease (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    epoch    INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    renewals INTEGER NOT NULL
);
INSERT INTO lease VALUES (1, 0, '', 0);

CREATE TABLE workloads (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    run          INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    queue        TEXT NOT NULL,
    user         TEXT NOT NULL,
    phase        TEXT NOT NULL,
    message      TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    finished_at  REAL,
    spec         TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE progress (
    gang    TEXT PRIMARY KEY,
    attempt INTEGER NOT NULL,
    at      REAL NOT NULL,
    data    TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE reasons (
    gang TEXT NOT NULL,
    at   REAL NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (gang, at)
) WITHOUT ROWID;
CREATE TABLE idempotency (
    user     TEXT NOT NULL,
    key      TEXT NOT NULL,
    request  TEXT NOT NULL,
    response TEXT NOT NULL,
    at       REAL NOT NULL,
    PRIMARY KEY (user, key)
) WITHOUT ROWID;
