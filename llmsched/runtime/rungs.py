"""Where a trial of a search waits until the search knows whether it is worth going on: the rungs of ASHA.

A trial that reports at a rung stays in that report, so it makes no step that is thrown away, however late the search
hears of it. The search says where the rungs are before it asks for the trial, and later which one is passed:

    <gang>/rungs.json    {"steps": [3, 9, 27], "time_attr": "step", "metric": "loss", "passed": 9}

Who is asked to leave waits no longer, nor does anybody wait for ever for a search that says nothing.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any, NamedTuple

from llmsched import sanitize
from llmsched.runtime import context, elastic
from llmsched.runtime.storage import Storage, StorageError, Unreadable

WAITS_AT_MOST_S = 600.0
_FIRST_LOOK_S, _LOOK_EVERY_S = 0.05, 0.5


class Rungs(NamedTuple):
    """`steps` in rising order, by the number `time_attr`; a trial waits when it reports `metric`."""

    steps: list[int]
    time_attr: str
    metric: str
    passed: float = 0

    def reached(self, step: float) -> int:
        """The highest one, 0: none yet."""
        return max((rung for rung in self.steps if rung <= step), default=0)


def write(store: Storage, gang: str, rungs: Rungs) -> None:
    store.write(_key(gang), json.dumps(rungs._asdict()).encode())


def read(store: Storage, gang: str) -> Rungs | None:
    """None: it has none, or what is there is not of ours. Raises StorageError, OSError."""
    with suppress(FileNotFoundError, Unreadable, ValueError, TypeError):
        found = Rungs(**sanitize.loads(store.read_note(_key(gang))))
        return found._replace(steps=sorted(int(each) for each in found.steps), passed=float(found.passed))
    return None


class _Trial:
    """This process, as a trial."""

    def __init__(self, where: context.Context) -> None:
        self._where, self._store = where, Storage.at(where.storage)
        self._step = 0.0
        self._rungs: Rungs | None = None
        if "." in where.workload.partition("@")[0]:  # of what others asked for
            self._rungs = self._read()

    def is_at_one(self, values: dict[str, Any]) -> bool:
        if self._rungs is None:
            return False
        step = values.get(self._rungs.time_attr)
        self._step = float(step) if isinstance(step, int | float) else self._step
        return self._rungs.metric in values and self._rungs.reached(self._step) > self._rungs.passed

    def wait(self) -> None:
        assert self._rungs is not None
        rung, pause, until = self._rungs.reached(self._step), _FIRST_LOOK_S, time.monotonic() + WAITS_AT_MOST_S
        while time.monotonic() < until and not self._is_to_leave():
            found = self._read()
            if found is None or found.passed >= rung:
                self._rungs = found
                return
            time.sleep(pause)  # a storage tells nobody that something was written
            pause = min(1.5 * pause, _LOOK_EVERY_S)
        self._rungs = self._rungs._replace(passed=rung)

    def _is_to_leave(self) -> bool:
        """A program that has never asked is ended by the signal that says so."""
        return elastic.has_asked() if self._where.is_command else elastic.is_asked()

    def _read(self) -> Rungs | None:
        try:
            return read(self._store, self._where.gang)
        except (StorageError, OSError):
            return self._rungs


_trial: tuple[context.Context, _Trial] | None = None


def trial_here(where: context.Context) -> _Trial:
    global _trial
    if _trial is None or _trial[0] is not where:
        _trial = where, _Trial(where)
    return _trial[1]


def _key(gang: str) -> str:
    return f"{gang}/rungs.json"
