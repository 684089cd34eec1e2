"""The final result of a gang, and the numbers that go with it into the receipt.

`save` puts a folder (a Hugging Face model, a PEFT adapter) under the attempt's own name in the storage; it counts once
`result.json` names it, which is written last. The supervisor reads that file when the gang has ended, so the result
needs no live process to be known.

    <gang>/artifact/<attempt>-<epoch>/...      <gang>/<attempt>/result.json  {"epoch", "artifact", "metrics", ...}
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmsched import sanitize
from llmsched.runtime import context, progress
from llmsched.runtime.storage import Storage


class ResultUnreadable(Exception):
    """result.json is not as this module writes it."""


def save(write: Callable[[Path], None]) -> str:
    """Store what `write(folder)` puts into an empty folder as this gang's result; returns its uri.

    Rank 0 writes, the others return at once. Saving again replaces.
    """
    where = context.current()
    store, key = Storage.at(where.storage), _key(where)
    if where.rank == 0:
        files = store.put_folder(key, write)
        store.write(f"{key}/manifest.json", json.dumps({"files": files}, indent=1).encode())
        write_result(artifact=store.uri_of(key))
    return store.uri_of(key)


def place() -> str:
    """The uri under which `save` stores the result."""
    where = context.current()
    return Storage.at(where.storage).uri_of(_key(where))


def _key(where: context.Context) -> str:
    return f"{where.gang}/artifact/{where.attempt}-{where.epoch}"


def metrics(**numbers: Any) -> None:
    """Keep numbers for the receipt (later ones win) and show them as progress. Other ranks than 0 say nothing."""
    where = context.current()
    if where.rank == 0:
        plain = progress.plain_values(numbers)
        write_result(metrics={**read_result(where.storage, where.gang, where.attempt, where.epoch)["metrics"], **plain})
        progress.report(**plain)


def write_result(**fields: Any) -> None:
    """Merge `fields` into this attempt's result.json: durable on return. Rank 0 only."""
    where = context.current()
    known = read_result(where.storage, where.gang, where.attempt, where.epoch)
    Storage.at(where.storage).write(
        f"{where.folder}/result.json", json.dumps({**known, **fields, "epoch": where.epoch}, indent=1).encode()
    )


def read_result(storage: str, gang: str, attempt: int, epoch: int) -> dict[str, Any]:
    """What the gang left: {"artifact": uri or None, "metrics": {...}, ...}. Another epoch's result counts as none.

    Raises ResultUnreadable for a file that somebody else wrote, StorageError."""
    nothing: dict[str, Any] = {"artifact": None, "metrics": {}}
    try:
        found = sanitize.loads(Storage.at(storage).read_note(f"{gang}/{attempt}/result.json"))
    except FileNotFoundError:
        return nothing
    except ValueError as error:
        raise _unreadable(error) from None
    try:
        if found.get("epoch") != epoch:
            return nothing
        result = {**nothing, **found}
        if not isinstance(result["metrics"], dict) or not isinstance(result["artifact"], str | None):
            raise TypeError("its fields are of other types")
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(error) from None
    return result


def _unreadable(why: Exception) -> ResultUnreadable:
    return ResultUnreadable(f"what it left in result.json cannot be read: {sanitize.first_line(why)}")
