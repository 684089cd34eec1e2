"""Reads a trace: a CSV (or .csv.gz) with a header, columns by name, as `llmsched sim run --help` says.

Every complaint names the row and the column. Nothing is guessed: a job without a usable run time is an error, not a
default. Knows no scheduler and no cluster.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job

Flavored = tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
LARGEST = 1 << 30  # bytes of a trace, unpacked
REQUIRED = ("job_id", "submit_s", "num_gpus")
_CURVE = re.compile(r"runtime_(\d+)_s$")
_CURVE_OF = re.compile(r"runtime_(\d+)_s:(\S+)$")  # on one kind of GPU


def read(path: Path, *, duration_column: str = "duration_s", elastic: tuple[int, int] | None = None) -> list[Job]:
    """All jobs by (submit_s, order in the file). `elastic` cuts every job to that range of sizes and, where a trace has
    no run-time curve, assumes linear speed-up inside it. Raises SpecError with file, row and column."""
    try:
        text = content(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError("no such trace.", where=str(path), hint="Give the path of a CSV file with a header.") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise SpecError(f"cannot be read as a CSV: {error}.", where=str(path)) from None
    return parse(text, str(path), duration_column=duration_column, elastic=elastic)


def parse(
    text: str, name: str, *, duration_column: str = "duration_s", elastic: tuple[int, int] | None = None
) -> list[Job]:
    rows = csv.DictReader(io.StringIO(text))
    columns = list(rows.fieldnames or ())
    curve = sorted((int(found[1]), column) for column in columns if (found := _CURVE.match(column)))
    of_flavors = _flavored(columns)
    if curve and of_flavors:
        raise SpecError(
            f"columns {curve[0][1]} and {next(iter(of_flavors.values()))[0][1]} contradict each other.",
            where=f"{name}:1",
            code="bad_trace",
            hint="Give run times either on any GPU or by flavor.",
        )
    wanted = [*REQUIRED, *([] if curve or of_flavors else [duration_column])]
    missing = [column for column in wanted if column not in columns]
    if missing:
        there = ", ".join(columns[:12]) or "nothing"
        raise SpecError(
            f"column {', '.join(missing)} is missing; the header has {there}.",
            where=f"{name}:1",
            code="bad_trace",
            hint="Needed: job_id, submit_s, num_gpus and duration_s (or --duration-column, or columns runtime_N_s, or "
            "runtime_N_s:FLAVOR).",
        )
    seen: dict[str, int] = {}
    jobs = []
    for row in _rows(rows, name):
        job = row.job(duration_column, curve, of_flavors, elastic)
        if job.id in seen:
            raise row.wrong(
                "job_id", f'"{job.id}" stands in row {seen[job.id]} already', "Give every job an id of its own."
            )
        seen[job.id] = row.number
        jobs.append(job)
    if not jobs:
        raise SpecError("the trace has a header but no jobs.", where=name, code="bad_trace")
    jobs.sort(key=lambda job: job.submit_s)  # stable: order in the file breaks ties
    return jobs


def write(jobs: list[Job], path: Path) -> None:
    """The same contract, for imported jobs. Where run times differ by flavor they take the place of durations."""
    curves = sorted(
        {(flavor, size) for job in jobs for flavor, known in job.by_flavor for size, _ in known},
    )
    first = ("job_id", "submit_s", "num_gpus")
    more = ("queue", "user", "priority", "flavor", "estimated_s", "model", "steps", "start_s", "leave_s")
    times = tuple(f"runtime_{size}_s:{flavor}" for flavor, size in curves) or ("duration_s",)
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow((*first, *times, *more))
        for job in jobs:
            of = {(flavor, size): seconds for flavor, known in job.by_flavor for size, seconds in known}
            took = [f"{of[key]:.10g}" if key in of else "" for key in curves] or [f"{job.duration_s:.10g}"]
            estimate = "" if job.estimated_s is None else f"{job.estimated_s:g}"
            steps = "" if job.steps is None else f"{job.steps:.10g}"
            each = (" ".join(f"{seconds:.10g}" for seconds in known) for known in (job.start_s, job.leave_s))
            about = (job.queue, job.user, job.priority, job.flavor or "", estimate, job.model, steps, *each)
            out.writerow((job.id, f"{job.submit_s:.10g}", job.gpus, *took, *about))


def content(path: Path) -> bytes:
    """Of a file that may be packed by gzip. Raises OSError, EOFError, and SpecError for more than LARGEST bytes."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if is_packed else path.open("rb") as stream:
        data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise SpecError(f"is larger than {LARGEST >> 20} MiB.", where=str(path), code="too_large")
    return data


class _Row:
    """One line, with complaints that say where it stands."""

    def __init__(self, values: Mapping[str, str | None], number: int, file: str) -> None:
        self.values = values
        self.number = number
        self.file = file

    def wrong(self, column: str, what: str, hint: str = "") -> SpecError:
        return SpecError(f"column {column}: {what}.", where=f"{self.file}:{self.number}", code="bad_trace", hint=hint)

    def text(self, *columns: str) -> str:
        return next((value.strip() for column in columns if (value := self.values.get(column))), "")

    def number_of(self, column: str, *, least: float = 0.0, above: bool = False) -> float:
        return self._number(column, self.text(column), least, above)

    def numbers_of(self, column: str) -> tuple[float, ...]:
        """Any number of them, with spaces between."""
        return tuple(self._number(column, text) for text in self.text(column).split())

    def _number(self, column: str, text: str, least: float = 0.0, above: bool = False) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self.wrong(column, f'"{text}" is not a number' if text else "is empty") from None
        if not math.isfinite(value):
            raise self.wrong(column, f"{text} is not finite")
        if value < least or (above and value <= least):
            raise self.wrong(column, f"{text} is {'not above' if above else 'less than'} {least:g}")
        return value

    def whole(self, column: str, *, least: int) -> int:
        value = self.number_of(column, least=least)
        if value != int(value):
            raise self.wrong(
                column, f"{self.text(column)} is not a whole number", "Fractions of a GPU are not simulated."
            )
        return int(value)

    def _known(self, columns: list[tuple[int, str]]) -> tuple[tuple[int, float], ...]:
        return tuple((size, self.number_of(column, above=True)) for size, column in columns if self.text(column))

    def _steps(self) -> float | None:
        column = next((name for name in ("steps", "total_steps") if self.text(name)), None)
        return self.number_of(column, above=True) if column else None

    def job(
        self,
        duration_column: str,
        curve: list[tuple[int, str]],
        of_flavors: Mapping[str, list[tuple[int, str]]],
        elastic: tuple[int, int] | None,
    ) -> Job:
        name = self.text("job_id")
        if not name:
            raise self.wrong("job_id", "is empty")
        gpus = self.whole("num_gpus", least=1)
        by_flavor: Flavored = ()
        if of_flavors:
            each = {flavor: self._known(columns) for flavor, columns in of_flavors.items()}
            by_flavor = tuple((flavor, known) for flavor, known in each.items() if known)
            if not by_flavor:
                raise self.wrong("runtime_N_s:FLAVOR", "none has a value: the job fits no size and no GPU")
            known = fastest(by_flavor)
        elif curve:
            known = self._known(curve)
            if not known:
                raise self.wrong(curve[0][1], "no column runtime_N_s has a value: the job fits no size")
        else:
            known = ((gpus, self.number_of(duration_column, above=True)),)
        low = self.whole("min_gpus", least=1) if self.text("min_gpus") else None
        high = self.whole("max_gpus", least=1) if self.text("max_gpus") else None
        if low is not None and high is not None and low > high:
            raise self.wrong("min_gpus", f"{low} is more than max_gpus, {high}")
        if elastic is not None:
            low, high = max(elastic[0], low or 1), min(elastic[1], high or elastic[1])
        runtimes = known if low is None and high is None else _cut(known, low or 1, high or known[-1][0])
        if by_flavor and runtimes != known:
            cut = ((flavor, _cut(known, low or 1, high or known[-1][0])) for flavor, known in by_flavor)
            by_flavor = tuple((flavor, known) for flavor, known in cut if known)
            runtimes = fastest(by_flavor) if by_flavor else ()
        if not runtimes:
            raise self.wrong("num_gpus", f"no size between {low} and {high} GPUs has a run time")
        return Job(
            id=name,
            submit_s=self.number_of("submit_s"),
            gpus=gpus,
            runtimes=runtimes,
            queue=self.text("queue", "vc") or "default",
            priority=self.whole("priority", least=0) if self.text("priority") else 50,
            user=self.text("user"),
            model=self.text("model", "job_type"),
            steps=self._steps(),
            flavor=self.text("flavor") or None,
            estimated_s=self.number_of("estimated_s", above=True) if self.text("estimated_s") else None,
            start_s=self.numbers_of("start_s"),
            leave_s=self.numbers_of("leave_s"),
            by_flavor=by_flavor,
            row=self.number,
        )


def fastest(by_flavor: Flavored) -> tuple[tuple[int, float], ...]:
    """The run times on the flavor on which the smallest size of all takes least time."""
    least = min(known[0][0] for _, known in by_flavor)
    return min((known for _, known in by_flavor if known[0][0] == least), key=lambda known: known[0][1])


def _flavored(columns: list[str]) -> dict[str, list[tuple[int, str]]]:
    """flavor -> (size, column), ascending, in the order in which the header has the flavors."""
    found: dict[str, list[tuple[int, str]]] = {}
    for column in columns:
        if (match := _CURVE_OF.match(column)) is not None:
            found.setdefault(match[2], []).append((int(match[1]), column))
    return {flavor: sorted(sizes) for flavor, sizes in found.items()}


def _cut(known: tuple[tuple[int, float], ...], low: int, high: int) -> tuple[tuple[int, float], ...]:
    """Sizes low..high: those of the curve, or with a single known size every size, at linear speed-up."""
    if len(known) > 1:
        return tuple((size, seconds) for size, seconds in known if low <= size <= high)
    size, seconds = known[0]
    return tuple((n, seconds * size / n) for n in range(low, high + 1))


def _rows(reader: csv.DictReader[str], file: str) -> Iterator[_Row]:
    for values in reader:
        if None in values:
            raise SpecError(
                f"has more values than the header has columns ({len(reader.fieldnames or ())}).",
                where=f"{file}:{reader.line_num}",
                code="bad_trace",
            )
        yield _Row(values, reader.line_num, file)
