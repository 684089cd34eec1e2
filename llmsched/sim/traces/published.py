"""Traces that research published in columns of their own, as jobs of ours: Gavel, Chronus and Alibaba's openb.

Each reader says which columns it needs; rows that no replay of whole GPUs can mean are counted and left out. Knows no
scheduler.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping

from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job
from llmsched.sim.traces.slurm import Imported
from llmsched.sim.traces.table import fastest

MINUTE = 60.0
SCATTERED = "_unconsolidated"  # its rows of GPUs on several machines
Row = Mapping[str, str]
Read = Callable[[Row], "Job | str"]  # a job, or why the row is left out


def gavel(text: str, name: str, profiles: str) -> Imported:
    """Gavel (OSDI 2020): work is `total_steps` at the measured steps per second of `profiles` (columns gpu, job_type,
    num_gpus, steps_per_s), on each kind of GPU that is measured there. Raises SpecError naming the row."""
    speeds: dict[tuple[str, int], dict[str, float]] = {}
    for number, row in _rows(profiles, "--profiles", ("gpu", "job_type", "num_gpus", "steps_per_s")):
        size, speed = _number(row, "num_gpus", "--profiles", number), _number(row, "steps_per_s", "--profiles", number)
        if speed > 0 and not row["gpu"].endswith(SCATTERED):
            speeds.setdefault((row["job_type"], round(size)), {})[row["gpu"].upper()] = speed
    if not speeds:
        raise SpecError("has no row with a speed.", where="--profiles", code="bad_trace")

    def job(row: Row) -> Job | str:
        size = round(float(row["num_gpus"]))
        known = speeds.get((row["job_type"], size))
        if not known:
            return "no speed measured for its kind at its size"
        steps = float(row["total_steps"])
        by_flavor = tuple((gpu, ((size, steps / speed),)) for gpu, speed in known.items())
        return Job(
            id=f"{row['vc']}-{row['job_id']}" if row.get("vc") else row["job_id"],
            submit_s=float(row["submit_s"]), gpus=size, runtimes=fastest(by_flavor),
            queue=row.get("vc") or "default",
            model=row["job_type"], steps=steps, by_flavor=by_flavor,
        )  # fmt: skip

    return _read(text, name, ("job_id", "submit_s", "num_gpus", "job_type", "total_steps"), job)


def chronus(text: str, name: str) -> Imported:
    """Chronus (SoCC 2021): `submit_time` and `duration` are taken to be minutes. Its deadlines are not used."""

    def job(row: Row) -> Job:
        gpus = round(float(row["num_gpus"]))
        return Job(
            id=row["job_id"], submit_s=float(row["submit_time"]) * MINUTE, gpus=gpus,
            runtimes=((gpus, float(row["duration"]) * MINUTE),), queue=row.get("vc") or "default",
            model=row.get("model", ""), steps=float(row["iterations"]) if row.get("iterations") else None,
        )  # fmt: skip

    return _read(text, name, ("job_id", "submit_time", "num_gpus", "duration"), job)


def openb(text: str, name: str) -> Imported:
    """Alibaba openb (ATC 2023): pods from `scheduled_time` to `end_s`. Those with a share of a GPU are left out."""

    def job(row: Row) -> Job | str:
        gpus = round(float(row["num_gpu"]))
        if gpus and float(row["gpu_milli"]) < 1000:
            return "a share of a GPU"
        if not row["scheduled_time"]:
            return "never started"
        seconds = float(row["end_s"]) - float(row["scheduled_time"])
        return Job(
            id=row["job_id"], submit_s=float(row["submit_s"]), gpus=gpus, runtimes=((gpus, seconds),),
            queue=row.get("qos") or "default",
        )  # fmt: skip

    return _read(text, name, ("job_id", "num_gpu", "gpu_milli", "submit_s", "end_s", "scheduled_time"), job)


def _read(text: str, name: str, needed: tuple[str, ...], read: Read) -> Imported:
    jobs: list[Job] = []
    left_out: dict[str, int] = {}
    for number, row in _rows(text, name, needed):
        try:
            found = read(row)
        except (TypeError, ValueError) as error:
            raise SpecError(f"{error}.", where=f"{name}:{number}", code="bad_trace") from None
        if isinstance(found, Job) and not found.gpus:
            found = "no GPU"
        elif isinstance(found, Job) and not found.duration_s:
            found = "ran for no time"
        if isinstance(found, str):
            left_out[found] = left_out.get(found, 0) + 1
        elif found.gpus < 1 or found.submit_s < 0 or found.runtimes[0][1] <= 0:
            raise SpecError(f"job {found.id} has no GPU, no run time or a negative time.", where=f"{name}:{number}")
        else:
            jobs.append(found)
    if not jobs:
        raise SpecError("no row of it can be replayed.", where=name, code="bad_trace")
    return Imported(sorted(jobs, key=lambda job: job.submit_s), left_out)


def _rows(text: str, name: str, needed: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """(line, row) of a CSV with a header that has these columns."""
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in needed if column not in (reader.fieldnames or ())]
    if missing:
        raise SpecError(f"column {', '.join(missing)} is missing.", where=f"{name}:1", code="bad_trace")
    yield from ((reader.line_num, row) for row in reader)


def _number(row: Row, column: str, name: str, number: int) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise SpecError(f'column {column}: "{row[column]}" is not a number.', where=f"{name}:{number}") from None
