"""A batch run, as who works on it sees it: a `Run` knows what is left to do, a `Worker` does a part of it.

The driver of an attempt has the Run, each member a Worker. Both are given the LaunchOrder as JSON data and stand in the
workload's own code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from llmsched.data import questions, reading
from llmsched.data.media import beside, folder_of
from llmsched.data.parts import Part, Reader, check_split, count, named_in
from llmsched.data.rows import Bad, BadRows, DataError, Row
from llmsched.runtime import artifact
from llmsched.runtime.storage import Storage
from workloads.batch.answers import Answers, answers_of, blaming
from workloads.batch.ledger import BadRow, Done, Ledger, Plan
from workloads.batch.output import Output, joined
from workloads.datasets import place_of
from workloads.sources import BadInput

MOST_ROWS, MOST_BATCHES = 1000, 16  # of a part, which is what a crash undoes, and what appears at once
PARTS_A_WORKER = 8  # at least, so that workers end together
MOST_PARTS = 20_000
_ASKED_AT_ONCE = 2048  # of the questions that a server takes in one request
LOOKED_AT = 200  # first rows, for the names of the columns
NONE_ANSWERED = 100  # rows that failed, and not one that did not: the run is wrong, not the rows


class Run:
    """What the driver of an attempt knows: what is left to do, and how far it is. Raises BadInput."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order, self._ledger = order, ledger_of(order)
        plan = self._ledger.plan()
        if plan is None:
            output_of(order).begin()
            plan = self._ledger.begin(self._planned())
        self.plan = plan
        self._check()
        done = self._ledger.done()
        self.todo = [part for part in plan.parts() if part.number not in done]
        self.rows = self.bad_rows = 0
        self._first_bad: BadRow | None = None
        for number in sorted(done):
            self._count(done[number])
        self._before, self._began = self.rows, time.monotonic()

    def took(self, done: Done) -> None:
        """A part is done. Raises BadInput once so many rows have no answer, and not one has, that the run is wrong."""
        self._count(done)
        if not self.rows and self.bad_rows >= NONE_ANSWERED:
            raise BadInput(self._none_answered())

    def numbers(self) -> dict[str, Any]:
        """As progress shows them: rows are its steps."""
        per_s = (self.rows - self._before) / max(time.monotonic() - self._began, 1e-9)
        step = self.rows + self.bad_rows
        said = {"step": step, "total_steps": self.plan.rows, "unit": "rows", "rows_per_s": round(per_s, 2)}
        return {**said, "bad_rows": self.bad_rows} if self.bad_rows else said

    def end(self) -> None:
        """Every part is done: the answers are the result. Raises BadInput when no row has one."""
        done = self._ledger.done()
        output = output_of(self._order)
        types = {number: one.types for number, one in done.items()}
        output.finish([row for number in sorted(done) for row in done[number].bad], types)
        if not self.rows:
            raise BadInput(self._none_answered())
        seconds = sum(one.seconds for one in done.values())
        artifact.write_result(artifact=output.uri)
        artifact.metrics(
            rows=self.rows, bad_rows=self.bad_rows, rows_per_worker_s=round(self.rows / max(seconds, 1e-9), 2)
        )

    def _planned(self) -> Plan:
        return _plan(self._order)

    def _check(self) -> None:
        self.plan.check(place_of_input(self._order), self._order["spec"]["batch"]["input"]["path"])

    def _count(self, done: Done) -> None:
        self.rows += done.rows
        self.bad_rows += len(done.bad)
        self._first_bad = self._first_bad or next(iter(done.bad), None)

    def _none_answered(self) -> str:
        first = self._first_bad
        assert first is not None
        return f"not one of {self.bad_rows:,} rows has an answer: row {first.row:,} of {first.file} {first.why}"


def ledger_of(order: Mapping[str, Any]) -> Ledger:
    return Ledger(order["storage"], order["gang"])


def output_of(order: Mapping[str, Any]) -> Output:
    batch = order["spec"]["batch"]
    uri = batch.get("output") or Storage.at(order["storage"]).uri_of(f"{order['gang']}/artifact/rows")
    return Output(uri, batch["format"])


class Worker:
    """Of one member: loads what answers once, then does part after part of the plan. Raises BadInput, UserError."""

    def __init__(self, order: Mapping[str, Any], member: Mapping[str, Any]) -> None:
        self._batch, self._ledger, self._output = order["spec"]["batch"], ledger_of(order), output_of(order)
        plan = self._ledger.plan()
        assert plan is not None, "the run has begun"
        self._plan = plan
        place = place_of_input(order)
        self._folder = folder_of(place)
        self._reader = Reader(place, plan.files, self._batch["input"].get("encoding"))
        # One of a batch that follows its input may be there before its rows are.
        columns = dict(plan.columns)
        self._columns = columns
        self._answers: Answers = blaming(answers_of(self._batch, columns, member, order["inputs"]))

    def do(self, part: Part) -> Done:
        """Answer its rows, write them, and note it: in this order, so what is noted is there. Raises BadInput for a row
        without an answer, where the spec refuses those."""
        if part.file >= len(self._plan.files):
            self._plan = self._ledger.newest(self._plan)
            self._reader.files = self._plan.files
            self._columns.update(self._plan.columns)
        began, file = time.monotonic(), self._plan.files[part.file].name
        answered: list[Row] = []
        bad: list[BadRow] = []
        size = min(int(self._batch["batch_size"]), _ASKED_AT_ONCE)
        rows, folder = self._reader.read(part), beside(self._folder, file)
        while some := list(islice(rows, size)):
            for (number, row), answer in zip(some, self._answers_to([row for _, row in some], folder), strict=True):
                if isinstance(answer, Bad):
                    bad.append(BadRow(file, number, answer.why))
                else:
                    answered.append(joined(f"{file}#{number}", row, answer, self._batch.get("keep")))
            if bad and self._batch["input"]["on_bad_row"] == "refuse":
                raise BadInput(
                    f"data set {self._batch['input']['path']}: row {bad[0].row:,} of {file} {bad[0].why} "
                    "(on_bad_row: skip sets such rows aside)"
                )
        types = self._output.write(part.number, answered)
        if self._batch.get("follow"):
            self._output.name_bad(f"{part.number:06d}", bad)
        done = Done(len(answered), bad, round(time.monotonic() - began, 3), types)
        self._ledger.note(part, done)
        return done

    def _answers_to(self, rows: list[Any], folder: Path) -> list[Row | Bad]:
        """Rows that cannot be read are not asked about."""
        asked = [row for row in rows if isinstance(row, dict)]
        found = iter(self._answers(asked, folder) if asked else [])
        return [next(found) if isinstance(row, dict) else _unread(row) for row in rows]


def _unread(row: Any) -> Bad:
    return row if isinstance(row, Bad) else Bad("is not an object with named fields")


def _plan(order: Mapping[str, Any]) -> Plan:
    """Made from the files as they are now. Raises BadInput."""
    batch, place = order["spec"]["batch"], place_of_input(order)
    given = batch["input"]
    path, encoding, split = given["path"], given.get("encoding"), given.get("split")
    workers = order["spec"].get("workers") or {"max": 1}
    try:
        check_split(place, path, split)
        files = count(place, path, encoding=encoding, split=split)
        columns: dict[str, str] = {}
        first = reading.read(place, path, BadRows(path, "skip"), encoding=encoding, split=split, limit=LOOKED_AT)
        there = dict.fromkeys(name for row in first for name in row)
        if missing := [name for name in batch.get("keep") or [] if name not in there]:
            questions.check_keep(missing, there | named_in(place, files, encoding), path)
        if not batch.get("map"):
            columns = questions.columns_of(batch["task"], there, given.get("columns") or {}, path)
    except DataError as error:
        raise BadInput(str(error)) from error
    return Plan(
        files, _part_rows(sum(file.rows for file in files), int(batch["batch_size"]), int(workers["max"])), columns
    )


def _part_rows(rows: int, batch_size: int, workers: int) -> int:
    share = -(-rows // (PARTS_A_WORKER * workers))
    return max(batch_size, -(-rows // MOST_PARTS), min(share, MOST_ROWS, MOST_BATCHES * batch_size))


def place_of_input(order: Mapping[str, Any]) -> Path:
    return place_of(order["spec"]["batch"]["input"]["path"], order["inputs"])
