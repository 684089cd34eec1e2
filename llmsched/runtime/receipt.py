"""How an attempt ended, as its receipt in the storage says. One that cannot be read is a failure, never a success.

The storage is the workload's too, so whatever stands there is read as what strangers wrote: it never raises.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from llmsched import sanitize

OUTCOMES = ("succeeded", "failed", "released")
EVENTS = ("error", "interruption", "input", "no-capacity")


@dataclass(frozen=True, slots=True)
class Receipt:
    """`event` classifies a failure. `started`: the loop or command had begun. `metrics` are finite numbers."""

    outcome: str
    message: str = ""
    event: str = "error"
    step: int | None = None
    artifact: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    attempt: int = 0
    epoch: int = 0
    started: bool = True

    def dump(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def key(folder: str) -> str:
    """Where the receipt of the attempt in `folder` ("tune/0/1") lies in the storage."""
    return f"{folder}/receipt.json"


def parse(data: bytes) -> Receipt:
    try:
        return of(json.loads(data))
    except (ValueError, RecursionError) as error:
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
