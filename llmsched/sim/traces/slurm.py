"""Jobs from Slurm's accounting: what `sacct --parsable2` prints, a header and `|` between values (see COMMAND).

Jobs that never ran, asked for no GPU or have times that contradict each other are counted and left out, and the count
is told; so a job that was cancelled while it waited is left out, and one that was cancelled while it ran is a job. A
job on two types of GPU keeps their sum and no flavor, and is counted too: a trace names one flavor a job. Members of
arrays (`123_4`) and parts of het jobs (`123+0`) are jobs of their own, steps (`123.batch`) none. With `--duplicates` a
requeued job stands in several rows: its later runs become `123#2`, `123#3`. Times are local, as sacct prints them; the
run time is Elapsed where that is printed, which knows of changed clocks and of suspended jobs, else End less Start.
Knows no scheduler.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job

COMMAND = (  # without -S, sacct prints the jobs of today
    "sacct -a -X -S now-30days --parsable2 "
    "-o JobID,User,Account,Partition,Submit,Start,End,ElapsedRaw,TimelimitRaw,AllocTRES"
)
MOST_GPUS = 100_000  # of one job
CLOCKS_CHANGE_S = 3600.0  # in autumn End less Start is an hour less than what went by
_DIGITS = "[0-9]{1,12}"  # a number that Slurm could have printed
_NUMBER = re.compile(rf"-?{_DIGITS}\Z")
_GPUS = re.compile(r"(?:^|,)gres/gpu(?::([^=,]+))?=([0-9]+)")
_NO_FLAVOR = re.compile(r"[^\w.+-]+")  # what `--nodes` takes for the end of a name
_CLOCK = re.compile(rf"(?:({_DIGITS})-)?(?:({_DIGITS}):)?({_DIGITS}):({_DIGITS})(?:\.[0-9]+)?\Z")  # [days-][hours:]m:s


@dataclass(frozen=True, slots=True)
class Imported:
    jobs: list[Job]
    left_out: dict[str, int]  # why -> how many
    changed: dict[str, int] = field(default_factory=dict)  # what could not be kept of a job -> of how many


def parse(text: str, name: str) -> Imported:
    """Times become seconds since the first submission. Raises SpecError naming row and column."""
    reader = _reader(text, name)
    found: list[tuple[float, float, dict[str, str], int, str | None, int]] = []
    left_out, changed, runs, names = Counter[str](), Counter[str](), Counter[str](), set[str]()
    unreadable: SpecError | None = None
    for row in _rows(reader):
        where = f"{name}:{reader.line_num}"
        if row is None:
            left_out["cannot be read as a row"] += 1
            continue
        if None in row or None in row.values():
            left_out["has more or fewer values than the header"] += 1
            continue
        if not row["JobID"].strip():
            left_out["has no JobID"] += 1
            continue
        if "." in row["JobID"]:
            continue  # a step of a job, not a job
        gpus, flavors = _gpus(row.get("AllocTRES") or row.get("ReqTRES") or "")
        try:
            submit, start, end = (_stamp(row[column], column, where) for column in ("Submit", "Start", "End"))
            elapsed = _elapsed(row, where)
        except SpecError as error:  # of one row; where it is all of them, the first is told
            unreadable = unreadable or error
            left_out["has a time that cannot be read"] += 1
            continue
        why = "" if gpus else "no GPU"
        if gpus > MOST_GPUS:
            why = f"has more than {MOST_GPUS:,} GPUs"
        if submit is None or start is None:
            why = "never started"
        elif end is None:
            why = "still running"
        else:
            seconds = end - start if elapsed is None else elapsed
            if submit > start or seconds < 0 or seconds > end - start + CLOCKS_CHANGE_S:
                why = why or "its times contradict each other"
            why = why or ("" if seconds > 0 else "ran for no time")
        if why:
            left_out[why] += 1
            continue
        assert submit is not None
        row["JobID"] = _name_of_run(row["JobID"], runs, names)
        if len(flavors) > 1:
            changed["ran on two types of GPU: their sum, of any flavor"] += 1
        flavor = flavors[0] if len(flavors) == 1 else None
        found.append((submit, seconds, row, gpus, flavor, reader.line_num))
    if not found and unreadable is not None:
        raise unreadable
    if not found:
        raise SpecError("no job in it ran on a GPU.", where=name, code="bad_trace", hint=f"Print it with: {COMMAND}")
    first = min(submit for submit, *_ in found)
    jobs = [
        Job(
            id=row["JobID"],
            submit_s=submit - first,
            gpus=gpus,
            runtimes=((gpus, seconds),),
            queue=row.get("Account") or row.get("Partition") or "default",
            user=row.get("User") or "",
            flavor=flavor,
            estimated_s=_limit(row),
            row=line,
        )
        for submit, seconds, row, gpus, flavor, line in found
    ]
    return Imported(sorted(jobs, key=lambda job: job.submit_s), left_out, changed)


def _name_of_run(job: str, runs: Counter[str], names: set[str]) -> str:
    """Its own, or `job#2` and so on for later runs of it, whatever other jobs are called."""
    runs[job] += 1
    name = job
    while name in names:
        runs[job] = max(runs[job], 2)
        name = f"{job}#{runs[job]}"
        runs[job] += name in names
    names.add(name)
    return name


def _reader(text: str, name: str) -> csv.DictReader[str]:
    """Raises SpecError where a column is missing, or nothing is a table."""
    # A line ends where any system ends one: a row with such an end inside is two that are cut off.
    reader = csv.DictReader(io.StringIO(text, newline=None), delimiter="|", quoting=csv.QUOTE_NONE)
    try:
        columns = list(reader.fieldnames or ())
    except csv.Error as error:
        raise SpecError(
            f"this is no table: {error}.", where=f"{name}:1", code="bad_trace", hint=f"Print it with: {COMMAND}"
        ) from None
    missing = [column for column in ("JobID", "Submit", "Start", "End") if column not in columns]
    if not missing and not {"AllocTRES", "ReqTRES"} & set(columns):
        missing = ["AllocTRES"]
    if missing:
        raise SpecError(
            f"column {', '.join(missing)} is missing.",
            where=f"{name}:1",
            code="bad_trace",
            hint=f"Print it with: {COMMAND}",
        )
    return reader


def _rows(reader: csv.DictReader[str]) -> Iterator[dict[str, str] | None]:
    """None for each that is no row."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None


def _gpus(tres: str) -> tuple[int, list[str]]:
    """GPUs and their types of a TRES list. Sites print the sum, the types, or both: the larger count is all of them."""
    plain, types = 0, Counter[str]()
    for name, count in _GPUS.findall(tres):
        if name:
            types[_NO_FLAVOR.sub("-", name).upper()] += _count(count)
        else:
            plain = _count(count)
    return max(plain, types.total()), [name for name, count in types.items() if count]


def _count(digits: str) -> int:
    return int(digits) if _NUMBER.match(digits) else MOST_GPUS + 1


def _stamp(text: str, column: str, where: str) -> float | None:
    if not text or text in ("Unknown", "None"):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f'column {column}: "{text}" is not a time such as 2026-11-21T14:03:00.', where=where, code="bad_trace"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _elapsed(row: dict[str, str], where: str) -> float | None:
    """None where it is not printed."""
    for column in ("ElapsedRaw", "Elapsed"):
        text = row.get(column)
        if text:
            found = float(text) if _NUMBER.match(text) else _clock_s(text)
            if found is None:
                raise SpecError(
                    f'column {column}: "{text}" is not a length such as 1-02:03:04.', where=where, code="bad_trace"
                )
            return found
    return None


def _clock_s(text: str) -> float | None:
    found = _CLOCK.match(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _limit(row: dict[str, str]) -> float | None:
    """Seconds of TimelimitRaw (minutes) or Timelimit; None for UNLIMITED and Partition_Limit."""
    minutes = row.get("TimelimitRaw") or ""
    if _NUMBER.match(minutes):
        return max(float(minutes), 0.0) * 60 or None
    return _clock_s(row.get("Timelimit") or "") or None
