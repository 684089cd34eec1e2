"""One static HTML page: who held each GPU when, and why each job waited. No server, no script from elsewhere.

Names come from a trace, so they reach the page as JSON data only, never as markup.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from llmsched.core.resources import MILLI
from llmsched.sim.recorder import Recorder
from llmsched.sim.report import duration
from llmsched.sim.simulator import Run

MOST_BARS = 300_000  # beyond it the page says how much it leaves out


def page(run: Run, figures: dict[str, Any], recorder: Recorder) -> str:
    data = json.dumps(contents(run, figures, recorder), separators=(",", ":"))
    template = files("llmsched.sim").joinpath("timeline.html").read_text()
    return template.replace("__DATA__", data.replace("<", "\\u003c"))


def contents(run: Run, figures: dict[str, Any], recorder: Recorder) -> dict[str, Any]:
    """What the page draws. `bars` are (job, first GPU row, rows, start, end); `waits`, by job, (start, end, reason)."""
    number = {f"{each.job.id}/0": index for index, each in enumerate(run.outcomes)}
    replicas = sorted({stay.gang for stay in recorder.stays} - number.keys())  # of endpoints
    number |= {gang: index for index, gang in enumerate(replicas, len(number))}
    queue_of = {server.endpoint.workload.id: server.endpoint.workload.queue for server in run.servers}
    nodes = [*{stay.node.id: stay.node for stay in run.stays}.values()]
    top: dict[str, int] = {}
    rows: list[tuple[str, int, int]] = []
    for node in nodes:
        gpus = node.total.gpus_milli // MILLI
        top[node.id] = sum(count for *_, count in rows)
        rows.append((node.id + (f" {node.flavor}" if node.flavor else ""), top[node.id], gpus))
    free_at = {node.id: [0.0] * (node.total.gpus_milli // MILLI) for node in nodes}
    bars: list[tuple[int, int, int, float, float]] = []
    for stay in sorted(recorder.stays, key=lambda stay: (stay.start, stay.end, stay.gang)):
        for node_id, count in stay.nodes:
            lanes = free_at[node_id]
            taken = [i for i, until in enumerate(lanes) if until <= stay.start][:count]
            for lane in taken:
                lanes[lane] = stay.end
            for first, length in _runs(taken):
                bars.append((number[stay.gang], top[node_id] + first, length, round(stay.start, 1), round(stay.end, 1)))
    waits: dict[int, list[tuple[float, float, str]]] = {}
    for wait in recorder.waits:
        if wait.gang not in number:
            continue  # a replica that was called off before it began
        waits.setdefault(number[wait.gang], []).append((round(wait.start, 1), round(wait.end, 1), wait.message))
    return {
        "title": f"{figures['finished']:,} of {figures['jobs']:,} jobs on {figures['gpus']:,} GPUs",
        "facts": [
            ("average completion", duration(figures["avg_jct_s"])),
            ("average wait", duration(figures["avg_wait_s"])),
            ("makespan", duration(figures["makespan_s"])),
            ("utilisation", f"{100 * figures['utilisation']:.1f} %"),
            ("told", figures["told"]),
            ("paid", figures["paid"]),
            ("ordering", figures["policies"]["ordering"]),
        ],
        "jobs": [
            *(
                (each.job.id, each.job.queue, each.job.gpus, each.job.submit_s, each.finished_s)
                for each in run.outcomes
            ),
            *((gang, queue_of[gang.rpartition("/")[0]], 1, 0.0, None) for gang in replicas),
        ],
        "nodes": rows,
        "bars": bars[:MOST_BARS],
        "left_out": max(0, len(bars) - MOST_BARS),
        "waits": waits,
        "load": _thinned(recorder.load),
        "end": run.ended_s,
    }


def _runs(lanes: list[int]) -> list[tuple[int, int]]:
    """Neighbouring rows as (first, length)."""
    found: list[tuple[int, int]] = []
    for lane in lanes:
        if found and found[-1][0] + found[-1][1] == lane:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((lane, 1))
    return found


def _thinned(load: list[tuple[float, int, int]], most: int = 4000) -> list[tuple[float, int, int]]:
    step = max(1, len(load) // most)
    return load[::step]
