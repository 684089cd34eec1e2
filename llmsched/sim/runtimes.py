"""What a job really needs, and what the scheduler is told about it.

`Runtime` is nature: work is the fraction of a job that is left, and each size works it off at its own rate.
`Estimates` is what a user or a history would say: exact, nothing, a column of the trace, or wrong by a random factor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import blake2b
from math import inf
from typing import NamedTuple

from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Group, Option, Retry, Workload
from llmsched.errors import SpecError
from llmsched.sim.traces.job import Job

CHECKPOINT_S = 600.0  # from one checkpoint to the next; a lost attempt goes on from its last multiple of this
ALONE = Retry(max_restarts=1_000_000, backoff_s=0.0)  # simulated hardware may fail as often as it likes


class Estimates(NamedTuple):
    """`kind`: exact | none | column | error. With `error` the factor is uniform in 1 - spread .. 1 + spread.

    `steps`: whether jobs say how many steps they make, where the trace has it. With `none` they never do.
    `flavors`: whether they say how fast they are on which GPU, where the trace has it; else any GPU
    will do for them."""

    kind: str = "exact"
    spread: float = 0.0
    steps: bool = True
    flavors: bool = True

    def factor(self, seed: int, job: str) -> float:
        """A hash of (seed, job), so that it depends on nothing else."""
        if self.kind != "error":
            return 1.0
        drawn = int.from_bytes(blake2b(f"{seed}/{job}".encode(), digest_size=8).digest(), "big") / 2**64
        return 1.0 + self.spread * (2.0 * drawn - 1.0)


def parse_estimates(text: str, steps: bool = True, flavors: bool = True) -> Estimates:
    if text in ("exact", "none", "column"):
        return Estimates(text, steps=steps, flavors=flavors)
    kind, _, spread = text.partition(":")
    try:
        value = float(spread)
    except ValueError:
        value = -1.0
    if kind != "error" or not 0 <= value < 1:
        raise SpecError(
            f'"{text}" is not known.',
            where="--estimates",
            hint="exact, none, column, or error:0.5 (a factor in 0.5..1.5).",
        )
    return Estimates(kind, value, steps, flavors)


@dataclass(slots=True)
class Runtime:
    """The progress of one job. `left` is the fraction still to do as of `at`; `warm_until` ends the present restart."""

    job: Job
    left: float = 1.0
    size: int = 0
    flavors: tuple[str | None, ...] = ()  # of the GPUs that it holds
    at: float = 0.0
    warm_until: float = 0.0
    told_factor: float | None = None  # of the estimates; None: nothing is told
    served_s: float = 0.0  # seconds holding GPUs
    gpu_s: float = 0.0
    lost_gpu_s: float = 0.0  # of gpu_s, in restarts

    def start(self, now: float, size: int, warm_until: float, flavors: tuple[str | None, ...] = ()) -> None:
        """No progress before `warm_until`."""
        self.settle(now)
        self.size = size
        self.flavors = flavors
        self.warm_until = warm_until

    def leave(self, now: float, until: float) -> None:
        """It holds what it has until then, and makes no progress."""
        self.start(now, self.size, until, self.flavors)

    def whole_s(self) -> float:
        """The run time of the whole job on what it holds: on unlike GPUs at the pace of the slowest. Infinite on a kind
        on which it cannot run."""
        if not self.job.by_flavor:
            return dict(self.job.runtimes)[self.size]
        known = dict(self.job.by_flavor)
        return max(dict(known.get(flavor or "", ())).get(self.size, inf) for flavor in self.flavors)

    def settle(self, now: float) -> None:
        """Count what was done since the last change."""
        if self.size:
            held = now - self.at
            warm = min(max(self.warm_until - self.at, 0.0), held)
            self.left -= (held - warm) / self.whole_s()
            if self.left < 1e-12:
                self.left = 0.0
            self.served_s += held
            self.gpu_s += held * self.size
            self.lost_gpu_s += warm * self.size
        self.at = now

    def stop(self, now: float) -> None:
        self.settle(now)
        self.size = 0

    def ends_at(self) -> float:
        """When it is done if nothing changes."""
        return max(self.at, self.warm_until) + self.left * self.whole_s()


def workload_of(
    job: Job, estimates: Estimates, factor: float, grace_s: float, fleet: Collection[str | None] = ()
) -> Workload:
    """What a user would have submitted to a cluster with the flavors of `fleet`: one bundle per GPU, told what
    `estimates` says."""
    sizes = tuple(size for size, _ in job.runtimes)
    smallest, whole = job.runtimes[0]
    told: float | None = whole * factor
    if estimates.kind == "none":
        told = None
    elif estimates.kind == "column":
        told = None if job.estimated_s is None else job.estimated_s * whole / job.duration_s
    return Workload(
        id=job.id,
        name=job.id,
        kind="train",
        groups=(Group("workers", smallest, _options(job, estimates.flavors, fleet)),),
        queue=job.queue,
        user=job.user or job.queue,
        model=job.model,
        steps=job.steps if estimates.steps and estimates.kind != "none" else None,
        priority=job.priority,
        min_size=smallest,
        max_size=sizes[-1],
        sizes=sizes if len(sizes) > 1 else (),
        grace_s=grace_s,
        estimated_runtime_s=told,
        saves_every_s=CHECKPOINT_S,
        speedup=tuple((size, whole / seconds) for size, seconds in job.runtimes) if len(sizes) > 1 else (),
        retry=ALONE,
    )


def _options(job: Job, told: bool, fleet: Collection[str | None]) -> tuple[Option, ...]:
    """One a flavor, that of `runtimes` first, with its speed at each size, 0 where it cannot run. Told nothing of
    speeds: any GPU, or in the order of the fleet those on which the job can run."""
    one = Resources(gpus_milli=MILLI)
    flavors = job.flavors()
    if not job.by_flavor or not told:
        runs_on = [flavor for flavor in fleet if flavor in flavors]
        anywhere = bool(job.by_flavor) and len(runs_on) == len(fleet)
        return (Option(None, one),) if anywhere else tuple(Option(flavor, one) for flavor in runs_on or flavors)
    curves = {flavor: dict(known) for flavor, known in job.by_flavor}
    whole = job.runtimes[0][1]
    return tuple(
        Option(
            flavor,
            one,
            tuple((n, round(whole / curve[n], 9) if n in curve else 0.0) for n, _ in job.runtimes),
        )
        for flavor, curve in ((flavor, curves[flavor or ""]) for flavor in flavors)
    )
