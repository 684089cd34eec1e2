"""Whether what a home keeps is whole: store, schema, journal, state, tables, secrets, permissions, files.

It changes nothing and reads one moment of the store, so a controller may run meanwhile. Each check says what is wrong,
where and what to do, and the next one is made all the same where it can be. Start reading at `examine`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmsched import sanitize
from llmsched.api import home as homes
from llmsched.control import recovery
from llmsched.control.archive import VerifiedArchive
from llmsched.control.vault import opened
from llmsched.core import invariants
from llmsched.core.state import State
from llmsched.errors import LlmschedError
from llmsched.runtime.storage import LocalStorage, Storage, StorageError
from llmsched.store import seal
from llmsched.store.reading import Moment, Places, moment_of
from llmsched.store.seal import HeadFile, Noted
from llmsched.store.tables import SecretRow

SHOWN = 5  # findings of one check; the rest is counted
PRIVATE = (
    *("token", "tokens.json", "secret-key", "controller.json", "isolation.json"),
    *("state.sqlite", "state.sqlite-wal", "state.key", "state.head"),
)


class Check(NamedTuple):
    """One thing that was looked at. `result`: ok | broken | unknown (something before it was broken)."""

    name: str
    result: str
    detail: str
    hint: str = ""


def examine(home: Path, *, files: bool = False, storage: str | None = None) -> Iterator[Check]:
    """Every check of the home in turn. `files` looks at results and checkpoints too, below `storage` if given."""
    yield _permissions(home)
    try:
        noted = HeadFile(Places.of(home / "state.sqlite").head).read()  # first: what is written later is no less
        with moment_of(home / "state.sqlite") as moment:
            yield from _store(home, moment, noted, files, storage)
    except LlmschedError as error:
        yield Check("store", "broken", error.message, error.hint or seal.RESTORE)


def _store(home: Path, moment: Moment, noted: Noted | None, files: bool, storage: str | None) -> Iterator[Check]:
    damage = moment.damage()
    yield _verdict("pages", damage, "SQLite finds its file whole", seal.RESTORE)
    yield _schema(moment)
    yield _head(moment, noted)
    archive = VerifiedArchive(moment)
    try:
        state, seq = recovery.fold_all(moment, archive)
    except LlmschedError as error:
        yield Check("journal", "broken", error.message, error.hint or seal.RESTORE)
        for name in ("state", *(["files"] if files else [])):
            yield Check(name, "unknown", "there is no state without a whole journal")
        yield _tables(moment, [])
    else:
        since = f" (those up to {floor} are in a snapshot)" if (floor := moment.floor()) else ""
        yield Check("journal", "ok", f"{seq} entries{since}, each linked to the one before, fold without a gap")
        rules = f"{len(state.gangs)} gangs, {len(state.nodes)} nodes: every safety rule holds"
        yield _verdict("state", invariants.violations(state), rules, "Please report it, with the journal.")
        yield _tables(moment, archive.differences)
        if files:
            yield _files(home, state, storage)
    yield _secrets(home, moment)


def _schema(moment: Moment) -> Check:
    """Whether its tables, indices and triggers are those that we made: others change or lose what is written."""
    fine = "tables, indices and triggers are as llmsched made them"
    return _verdict("schema", moment.schema_differences(), fine, seal.ACCEPT)


def _head(moment: Moment, noted: Noted | None) -> Check:
    """Whether the store holds what the note beside it says was written."""
    if moment.key is None:
        key = Places.of(moment.path).key
        return Check("head", "broken", f"{key} is gone: nothing can be held against its checksum", seal.ACCEPT)
    try:
        head = moment.head()
        if head.writes or noted is not None:
            link = noted and (noted.link if noted.seq < head.floor else moment.link_at(noted.seq))
            seal.refuse_less(head, moment.lease().epoch, link, noted, moment.path)
    except LlmschedError as error:
        return Check("head", "broken", error.message, error.hint)
    return Check("head", "ok", f"all that was written is there: {head.seq} entries, epoch {moment.lease().epoch}")


def _tables(moment: Moment, differences: list[str]) -> Check:
    if moment.key is None:
        return Check("tables", "unknown", "nothing can be verified without the key")
    try:
        broken = [*differences, *moment.broken_tables()]
    except LlmschedError as error:
        broken = [error.message]
    fine = "each row goes with its checksum and with the journal, and none is missing"
    return _verdict("tables", broken, fine, seal.RESTORE)


def _verdict(name: str, broken: list[str], fine: str, hint: str) -> Check:
    if not broken:
        return Check(name, "ok", fine)
    more = f" (and {len(broken) - SHOWN} more)" if len(broken) > SHOWN else ""
    return Check(name, "broken", "; ".join(broken[:SHOWN]) + more, hint)


def _permissions(home: Path) -> Check:
    open_to_others = [
        f"{path} is open to others ({path.stat().st_mode & 0o777:o})"
        for path in (home, *(home / name for name in PRIVATE))
        if path.exists() and path.stat().st_mode & 0o077
    ]
    return _verdict("permissions", open_to_others, f"{home} is its owner's alone", f"chmod -R go= {home}")


def _secrets(home: Path, moment: Moment) -> Check:
    try:
        rows = [row for row in moment.rows(SecretRow) if row.sealed]
    except LlmschedError as error:
        return Check("secrets", "broken", error.message, error.hint)
    closed, hint = [], ""
    for row in rows:
        try:
            opened(row, homes.secret_key_file(home))
        except LlmschedError as error:
            closed.append(error.message)
            hint = error.hint
    return _verdict("secrets", closed, f"{len(rows)} open with the key", hint)


# --- files --------------------------------------------------------------------------------------------------------


def _files(home: Path, state: State, storage: str | None) -> Check:
    known = homes.isolation(home)
    if known is not None and not known.mode:
        return Check("files", "ok", "none are expected: the work was pretended (--fake-nodes)")
    kept = known.storage if known and known.storage else homes.default_storage(home)
    place = storage or state.configuration.storage or kept
    return _verdict("files", list(missing(state, place)), "every result and checkpoint is there", _FILES)


MANIFEST_BYTES = 32 << 20
_FILES = "Put them back from a backup of the storage, or train again: llmsched apply --again."


def missing(state: State, place: str) -> Iterator[str]:
    """What the state names and is not there: results of successes, the newest checkpoint of what has not ended."""
    for record in state.workloads.values():
        if record.outcome == "succeeded" and record.artifact is not None:
            try:
                if not _is_there(record.artifact):
                    yield f"{record.workload.id}: its result {record.artifact} is gone"
            except (StorageError, ValueError, OSError) as error:
                yield f"{record.workload.id}: {sanitize.line(error)}"
    for gang in state.gangs.values():
        if gang.checkpoint_at is not None and not gang.is_ended():
            try:
                yield from (f"{gang.id}: {trouble}" for trouble in _checkpoint(Storage.at(place), gang.id))
            except (StorageError, OSError) as error:
                yield f"{gang.id}: {sanitize.line(error)}"


def _is_there(artifact: str) -> bool:
    """Whether anything is. Where, work has said: it may be any place, too large to look through."""
    found = Storage.at(artifact)
    if isinstance(found, LocalStorage):
        return found.root.is_dir() and any(found.root.iterdir())
    parent, _, name = artifact.rstrip("/").rpartition("/")
    return bool(Storage.at(parent).list(name))


def _checkpoint(store: Storage, gang: str) -> Iterator[str]:
    """What is wrong with the newest published checkpoint, by the names and sizes of its files."""
    try:
        newest: dict[str, Any] = json.loads(store.read_note(f"{gang}/latest.json"))["published"][0]
        files = json.loads(store.read_note(f"{newest['key']}/manifest.json", MANIFEST_BYTES))["files"]
        sizes = {name: (store.size(f"{newest['key']}/{name}"), int(wanted["size"])) for name, wanted in files.items()}
    except FileNotFoundError as error:
        yield f"its checkpoint is gone ({error.filename or error})"
        return
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        yield "what names its checkpoint is damaged"
        return
    for name, (size, wanted) in sizes.items():
        if size != wanted:
            there = "is missing" if size is None else f"has {size} bytes, expected {wanted}"
            yield sanitize.line(f"{name} of its checkpoint of step {newest.get('step')} {there}")
