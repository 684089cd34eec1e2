"""The wind tunnel against real Ray: ten small worlds on one cluster, the same starts in the same order and, within a
tenth, the same completion times.

    python tests/sim/on_ray.py [--only fifo] [--second 0.15]

Work is a command that waits, and goes on from where it was after it had to leave. What starts, work and leaving took is
measured, job by job, and told to the simulator: what is compared is who is started, when, and in whose place.
`--second`: seconds on Ray for one of a world.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_worlds import NODES, WORLDS, Told, World, differences, jobs_of, simulated  # noqa: E402

from llmsched.client import Client  # noqa: E402
from llmsched.sim.traces.job import Job  # noqa: E402

SECOND = 0.15
ROUNDING_S = 0.5  # of a completion time, beside a tenth: the controller's rounds
WORK = """
import os, signal, sys, time
began = time.time()
file, seconds = sys.argv[1] + os.environ.get("LLMSCHED_RANK", os.environ.get("RANK", "")), float(sys.argv[2])
done = float(open(file).read()) if os.path.exists(file) else 0.0
def leave(*_):
    with open(file, "w") as out:
        out.write(str(done + time.time() - began))
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
time.sleep(max(0.0, seconds - done))
"""


@dataclass
class Attempt:
    """One start of a job: when it was decided, when it ran, when it was told to leave, if it was, and when it had let
    go. One that was told to leave before it ran has done nothing."""

    launched: float
    bound: float | None = None
    told: float | None = None
    over: float = 0.0

    def stopped(self) -> float:
        return self.over if self.told is None else self.told

    def start_s(self) -> float:
        return (self.stopped() if self.bound is None else self.bound) - self.launched

    def worked_s(self) -> float:
        return 0.0 if self.bound is None else max(0.0, self.stopped() - self.bound)


@dataclass
class Seen:
    """What became of one job on Ray; seconds since the world began."""

    submitted: float
    attempts: list[Attempt]

    def as_job(self, job: Job, second: float) -> Job:
        """What the wind tunnel is told of it: when it came, what each start took, how long it worked, and how long it
        took to leave. Who decides is told the run time that its user gave."""
        return replace(
            job,
            submit_s=self.submitted,
            runtimes=((job.gpus, sum(each.worked_s() for each in self.attempts)),),
            estimated_s=job.duration_s * second,
            start_s=tuple(each.start_s() for each in self.attempts),
            leave_s=tuple(each.over - each.told for each in self.attempts if each.told is not None),
        )


class Cluster:
    """A home with a Ray of its own; `folder` is where work notes how far it is."""

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, folder

    def submit(self, name: str, seconds: float, gpus: int = 1, flavor: str = "A100", **more: Any) -> None:
        run = [sys.executable, "-c", WORK, str(self.folder / name), f"{seconds:.3f}"]
        asks = {"accelerators": f"{flavor}:1", "cpus": 0}
        spec = {"name": name, "kind": "task", "workers": gpus, "resources": asks, "task": {"run": run}, **more}
        self.client.apply([spec])

    def story(self, names: set[str]) -> list[Any]:
        """What happened to them, until all have ended."""
        seen, open_ = [], set(names)
        for event in self.client.events():
            name = (event.gang or event.workload or "").partition("/")[0]
            if name in names:
                seen.append(event)
                if event.kind == "Finished":
                    open_.discard(name)
            if not open_:
                return seen
        raise SystemExit("the events ended before the work did")

    def play(self, world: World, tag: str, second: float) -> tuple[Told, dict[str, Seen]]:
        """One world on Ray, and what became of each job."""
        config = self.folder / "cluster.yaml"
        config.write_text(world.config)
        self.client.configure(config)
        jobs = jobs_of(world)
        zero = time.time()
        for job in jobs:
            while (early := zero + job.submit_s * second - time.time()) > 0:
                time.sleep(early)  # the world's own pace: what is submitted when is what is compared
            asks = {"priority": job.priority, "queue": job.queue}
            estimate = {"estimated_runtime": f"{job.duration_s * second:.3f}s"}
            self.submit(f"{tag}-{job.id}", job.duration_s * second, job.gpus, job.flavor or "A100", **asks, **estimate)
        seen: dict[str, Seen] = {}
        starts, evictions = [], 0
        for event in self.story({f"{tag}-{job.id}" for job in jobs}):
            job_id, at = (event.gang or event.workload or "").partition("/")[0].removeprefix(f"{tag}-"), event.at - zero
            attempts = seen[job_id].attempts if job_id in seen else []
            if event.kind == "Submitted":
                seen[job_id] = Seen(at, [])
            elif event.kind == "Launch":
                starts.append((job_id, at))
                attempts.append(Attempt(at))
            elif event.kind == "Bound":
                attempts[-1].bound = at
            elif event.kind == "Preempt":
                attempts[-1].told = at
                evictions += 1
            elif event.kind in ("Released", "Finished"):
                attempts[-1].over = at
        starts.sort(key=lambda start: (start[1], start[0]))  # of one pass by name, as the wind tunnel has them
        return Told(
            starts, {name: one.attempts[-1].over - one.submitted for name, one in seen.items()}, evictions
        ), seen


def compared(live: Told, seen: dict[str, Seen], world: World, second: float) -> tuple[list[str], float]:
    """What the wind tunnel shows otherwise when it is told what starts, work and leaving took; and by how much
    completion times are apart at most, as a part of them. A start that the machine has failed is no decision: such a
    world says nothing, and has to be played again."""
    failed = [name for name, each in seen.items() if sum(attempt.told is None for attempt in each.attempts) != 1]
    if failed:
        return [f"not compared, as a try of {' and of '.join(failed)} failed"], 0.0
    jobs = sorted((seen[job.id].as_job(job, second) for job in jobs_of(world)), key=lambda job: job.submit_s)
    told = simulated(world, 0.0, 0.0, jobs)
    found = differences(live, told, ROUNDING_S)
    if found:
        sides = (("live", live), ("simulated", told))
        found += [f"{side} {', '.join(f'{name} at {at:.2f}' for name, at in its.starts)}" for side, its in sides]
    return found, max(abs(live.jct[job] / jct - 1) for job, jct in told.jct.items())


@contextmanager
def folder_of_work() -> Iterator[Path]:
    """Where Ray's user may write, whoever that is."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        Path(folder).chmod(0o755)
        work.chmod(0o777)
        yield work


@contextmanager
def cluster(nodes: str = NODES) -> Iterator[Cluster]:
    """Up, and down again."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder, folder_of_work() as work:
        around = {**os.environ, "LLMSCHED_HOME": str(Path(folder) / "home")}
        command = [sys.executable, "-m", "llmsched.cli.main"]
        subprocess.run([*command, "up", "--nodes", nodes], env=around, check=True, stdout=subprocess.DEVNULL)
        try:
            with Client(home=Path(folder) / "home") as client:
                yield Cluster(client, work)
        finally:
            subprocess.run([*command, "down"], env=around, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="worlds whose name contains this")
    parser.add_argument("--second", type=float, default=SECOND)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is up goes down
    wrong = 0
    with cluster() as ray:
        for number, (name, world) in enumerate(WORLDS.items()):
            if given.only not in name:
                continue
            live, seen = ray.play(world, f"w{number}", given.second)
            found, apart = compared(live, seen, world, given.second)
            wrong += bool(found)
            starts = [attempt.start_s() for each in seen.values() for attempt in each.attempts]
            print(f"{name}: {'; '.join(found) or 'the same'} (JCT apart at most {100 * apart:.1f} %; ", end="")
            print(f"starts took {min(starts):.1f} to {max(starts):.1f} s)", flush=True)
    print(f"{wrong} worlds differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
