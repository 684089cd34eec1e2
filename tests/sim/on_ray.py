"""The wind tunnel against real Ray: ten small worlds on one cluster, the same starts in the same order and, within a
tenth, the same completion times.

    python tests/sim/on_ray.py [--only fifo] [--second 0.15]

Work is a command that waits, and goes on from where it was after it had to leave. What a start, leaving and an end take
here is measured first and told to the simulator. `--second`: seconds on Ray for one of a world.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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

from small_worlds import ONE, TWO, Told, World, jobs_of, simulated  # noqa: E402

from llmsched.client import Client  # noqa: E402

NODES = "1x4:A100,2x2:T4"
SECOND = 0.15
WITHIN = 0.1  # of a completion time
ROUNDING_S = 0.5  # beside that: the controller's rounds, and when a process was seen to end
SAMPLES = 3
WORK = """
import os, signal, sys, time
file, seconds = sys.argv[1] + os.environ.get("LLMSCHED_RANK", os.environ.get("RANK", "")), float(sys.argv[2])
done = float(open(file).read()) if os.path.exists(file) else 0.0
began = time.monotonic()
def leave(*_):
    with open(file, "w") as out:
        out.write(str(done + time.monotonic() - began))
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


@dataclass(frozen=True)
class Takes:
    """Seconds on this cluster: from a launch to the work's first second, from being told to leave until it has left,
    from its last second until that is known."""

    start_s: float
    leave_s: float
    end_s: float


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

    def measure(self, samples: int = SAMPLES) -> Takes:
        """What a start, leaving and an end take here."""
        starts, leaves, ends = [], [], []
        for number in range(samples):
            self.submit(f"probe-{number}", 1.0)
            at = {event.kind: event.at for event in self.story({f"probe-{number}"})}
            starts.append(at["Bound"] - at["Launch"])
            ends.append(max(0.0, at["Finished"] - at["Bound"] - 1.0))
        self.submit("leaver", 600.0)
        for event in self.client.events():
            if event.gang == "leaver/0" and event.kind == "Bound":
                self.client.cancel("leaver")
            elif event.gang == "leaver/0" and event.kind == "Stop":
                told = event.at
            elif event.gang == "leaver/0" and event.kind == "Released":
                leaves.append(event.at - told)
                break
        return Takes(statistics.median(starts), statistics.median(leaves), statistics.median(ends))

    def play(self, world: World, tag: str, second: float) -> Told:
        """One world on Ray; times are in seconds of the world."""
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
        starts, ends, came, evictions = [], {}, {}, 0
        for event in self.story({f"{tag}-{job.id}" for job in jobs}):
            job = (event.gang or event.workload or "").partition("/")[0].removeprefix(f"{tag}-")
            if event.kind == "Submitted":
                came[job] = event.at
            elif event.kind == "Launch":
                starts.append((job, event.at - zero))
            elif event.kind == "Finished":
                ends[job] = event.at
            evictions += event.kind == "Preempt"
        return Told(starts, {job: ends[job] - came[job] for job in ends}, evictions)


def expected(world: World, takes: Takes, second: float) -> Told:
    """The same in the wind tunnel, in seconds of Ray."""
    rows = [line.split(",") for line in world.jobs.splitlines()]
    for row in rows:
        row[1], row[3] = f"{float(row[1]) * second:.3f}", f"{float(row[3]) * second + takes.end_s:.3f}"
    scaled = replace(world, jobs="".join(",".join(row) + "\n" for row in rows))
    return simulated(scaled, takes.start_s, takes.leave_s)


def differences(live: Told, told: Told) -> list[str]:
    """What is not the same; empty where all is."""
    found = []
    order = [name for name, _ in told.starts]
    if [name for name, _ in live.starts] != order:
        found.append(f"started {' '.join(name for name, _ in live.starts)}, expected {' '.join(order)}")
    if live.evictions != told.evictions:
        found.append(f"{live.evictions} evictions, expected {told.evictions}")
    for name, jct in told.jct.items():
        if abs(live.jct[name] - jct) > WITHIN * jct + ROUNDING_S:
            found.append(f"{name} took {live.jct[name]:.1f} s, expected {jct:.1f}")
    return found


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Up, and down again."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        Path(folder).chmod(0o755)
        work.chmod(0o777)  # Ray's user writes there
        around = {**os.environ, "LLMSCHED_HOME": str(Path(folder) / "home")}
        command = [sys.executable, "-m", "llmsched.cli.main"]
        subprocess.run([*command, "up", "--nodes", NODES], env=around, check=True, stdout=subprocess.DEVNULL)
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
        takes = ray.measure()
        print(json.dumps(takes.__dict__))
        for number, (name, world) in enumerate(WORLDS.items()):
            if given.only in name:
                told, live = expected(world, takes, given.second), ray.play(world, f"w{number}", given.second)
                found = differences(live, told)
                wrong += bool(found)
                apart = max(abs(live.jct[job] / jct - 1) for job, jct in told.jct.items())
                print(f"{name}: {'; '.join(found) or 'the same'} (JCT apart at most {100 * apart:.0f} %)", flush=True)
    print(f"{wrong} worlds differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
