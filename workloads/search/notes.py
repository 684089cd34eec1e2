"""What a search notes in the storage beside the journal: what trials reported, and which goes on from which; and beside
each trial, where that one waits for a verdict.

<gang>/search.jsonl              [trial, step, value] as it was reported, and [trial, step, donor, "goes on from"]
<gang of a trial>/rungs.json     as of llmsched/runtime/rungs.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from llmsched.runtime import checkpoint, current, rungs
from llmsched.runtime.storage import Storage, StorageError
from workloads.search.trials import name_of

_GOES_ON = "goes on from"


class Noted(NamedTuple):
    """`heirs`: trial -> (donor, the step from which it goes on)."""

    histories: dict[int, list[tuple[float, float]]]
    heirs: dict[int, tuple[int, float]]


def write(reports: Sequence[tuple[int, float, float]]) -> None:
    _append([list(one) for one in reports])


def give(donor: int, heir: int) -> int | None:
    """Let the trial `heir`, which is to be asked for, go on from the donor's newest checkpoint; its step, None: it has
    none."""
    step = checkpoint.inherit(_gang_of(heir), _gang_of(donor))
    if step is not None:
        _append([[heir, step, donor, _GOES_ON]])
    return step


def disown(number: int) -> None:
    """It begins at the beginning, should it be asked for."""
    checkpoint.disinherit(_gang_of(number))
    _append([[number, 0, 0, _GOES_ON]])


def hold(trial: int, at: rungs.Rungs) -> None:
    """Let a trial that is to be asked for wait at these rungs; one that is there keeps what it has passed."""
    if rungs.read(_store(), _gang_of(trial)) is None:
        rungs.write(_store(), _gang_of(trial), at)


def let_pass(trial: int, at: rungs.Rungs, rung: int) -> None:
    rungs.write(_store(), _gang_of(trial), at._replace(passed=rung))


def passed(trial: int) -> float:
    """The last rung that it was let pass."""
    found = rungs.read(_store(), _gang_of(trial))
    return 0 if found is None else found.passed


def read() -> Noted:
    """Of earlier attempts of this search."""
    found = Noted({}, {})
    try:
        lines = _store().read(_key()).decode().splitlines()
        for number, step, value, *more in map(json.loads, lines):
            if not more:
                found.histories.setdefault(int(number), []).append((float(step), float(value)))
            elif value:
                found.heirs[int(number)] = (int(value), float(step))
            else:
                found.heirs.pop(int(number), None)
    except FileNotFoundError:
        pass
    except (StorageError, ValueError, TypeError) as error:
        print(f"what trials reported before cannot be read: {error}", file=sys.stderr, flush=True)
    return found


def _append(rows: list[list[Any]]) -> None:
    if rows:
        _store().append(_key(), "".join(f"{json.dumps(row)}\n" for row in rows).encode())


def _store() -> Storage:
    return Storage.at(current().storage)


def _key() -> str:
    return f"{current().gang}/search.jsonl"


def _gang_of(number: int) -> str:
    """Of a trial: a run's trials are of the same number."""
    name, at, run = current().workload.partition("@")
    return f"{name}.{name_of(number)}{at}{run}/0"
