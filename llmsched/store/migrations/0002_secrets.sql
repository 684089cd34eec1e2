-- Values that specs name. `sealed` is AES-256-GCM under a key that is kept elsewhere; '' says the secret was removed.

CREATE TABLE secrets (
    owner  TEXT NOT NULL,
    name   TEXT NOT NULL,
    sealed TEXT NOT NULL,
    by     TEXT NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (owner, name)
) WITHOUT ROWID;
