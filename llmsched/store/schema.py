"""The schema of the store: the scripts that make it, and whether a file has exactly what they make.

A trigger, an index, a table or a column that nobody of us made can change or lose what is written, unseen by the
checksums of what was written before; one of ours that is gone no longer guards. Either way the file is not our store.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from importlib import resources

OF_SQLITE = "sqlite_stat"  # what ANALYZE keeps: it changes how SQLite searches, never what it finds


def migrations() -> list[str]:
    """The scripts in order; number n brings schema n-1 to n."""
    folder = resources.files("llmsched.store") / "migrations"
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return [item.read_text(encoding="utf-8") for item in files]


def version(db: sqlite3.Connection) -> int:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    return int(found)


def statements() -> list[str]:
    """What makes the newest schema in an empty file, in order, without rows."""
    return [made for made in _expected(len(migrations())).values() if made is not None]


def differences(db: sqlite3.Connection) -> list[str]:
    """How the schema of a file differs from the one that its version says it has."""
    number = version(db)
    if not 0 <= number <= len(migrations()):
        return [f"it has schema {number}, this llmsched knows {len(migrations())}"]
    expected, found = _expected(number), _objects(db)
    if not number and found:
        return [f"it has no schema of ours (version 0), and in it: {_listed(list(found))}"]
    return [
        *(f"the {kind} {name} is missing" for kind, name in expected if (kind, name) not in found),
        *(f"the {kind} {name} is not ours" for kind, name in found if (kind, name) not in expected),
        *(
            f"the {kind} {name} was changed"
            for (kind, name), made in expected.items()
            if (kind, name) in found and found[kind, name] != made
        ),
    ]


def drop_all(db: sqlite3.Connection) -> None:
    """Every object of the file, whoever made it. For a caller in a transaction."""
    for kind in ("trigger", "view", "index", "table"):  # views and triggers first: they name the others
        for found, name in _objects(db):
            if found == kind and not name.startswith("sqlite_"):
                db.execute(f"DROP {kind.upper()} {_quoted(name)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _listed(objects: list[tuple[str, str]]) -> str:
    return ", ".join(f"the {kind} {name}" for kind, name in objects[:3]) + (", ..." if len(objects) > 3 else "")


@cache
def _expected(number: int) -> dict[tuple[str, str], str | None]:
    """What the scripts up to this one make."""
    db = sqlite3.connect(":memory:")
    try:
        for script in migrations()[:number]:
            db.executescript(script)
        return _objects(db)
    finally:
        db.close()


def _objects(db: sqlite3.Connection) -> dict[tuple[str, str], str | None]:
    """(type, name) -> the statement that made it; None where SQLite made it by itself."""
    lines = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY rowid").fetchall()
    return {(kind, name): sql for kind, name, sql in lines if not name.startswith(OF_SQLITE)}
