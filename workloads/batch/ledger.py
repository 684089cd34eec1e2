"""What a batch run knows of itself, in the storage: its plan, made once, and the parts that are done.

    <gang>/batch/plan.json            the files with their rows and sizes, the size of a part, the columns that are read
    <gang>/batch/done/<part>.json     how many rows have an answer; which have none, and why
    <gang>/batch/more/<look>.json     of a batch that follows its input: the files that a look found, and the columns

The plan is kept for the whole run, so that a part means the same rows in every attempt. A file that has changed since
is refused: its parts would mean other rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.data.media import folder_of
from llmsched.data.parts import File, Part, cut, marks_of
from llmsched.runtime.storage import Storage
from workloads.sources import BadInput


class BadRow(NamedTuple):
    file: str
    row: int
    why: str


@dataclass(frozen=True)
class Plan:
    """`columns` are those that a model reads, by role. `part_rows` is what the parts were cut at. `looks`: so many were
    added to what it began with; parts keep their numbers then."""

    files: list[File]
    part_rows: int
    columns: dict[str, str] = field(default_factory=dict)
    looks: int = 0

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def parts(self) -> list[Part]:
        return cut(self.files, self.part_rows)

    def with_more(self, files: list[File], columns: dict[str, str]) -> Plan:
        return replace(self, files=[*self.files, *files], columns=columns, looks=self.looks + 1)

    def check(self, place: Path, path: str) -> None:
        """Raises BadInput when a file is no longer the one that was planned with."""
        folder = folder_of(place)
        for file in self.files:
            try:
                size = (folder / file.name).stat().st_size
                marks = marks_of(folder / file.name, file.size) if file.marks and size == file.size else file.marks
            except OSError as error:
                raise BadInput(f"data set {path}: {file.name} cannot be read any more: {error.strerror}") from error
            if size != file.size:
                raise BadInput(
                    f"data set {path}: {file.name} has changed since this run began (it had {file.size:,} bytes, and "
                    f"has {size:,}). Run it as a new one: llmsched apply --again"
                )
            if marks != file.marks:
                raise BadInput(
                    f"data set {path}: {file.name} has changed since this run began (its {size:,} bytes are not those "
                    "that it had). Run it as a new one: llmsched apply --again"
                )


@dataclass(frozen=True)
class Done:
    """What became of a part: `rows` have an answer, the others are `bad`. `seconds` of one worker. `types` of the
    columns of its answers, where they are a table."""

    rows: int
    bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0
    types: str = ""

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str | bytes) -> Done:
        data: dict[str, Any] = json.loads(text)
        return cls(data["rows"], [BadRow(*one) for one in data["bad"]], data["seconds"], data.get("types", ""))


class Ledger:
    """Of one gang. Any worker notes its parts, only the driver plans; both may do so again."""

    def __init__(self, storage: str, gang: str) -> None:
        self._storage, self._key = Storage.at(storage), f"{gang}/batch"

    def plan(self) -> Plan | None:
        """None: the run has not begun yet."""
        try:
            found = json.loads(self._storage.read(f"{self._key}/plan.json"))
        except FileNotFoundError:
            return None
        return self.newest(Plan(**{**found, "files": [File(*one) for one in found["files"]]}))

    def newest(self, plan: Plan) -> Plan:
        """`plan` with what has been found since."""
        while True:
            try:
                found = json.loads(self._storage.read(self._look(plan)))
            except FileNotFoundError:
                return plan
            plan = plan.with_more([File(*one) for one in found["files"]], found["columns"])

    def add(self, plan: Plan, files: list[File], columns: dict[str, str]) -> Plan:
        """`plan`, which is the newest, with what a look found. Only the driver looks."""
        added = json.dumps({"files": files, "columns": columns}).encode()
        self._storage.write_if_absent(self._look(plan), added)
        return self.newest(plan)

    def _look(self, plan: Plan) -> str:
        return f"{self._key}/more/{plan.looks:06d}.json"

    def begin(self, plan: Plan) -> Plan:
        """Keep `plan`, or give the one that is kept already."""
        self._storage.write_if_absent(f"{self._key}/plan.json", json.dumps(asdict(plan)).encode())
        kept = self.plan()
        assert kept is not None
        return kept

    def note(self, part: Part, done: Done) -> None:
        self._storage.write(f"{self._key}/done/{part.number:06d}.json", done.dump().encode())

    def done(self) -> dict[int, Done]:
        """By the number of the part."""
        names = self._storage.list(f"{self._key}/done")
        return {int(Path(name).stem): Done.of(self._storage.read(name)) for name in names}
