-- The journal, the lease that fences it, the head that says how much there is, and the tables beside it. A file here is
-- never edited once it was released: what must change is a new file with the next number. Checksums: see seal.py.

CREATE TABLE journal (
    seq      INTEGER PRIMARY KEY CHECK (seq > 0),
    epoch    INTEGER NOT NULL,
    at       REAL NOT NULL,
    kind     TEXT NOT NULL,
    workload TEXT,
    body     TEXT NOT NULL,
    checksum TEXT NOT NULL
);
-- Its story: what only measures, often, is not in it.
CREATE INDEX journal_by_workload ON journal (workload, seq)
    WHERE workload IS NOT NULL AND kind NOT IN ('LoadObserved', 'Estimated');
-- One attempt is launched once, whatever the controller believes.
CREATE UNIQUE INDEX one_launch_an_attempt
    ON journal (json_extract(body, '$.gang'), json_extract(body, '$.attempt')) WHERE kind = 'Launch';

CREATE TABLE lease (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    epoch    INTEGER NOT NULL,
    owner    TEXT NOT NULL,
    renewals INTEGER NOT NULL
);
INSERT INTO lease VALUES (1, 0, '', 0);
CREATE TABLE head (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    writes     INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    link       TEXT NOT NULL,
    floor      INTEGER NOT NULL,
    floor_link TEXT NOT NULL,
    sums       TEXT NOT NULL,
    checksum   TEXT NOT NULL
);
INSERT INTO head VALUES (1, 0, 0, '', 0, '', '{}', '');

-- History is not rewritten. What lies below the floor, and is in a snapshot, may go.
CREATE TRIGGER journal_is_append_only BEFORE UPDATE ON journal BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END;
CREATE TRIGGER journal_keeps_all BEFORE DELETE ON journal
    WHEN old.seq > (SELECT floor FROM head) BEGIN SELECT RAISE(ABORT, 'the journal only grows'); END;

-- The state as of an entry, so that a start need not fold all that came before.
CREATE TABLE snapshots (
    seq      INTEGER PRIMARY KEY,
    at       REAL NOT NULL,
    digest   TEXT NOT NULL,
    body     BLOB NOT NULL,
    checksum TEXT NOT NULL
);
-- Workloads that ended a while ago and left the state: whole in `body`, and what one looks for in columns.
CREATE TABLE archive (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    run          INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    queue        TEXT NOT NULL,
    user         TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    finished_at  REAL NOT NULL,
    artifact     TEXT,
    labels       TEXT NOT NULL,
    body         BLOB NOT NULL,
    checksum     TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX archive_by_name ON archive (name, run);
CREATE INDEX archive_by_age ON archive (submitted_at DESC, id);
CREATE INDEX archive_by_user ON archive (user, submitted_at DESC, id);
CREATE INDEX archive_by_queue ON archive (queue, submitted_at DESC, id);
CREATE INDEX archive_by_end ON archive (finished_at);
CREATE INDEX archive_checksums ON archive (checksum);  -- each start adds them up, and must not read all of it
CREATE INDEX models ON archive (name, run DESC) WHERE kind = 'train' AND outcome = 'succeeded' AND artifact NOTNULL;
CREATE INDEX models_by_user ON archive (user, name, run DESC)
    WHERE kind = 'train' AND outcome = 'succeeded' AND artifact NOTNULL;
CREATE INDEX models_by_queue ON archive (queue, name, run DESC)
    WHERE kind = 'train' AND outcome = 'succeeded' AND artifact NOTNULL;
-- Their books: what they held, by day (since 1970), queue and flavor, in GPU-microseconds.
CREATE TABLE usage (
    day      INTEGER NOT NULL,
    workload TEXT NOT NULL,
    queue    TEXT NOT NULL,
    flavor   TEXT NOT NULL,
    user     TEXT NOT NULL,
    amounts  TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (day, workload, queue, flavor)
) WITHOUT ROWID;
CREATE INDEX usage_by_workload ON usage (workload);
CREATE TABLE key_usage (
    day      INTEGER NOT NULL,
    key      TEXT NOT NULL,
    model    TEXT NOT NULL,
    gateway  TEXT NOT NULL,
    user     TEXT NOT NULL,
    amounts  TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (day, key, model, gateway)
) WITHOUT ROWID;
CREATE TABLE progress (
    gang     TEXT PRIMARY KEY,
    attempt  INTEGER NOT NULL,
    at       REAL NOT NULL,
    data     TEXT NOT NULL,
    checksum TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE idempotency (
    user     TEXT NOT NULL,
    key      TEXT NOT NULL,
    request  TEXT NOT NULL,
    response TEXT NOT NULL,
    at       REAL NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (user, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (at);
-- Values that specs name. `sealed` is AES-256-GCM under a key that is kept elsewhere; '' says the secret was removed.
CREATE TABLE secrets (
    owner    TEXT NOT NULL,
    name     TEXT NOT NULL,
    sealed   TEXT NOT NULL,
    by       TEXT NOT NULL,
    at       REAL NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (owner, name)
) WITHOUT ROWID;
-- Messages about workloads, to be sent or sent.
CREATE TABLE notices (
    workload TEXT NOT NULL,
    what     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    user     TEXT NOT NULL,
    target   TEXT NOT NULL,
    body     TEXT NOT NULL,
    outcome  TEXT NOT NULL,
    due      REAL NOT NULL,
    tries    INTEGER NOT NULL,
    error    TEXT NOT NULL,
    at       REAL NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (workload, what, number)
) WITHOUT ROWID;
CREATE INDEX notices_by_age ON notices (at);
