"""The last numbers every gang reported, and what they say about the time that is left.

Numbers are for people: only the last of each matters, they are written along with whatever is committed next, and
losing some costs nothing. Steps, though, tell the scheduler when a gang will probably end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmsched import crossings, sanitize
from llmsched.core.facts import Estimated
from llmsched.core.state import State, Status
from llmsched.executors.port import Progress
from llmsched.store.tables import ProgressRow

log = logging.getLogger("llmsched.control")
ESTIMATE_EVERY_S = 30.0
WATCHED_FIRST_S = 5.0  # steps before this say more about warming up than about speed


@dataclass(slots=True)
class _Pace:
    attempt: int
    step: float
    at: float
    said_at: float


class ProgressBook:
    def __init__(self) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.crossed: dict[str, dict[str, crossings.Crossing]] = {}  # as the newest attempt counts them
        self.attempts: dict[str, int] = {}
        self._reported: dict[str, None] = {}  # gangs, since somebody last looked
        self._unwritten: dict[str, float] = {}
        self._paces: dict[str, _Pace] = {}
        self._over: list[str] = []  # gangs to forget once their last numbers are written

    def recall(self, rows: Iterable[ProgressRow]) -> None:
        """A row that cannot be read is as if it had not been written."""
        for row in rows:
            try:
                data = sanitize.loads(row.data)
            except ValueError as error:
                log.warning("the numbers of %s cannot be read: %s", row.gang, error)
                continue
            if isinstance(data, dict):
                self.latest[row.gang] = {name: _plain(value) for name, value in data.items()}
                self.attempts[row.gang] = row.attempt

    def see(self, state: State, seen: Progress, at: float) -> Estimated | None:
        """Take it in; a better idea of the time left when there is one. Reports of older attempts are ignored."""
        gang = state.gangs.get(seen.gang)
        if gang is None or gang.attempt != seen.attempt:
            return None
        if self.attempts.get(seen.gang) != seen.attempt:
            self.attempts[seen.gang] = seen.attempt
            self.latest[seen.gang], self.crossed[seen.gang] = {}, {}
        self._reported[seen.gang] = None
        self.crossed[seen.gang] = {**self.crossed.get(seen.gang, {}), **crossings.of(seen.data.get(crossings.NAME))}
        said = {name: _plain(value) for name, value in seen.data.items() if name != crossings.NAME}
        known = self.latest[seen.gang] | said
        self.latest[seen.gang] = {name: known[name] for name in list(known)[: sanitize.ITEMS_AT_MOST]}
        self._unwritten[seen.gang] = at
        return self._estimate(seen, at) if gang.status is Status.RUNNING else None

    def reported(self) -> list[str]:
        """Gangs that have reported since the last call."""
        gangs, self._reported = [*self._reported], {}
        return gangs

    def unwritten(self) -> list[ProgressRow]:
        """Rows of what is new since the last call."""
        rows = [
            ProgressRow(gang, self.attempts[gang], at, json.dumps(self.latest[gang], separators=(",", ":")))
            for gang, at in self._unwritten.items()
        ]
        self._unwritten.clear()
        for gang in self._over:
            for kept in (self.latest, self.crossed, self.attempts, self._paces):
                kept.pop(gang, None)
        self._over.clear()
        return rows

    def forget(self, gangs: Iterable[str]) -> None:
        """They have left the state; what was written of them stays in the store."""
        self._over += gangs

    def _estimate(self, seen: Progress, at: float) -> Estimated | None:
        step, total = seen.data.get("step"), seen.data.get("total_steps")
        if not isinstance(step, (int, float)) or not isinstance(total, (int, float)) or not step < total:
            return None
        pace = self._paces.get(seen.gang)
        if pace is None or pace.attempt != seen.attempt or step < pace.step:
            self._paces[seen.gang] = _Pace(seen.attempt, step, at, at + WATCHED_FIRST_S - ESTIMATE_EVERY_S)
            return None
        if step == pace.step or at - pace.said_at < ESTIMATE_EVERY_S:
            return None
        pace.said_at = at
        return Estimated(at, seen.gang, round((at - pace.at) / (step - pace.step) * (total - step), 1))


def _plain(value: Any) -> Any:
    """Numbers and short strings as JSON has them; a loss that is no number is shown as one."""
    if isinstance(value, (bool, int, float)):
        return sanitize.number(value)
    return None if value is None else sanitize.line(value, sanitize.NAME_AT_MOST)
