"""A batch that follows its input, as its driver sees it: a `Run` without an end, to which every look may add parts.

How far behind it is, is told as `lag_s`: how long ago, at most, the oldest row came that has no answer yet; or, when
all have one, what that was for those that were answered last. `backlog` is how many rows wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from llmsched.data import questions
from llmsched.data.growth import Growth
from llmsched.data.parts import File, Part, Reader, cut
from llmsched.data.rows import DataError
from workloads.batch.ledger import BadRow, Done, Plan
from workloads.batch.work import LOOKED_AT, Run, output_of, place_of_input
from workloads.sources import BadInput

_PACE_S = 60.0  # over which rows_per_s is taken


class Stream(Run):
    """Raises BadInput. `clock` gives Unix time."""

    def __init__(self, order: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        self._clock, self._batch = clock, order["spec"]["batch"]
        super().__init__(order)
        given = self._batch["input"]
        self._place = place_of_input(order)
        self._growth = Growth(self._place, given["path"], self.plan.files, given.get("encoding"), given.get("split"))
        self._waiting = {part: self.plan.files[part.file].since for part in self.todo}
        self._parts, self._last_lag = len(self.plan.parts()), 0.0
        self._pace: list[tuple[float, int]] = []
        for index, file in enumerate(self.plan.files):
            self._set_aside(index, file)

    @property
    def look_every_s(self) -> float:
        """Twice in the time that is promised: what comes just after a look still has half of it."""
        return float(self._batch["follow"]) / 2

    def look(self) -> list[Part]:
        """The parts that are new."""
        known = len(self.plan.files)
        try:
            found = self._growth.look(self._clock())
            if not found:
                return []
            columns = self.plan.columns or self._columns_of([*self.plan.files, *found], known)
        except DataError as error:
            raise BadInput(str(error)) from error
        if self._batch["input"]["on_bad_row"] == "refuse" and (broken := next((one for one in found if one.why), None)):
            raise BadInput(f"data set {self._batch['input']['path']}: {broken.why} (on_bad_row: skip sets it aside)")
        self.plan = self._ledger.add(self.plan, found, columns)
        for index, file in enumerate(found, known):
            self._set_aside(index, file)
        new = cut(self.plan.files, self.plan.part_rows, known, self._parts)
        self._parts += len(new)
        self._waiting |= {part: self.plan.files[part.file].since for part in new}
        return new

    def answered(self, part: Part, done: Done) -> None:
        self._last_lag = self._clock() - self._waiting.pop(part)
        self.took(done)

    def numbers(self) -> dict[str, Any]:
        now = self._clock()
        oldest = min(self._waiting.values(), default=None)
        self._pace = [one for one in self._pace if one[0] > now - _PACE_S] or [(now, self.rows)]
        since, before = self._pace[0]
        self._pace.append((now, self.rows))
        said: dict[str, Any] = {"step": self.rows + self.bad_rows, "unit": "rows"}
        said |= {"lag_s": round(self._last_lag if oldest is None else now - oldest, 3)}
        said |= {"backlog": sum(part.rows for part in self._waiting)}
        said |= {"rows_per_s": round((self.rows - before) / (now - since), 2) if now > since else 0.0}
        return {**said, "bad_rows": self.bad_rows} if self.bad_rows else said

    def _planned(self) -> Plan:
        return Plan([], int(self._batch["batch_size"]))

    def _check(self) -> None:
        """What is left to do is read from files that may have grown."""

    def _set_aside(self, index: int, file: File) -> None:
        """A whole file that cannot be read is a bad row, of number 0."""
        if file.why:
            bad = [BadRow(file.name, 0, file.why)]
            output_of(self._order).name_bad(f"file-{index:06d}", bad)
            self._count(Done(0, bad))

    def _columns_of(self, files: list[File], first: int) -> dict[str, str]:
        """Of the first rows that ever came. Raises DataError, as long as they have not what a model reads."""
        if self._batch.get("map"):
            return {}
        reader, given = Reader(self._place, files, self._batch["input"].get("encoding")), self._batch["input"]
        some = (Part(0, index, 0, min(files[index].rows, LOOKED_AT)) for index in range(first, len(files)))
        rows = [row for part in some for _, row in reader.read(part) if isinstance(row, dict)]
        if not rows:
            return {}
        there = dict.fromkeys(name for row in rows for name in row)
        return questions.columns_of(self._batch["task"], there, given.get("columns") or {}, given["path"])
