"""PNG plots of a run: load over time, and how completion times and waits are spread. Needs matplotlib (optional)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llmsched.sim.provider import gpus_over_time
from llmsched.sim.recorder import Recorder
from llmsched.sim.simulator import Run


def write(out: Path, run: Run, recorder: Recorder) -> list[str]:
    """Names of the files written into `out`."""
    done = [each for each in run.outcomes if each.finished_s is not None]
    jct = sorted(each.finished_s - each.job.submit_s for each in done if each.finished_s is not None)
    wait = sorted(each.finished_s - each.job.submit_s - each.served_s for each in done if each.finished_s is not None)
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    hours = [at / 3600 for at, _, _ in recorder.load]
    axes.step(hours, [held for _, held, _ in recorder.load], where="post", label="GPUs held")
    axes.step(hours, [waiting for _, _, waiting in recorder.load], where="post", label="jobs waiting")
    there = gpus_over_time(run.stays)
    axes.step(
        [at / 3600 for at, _ in there], [gpus for _, gpus in there], where="post", ls=":", c="grey", label="GPUs there"
    )
    axes.set(xlabel="hours", title="Load")
    axes.legend()
    figure.savefig(out / "load.png", dpi=120)
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for values, label in ((jct, "completion time"), (wait, "wait")):
        share = [(index + 1) / len(values) for index in range(len(values))]
        axes.step([max(value, 1.0) for value in values], share, where="post", label=label)
    axes.set(xscale="log", xlabel="seconds (at least 1)", ylabel="share of jobs", title="How long jobs took and waited")
    axes.legend()
    figure.savefig(out / "jobs.png", dpi=120)
    return ["load.png", "jobs.png"]
