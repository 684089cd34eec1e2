"""What a run leaves behind with `--out`: report, jobs, waits, a timeline and, where matplotlib is, plots."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from llmsched.errors import RequestError, SpecError
from llmsched.sim import timeline
from llmsched.sim.recorder import Recorder
from llmsched.sim.simulator import Run


def check(out: Path) -> None:
    """Whether `out` is, or could become, a folder to write into; makes nothing. Raises SpecError."""
    there = next((path for path in (out, *out.absolute().parents) if path.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written into" if there.is_dir() else "is not a folder"
        raise SpecError(f"{there} {why}.", where="--out", hint="Name a folder; it is made if it is not there.")


def write(out: Path, run: Run, figures: dict[str, Any], recorder: Recorder) -> list[str]:
    """Names of the files written into `out`. Raises RequestError when the folder cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
        _jobs(out / "jobs.csv", run)
        _waits(out / "waits.csv", recorder)
        (out / "timeline.html").write_text(timeline.page(run, figures, recorder))
    except OSError as error:
        raise RequestError(f"cannot write into {out}: {error.strerror}.", code="file") from None
    written = ["report.json", "jobs.csv", "waits.csv", "timeline.html"]
    try:
        from llmsched.sim import plots
    except ImportError:  # matplotlib is optional: pip install llmsched[plots]
        return written
    return [*written, *plots.write(out, run, recorder)]


def _jobs(path: Path, run: Run) -> None:
    """One row per job: what became of it."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(
            ("job_id", "queue", "num_gpus", "submit_s", "first_start_s", "finished_s", "wait_s", "starts", "why")
        )
        for each in run.outcomes:
            wait = None if each.finished_s is None else each.finished_s - each.job.submit_s - each.served_s
            numbers = (each.job.submit_s, each.first_start_s, each.finished_s, wait)
            shown = ["" if number is None else f"{number:.10g}" for number in numbers]
            rows.writerow((each.job.id, each.job.queue, each.job.gpus, *shown, each.starts, each.why))


def _waits(path: Path, recorder: Recorder) -> None:
    """One row per reason a job waited for, in order of time."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("job_id", "from_s", "to_s", "code", "why"))
        for each in sorted(recorder.waits, key=lambda wait: (wait.start, wait.gang)):
            start, end = (f"{number:.10g}" for number in (each.start, each.end))
            rows.writerow((each.gang.rpartition("/")[0], start, end, each.code, each.message))
