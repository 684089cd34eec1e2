"""What an attempt leaves in the storage: a note that it began, and the receipt of how it ended, which outlives all.

    <gang>/<attempt>/attempt.json    who and where
    <gang>/<attempt>/receipt.json    written once, before anybody is told: the first one stands

The storage is the workload's too, so whatever stands there is read as what strangers wrote: reading never raises, and a
receipt that cannot be read is a failure, never a success.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from llmsched import sanitize
from llmsched.runtime import artifact
from llmsched.runtime.storage import Storage, Unreadable

OUTCOMES = ("succeeded", "failed", "released")
PAUSES_S = (0, 1, 2, 4, 8, 15, 30)  # between tries to write it
EVENTS = ("error", "interruption", "input", "no-capacity")


@dataclass(frozen=True, slots=True)
class Receipt:
    """`event` classifies a failure. `started`: the loop or command had begun. `metrics` are finite numbers. `progress`:
    what it reported last, for a controller that was away."""

    outcome: str
    message: str = ""
    event: str = "error"
    step: int | None = None
    artifact: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    attempt: int = 0
    epoch: int = 0
    started: bool = True
    asked: str = ""  # to leave: preempt | drain | stop | resize; empty: it ended by itself
    progress: dict[str, Any] = field(default_factory=dict)
    work: str = ""  # what it is the receipt of: see `work_of`

    def dump(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def work_of(order: Mapping[str, Any]) -> str:
    """A digest of what a LaunchOrder (as plain data) asks for, whatever has changed in place of its priority or limits.

    Names of work and numbers of attempts are a journal's own. One that is put back from an older backup gives them
    again, and the storage may hold what another work of that name has left.
    """
    spec, kind = order.get("spec") or {}, order.get("kind", "")
    asked = [kind, *(spec.get(part) for part in (kind, "workdir", "environment"))]
    return hashlib.blake2b(json.dumps(asked, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def key(folder: str) -> str:
    """Where the receipt of the attempt in `folder` ("tune/0/1") lies in the storage."""
    return f"{folder}/receipt.json"


def read(storage: Storage, folder: str) -> Receipt | None:
    """As it stands in the storage; None: there is none. Raises OSError, StorageError: the storage cannot be asked."""
    try:
        return parse(storage.read_note(key(folder)))
    except FileNotFoundError:
        return None
    except Unreadable as error:
        return _unreadable(str(error))


def parse(data: bytes) -> Receipt:
    try:
        return of(sanitize.loads(data))
    except ValueError as error:
        return _unreadable(sanitize.first_line(error))


def of(found: Any) -> Receipt:
    """From JSON data. What says neither that it succeeded nor that it was released has failed."""
    if not isinstance(found, dict):
        return _unreadable("it is no object")
    outcome, event = found.get("outcome"), found.get("event", "error")
    if outcome not in OUTCOMES or event not in EVENTS:
        return _unreadable(f"outcome {outcome!r}, event {event!r}")
    known = {name: found[name] for name in Receipt.__dataclass_fields__ if name in found}
    receipt: Receipt = sanitize.record(Receipt(**known))
    return receipt


def _unreadable(why: str) -> Receipt:
    return Receipt("failed", sanitize.text(f"its receipt cannot be read: {why}", 500))


def note_beginning(storage: Storage, order: dict[str, Any]) -> None:
    about = {
        "attempt": order["attempt"],
        "epoch": order["epoch"],
        "kind": order["kind"],
        "members": [{"rank": one["rank"], "node": one["node"]} for one in order["members"]],
    }
    storage.write(f"{_folder(order)}/attempt.json", json.dumps(about, indent=1).encode())


def write(storage: Storage, order: dict[str, Any], receipt: Receipt) -> Receipt:
    """The receipt as it stands, durable. What a storage that is away for a minute never got has not succeeded."""
    trouble = ""
    for pause_s in PAUSES_S:
        time.sleep(pause_s)
        try:
            return _stored(storage, order, receipt)
        except Exception as error:
            trouble = f"its receipt could not be written: {sanitize.first_line(error)}"
            print(f"{_folder(order)}: {trouble}", flush=True)
    if receipt.outcome == "succeeded":
        receipt = replace(receipt, outcome="failed", message=trouble, event="interruption")
    return receipt


def _stored(storage: Storage, order: dict[str, Any], receipt: Receipt) -> Receipt:
    """The receipt with what the work left behind, as the storage has it now: the first one written stands."""
    receipt = replace(receipt, work=work_of(order))
    try:
        result = artifact.read_result(order["storage"], order["gang"], order["attempt"], order["epoch"])
    except artifact.ResultUnreadable as error:
        if receipt.outcome == "succeeded":
            receipt = replace(receipt, outcome="failed", message=str(error), event="error")
    else:
        made = result["artifact"] if receipt.outcome == "succeeded" else None
        receipt = replace(receipt, artifact=made, metrics=sanitize.numbers(result["metrics"]))
    if storage.write_if_absent(key(_folder(order)), receipt.dump()):
        return receipt
    return read(storage, _folder(order)) or receipt


def _folder(order: dict[str, Any]) -> str:
    return f"{order['gang']}/{order['attempt']}"
