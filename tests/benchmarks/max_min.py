"""A peer for the heterogeneous row: max-min fairness over unlike GPUs in rounds, as Gavel (OSDI 2020) describes it.

    python tests/benchmarks/max_min.py TRACE --nodes 9x4:V100,9x4:P100,9x4:K80

A linear program gives each job its share of time on each kind of GPU, so that the worst normalised throughput is as
large as can be; it is solved anew when a job comes or ends. Every round the jobs furthest below their shares run. The
peer knows the speed of every job on every kind and no run times, and pays nothing to preempt or to move. Told nothing
of kinds (`--blind`) it takes all of them for equally fast. Jobs of one model and size are alike, so one row of the
program stands for all of them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import linprog

from llmsched.core.resources import MILLI
from llmsched.sim import fleet
from llmsched.sim.traces import table
from llmsched.sim.traces.job import Job

ROUND_S = 360.0  # Gavel's
REST = 1e-4  # worth of what is left over beside the worst share: enough that nothing is left idle


def shares(speeds: np.ndarray, sizes: np.ndarray, counts: np.ndarray, gpus: np.ndarray) -> np.ndarray:
    """Share of time of a job of each class on each kind. `speeds` (classes, kinds), 0 where it cannot run; `sizes` GPUs
    of a job, `counts` jobs of each class, `gpus` of each kind."""
    classes, kinds = speeds.shape
    equal = speeds @ gpus / gpus.sum()
    gain = speeds / equal[:, None] * sizes[:, None]
    worst = np.hstack([-_blocks(gain), np.ones((classes, 1))])  # the worst is at most that of any class
    time = np.hstack([_blocks(np.ones_like(speeds)), np.zeros((classes, 1))])  # nobody runs twice at once
    room = np.zeros((kinds, classes * kinds + 1))
    for kind in range(kinds):
        room[kind, kind : classes * kinds : kinds] = counts * sizes
    rest = REST * (gain * counts[:, None]).ravel() / counts.sum()
    found = linprog(
        -np.append(rest, 1.0),
        A_ub=np.vstack([worst, time, room]),
        b_ub=np.concatenate([np.zeros(classes), np.ones(classes), gpus]),
        bounds=[*((0.0, 0.0 if speed <= 0 else 1.0) for speed in speeds.ravel()), (0.0, None)],
        method="highs",
    )
    if found.status:
        raise SystemExit(f"the program of shares has no solution: {found.message}")
    return found.x[:-1].reshape(classes, kinds)


def _blocks(rows: np.ndarray) -> np.ndarray:
    """Row k of the result is row k of `rows`, at the columns of class k."""
    classes, kinds = rows.shape
    out = np.zeros((classes, classes * kinds))
    for number in range(classes):
        out[number, number * kinds : (number + 1) * kinds] = rows[number]
    return out


class Rounds:
    """Replays jobs; `left` is the fraction of each job still to do."""

    def __init__(self, jobs: Sequence[Job], gpus: Counter[str], blind: bool) -> None:
        self.jobs = jobs
        self.kinds = sorted(gpus)
        self.gpus = np.array([float(gpus[kind]) for kind in self.kinds])
        known = [{flavor: dict(curve) for flavor, curve in job.by_flavor} for job in jobs]
        took = [
            [times.get(kind, {}).get(job.gpus, np.inf) for kind in self.kinds]
            for job, times in zip(jobs, known, strict=True)
        ]
        self.speeds = 1.0 / np.array(took)
        self.sizes = np.array([job.gpus for job in jobs])
        self.told = np.where(self.speeds > 0, 1.0, 0.0) if blind else self.speeds
        rows = [(job.model, job.gpus) for job in jobs]
        number = {row: index for index, row in enumerate(dict.fromkeys(rows))}
        self.class_of = np.array([number[row] for row in rows])
        first = [rows.index(row) for row in number]
        self.class_told = self.told[first] / self.told[first].max(axis=1, keepdims=True)
        self.class_size = self.sizes[first].astype(float)

    def run(self) -> dict[str, float]:
        count = len(self.jobs)
        left, ended = np.ones(count), np.zeros(count)
        comes = np.array([job.submit_s for job in self.jobs])
        had = np.zeros((count, len(self.kinds)))  # seconds on each kind
        active = np.zeros(0, dtype=int)
        following, now, changed = 0, 0.0, True
        wants = np.zeros((0, len(self.kinds)))
        while following < count or len(active):
            arrived = following
            while following < count and comes[following] <= now:
                following += 1
            if following > arrived:
                active, changed = np.append(active, np.arange(arrived, following)), True
            if not len(active):
                now = max(now + ROUND_S, np.floor(comes[following] / ROUND_S) * ROUND_S)
                continue
            if changed:
                present, number = np.unique(self.class_of[active], return_inverse=True)
                solved = shares(self.class_told[present], self.class_size[present], np.bincount(number), self.gpus)
                wants, changed = solved[number], False
            age = np.maximum(now - comes[active], ROUND_S)
            lacks = wants * age[:, None] / np.maximum(had[active], 1.0)
            for at, kind in self._round(active, lacks):
                job = active[at]
                had[job, kind] += ROUND_S
                needs = left[job] / self.speeds[job, kind]
                left[job] = max(0.0, left[job] - ROUND_S * self.speeds[job, kind])
                if needs <= ROUND_S:
                    ended[job], changed = now + needs, True
            active = active[ended[active] == 0.0]
            now += ROUND_S
        jct = ended - comes
        return {
            "avg_jct_s": round(float(jct.mean()), 3),
            "p50_jct_s": round(float(np.median(jct)), 3),
            "p99_jct_s": round(float(np.quantile(jct, 0.99)), 3),
            "makespan_s": round(float(ended.max() - comes.min()), 3),
        }

    def _round(self, active: np.ndarray, lacks: np.ndarray) -> list[tuple[int, int]]:
        """(place in `active`, kind) of those that run: who lacks most first, each on one kind."""
        free, kinds = self.gpus.copy(), len(self.kinds)
        most = int(free.sum()) * 4 * kinds
        flat = lacks.ravel()
        order = np.argsort(-flat, kind="stable")
        chosen: list[tuple[int, int]] = []
        taken: set[int] = set()
        for looked, pair in enumerate(order):
            if flat[pair] <= 0 or free.sum() <= 0 or looked > most:
                break
            at, kind = divmod(int(pair), kinds)
            size = self.sizes[active[at]]
            if at not in taken and size <= free[kind]:
                free[kind] -= size
                taken.add(at)
                chosen.append((at, kind))
        return chosen


def measure(words: Sequence[str] | None = None) -> dict[str, float]:
    """The figures of one replay, by the options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("trace", type=Path)
    options.add_argument("--nodes", required=True)
    options.add_argument("--blind", action="store_true", help="take all kinds of GPU for equally fast")
    given = options.parse_args(words)
    gpus: Counter[str] = Counter()
    for node in fleet.parse(given.nodes):
        gpus[node.flavor or ""] += node.total.gpus_milli // MILLI
    return Rounds(table.read(given.trace), gpus, given.blind).run()


if __name__ == "__main__":
    print(json.dumps(measure()))
