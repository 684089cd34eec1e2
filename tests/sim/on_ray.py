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

from small_worlds import ONE, TWO, Told, World, differences, jobs_of, simulated  # noqa: E402

from llmsched.client import Client  # noqa: E402
from llmsched.sim.traces.job import Job  # noqa: E402

NODES = "1x4:A100,2x2:T4"
SECOND = 0.15
ROUNDING_S = 0.5  # of a completion time, beside a tenth: the controller's rounds
WORK = """
import os, signal, sys, time
began = time.time()
file, seconds = sys.argv[1] + os.environ.get("LLMSCHED_RANK", os.environ.get("RANK", "")), float(sys.argv[2])
done = float(open(file).read()) if os.path.exists(file) else 0.0
with open(file + ".began", "a") as out:
    print(began, file=out)
def leave(*_):
    with open(file, "w") as out:
        out.write(str(done + time.time() - began))
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
time.sleep(max(0.0, seconds - done))
"""

WORLDS = {
    "no file at all": World("1x4:A100", "a,0,2,100\nb,1,4,50\nc,2,1,30\nd,3,2,40\ne,60,1,10\nf,61,3,25\n"),
    "strict fifo": World(
        "1x4:A100",
        "a,0,3,100\nb,1,4,50\nc,2,1,30\nd,3,2,40\n",
        f"{ONE}\nscheduling: {{order: strict_fifo}}",
    ),
    "easy backfill": World(
        "2x2:T4",
        "a,0,3,100,,,T4\nb,1,4,50,,,T4\nc,2,1,40,,,T4\nd,3,1,400,,,T4\n",
        f"{ONE}\nscheduling: {{order: strict_fifo, backfill: easy}}\npolicies: {{ordering: fifo}}",
    ),
    "conservative backfill": World(
        "2x2:T4",
        "a,0,3,200,,,T4\nb,5,4,50,,,T4\nc,6,1,100,,,T4\nd,7,1,300,,,T4\n",
        f"{ONE}\nscheduling: {{backfill: conservative}}\npolicies: {{ordering: fifo}}",
    ),
    "a higher priority evicts": World(
        "1x4:A100",
        "a,0,4,300,10\nb,50,2,60,80\nc,60,2,60,20\nd,200,4,40,90\n",
        f"{ONE}\nscheduling: {{preemption: {{within_queue: lower_priority}}}}",
        evictions=1,
    ),
    "an owner takes back what it lent": World(
        "1x4:A100",
        "a,0,1,400,,a\nb,1,1,400,,a\nc,2,2,400,,a\nd,100,2,50,,b\ne,120,1,50,,b\n",
        f"cohorts: [{{name: all}}]\n{TWO}\nscheduling: {{preemption: {{reclaim: any}}}}",
        evictions=1,
    ),
    "fair shares": World(
        "1x4:A100",
        "a,0,2,200,,a\nb,0.5,2,240,,a\nc,1,2,200,,a\nd,10,2,100,,b\ne,11,2,100,,b\n",
        "queues: [{name: a, weight: 1}, {name: b, weight: 2}]\nscheduling: {fair_share: drf_total}",
    ),
    "a short one before long ones": World(
        "1x4:A100",
        "a,0,4,100\nb,1,4,300\nc,2,4,40\nd,3,4,120\n",
        f"{ONE}\nscheduling: {{order: best_effort}}\npolicies: {{ordering: shortest_remaining}}",
    ),
    "two flavors": World("1x4:A100,2x2:T4", "a,0,4,100\nb,1,2,80\nc,2,2,50,,,T4\nd,3,4,60,,,T4\ne,4,1,20\n"),
    "gangs over several nodes": World(
        "2x2:T4",
        "a,0,3,100,,,T4\nb,1,2,50,,,T4\nc,2,1,70,,,T4\nd,3,4,30,,,T4\ne,110,2,40,,,T4\n",
    ),
}


@dataclass
class Attempt:
    """One start of a job: when it was decided, when its last rank began to work, when it was told to leave, if it was,
    and when it had let go."""

    launched: float
    began: float = 0.0
    told: float | None = None
    over: float = 0.0


@dataclass
class Seen:
    """What became of one job on Ray; seconds since the world began."""

    submitted: float
    attempts: list[Attempt]

    def as_job(self, job: Job, second: float) -> Job:
        """What the wind tunnel is told of it: when it came, what its starts took, how long it held its places and
        worked, and how long it took to leave. Who decides is told the run time that its user gave."""
        mine = self.attempts
        ends = [each.over if each.told is None else each.told for each in mine]
        worked = sum(max(0.0, end - each.began) for end, each in zip(ends, mine, strict=True))
        leaves = [each.over - each.told for each in mine if each.told is not None]
        return replace(
            job,
            submit_s=self.submitted,
            runtimes=((job.gpus, worked),),
            estimated_s=job.duration_s * second,
            start_s=sum(each.began - each.launched for each in mine) / len(mine),
            leave_s=sum(leaves) / len(leaves) if leaves else None,
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
            elif event.kind == "Preempt":
                attempts[-1].told = at
                evictions += 1
            elif event.kind in ("Released", "Finished"):
                attempts[-1].over = at
        for job_id, each in seen.items():
            files = self.folder.glob(f"{tag}-{job_id}*.began")
            began = [float(line) - zero for file in files for line in file.read_text().split()]
            for attempt in each.attempts:  # one that was told to leave before its work began has done none
                its = [at for at in began if attempt.launched <= at <= attempt.over]
                attempt.began = max(its, default=attempt.over if attempt.told is None else attempt.told)
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
    return differences(live, told, ROUNDING_S), max(abs(live.jct[job] / jct - 1) for job, jct in told.jct.items())


@contextmanager
def cluster(nodes: str = NODES) -> Iterator[Cluster]:
    """Up, and down again."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        Path(folder).chmod(0o755)
        work.chmod(0o777)  # Ray's user writes there
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
    wrong = 0
    with cluster() as ray:
        for number, (name, world) in enumerate(WORLDS.items()):
            if given.only not in name:
                continue
            live, seen = ray.play(world, f"w{number}", given.second)
            found, apart = compared(live, seen, world, given.second)
            wrong += bool(found)
            starts = [attempt.began - attempt.launched for each in seen.values() for attempt in each.attempts]
            print(f"{name}: {'; '.join(found) or 'the same'} (JCT apart at most {100 * apart:.0f} %; ", end="")
            print(f"starts took {min(starts):.1f} to {max(starts):.1f} s)", flush=True)
    print(f"{wrong} worlds differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
