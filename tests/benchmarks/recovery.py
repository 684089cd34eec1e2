"""What a live cluster does when a part of it is killed or hangs: noticed, running again, leaked, cut.

    python tests/benchmarks/recovery.py [--only raylet] [--json FILE]

Prints a table, a row per fault; seconds from the fault on. A fine-tune of four workers, an endpoint of two replicas,
clients that ask it and clients that stream from it are under way on four pretend nodes when the fault comes. A row of
"launch" or "resize" strikes while the fine-tune starts, or changes its size.

    noticed        the first word of it: an event, another health, a node that is gone, an API that does not answer
    running again  the fine-tune makes steps again, and both replicas answer; in a launch, that counts the launch too
    leaked         GPUs that Ray has given away and the ledger has not, or the other way round, 15 s later at most
    cut            requests and streams that failed, of how many; "silent" is a stream that ended without a word

Starts a local Ray of its own for every few rows, and ends everything it starts. About 25 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "end_to_end")]
from ray_home import Home, gpus_held_in_ledger, gpus_held_in_ray  # noqa: E402
from traffic import CLIENTS, TROUBLE, Traffic  # noqa: E402

from llmsched.client import Client  # noqa: E402

NODES = "4x2:A100"
RECOVERED_WITHIN_S = 150.0
LEAKS_SEEN_WITHIN_S = 15.0
HUNG_UNTIL_MENDED_S = 5.0  # an operator's quick hand
STEPS_IN_FLIGHT = 10  # may have been made before the fault, and told after it
KILL, HANG = signal.SIGKILL, signal.SIGSTOP
CODE = """
import json, os, time
from llmsched.runtime import checkpoint, elastic, progress

def loop(config):
    found = checkpoint.latest()
    step = found.step if found else 0
    while True:
        step += 1
        time.sleep(0.2)
        checkpoint.save(step, lambda folder, step=step: (folder / "step.json").write_text(json.dumps(step)))
        progress.report(step=step)
        if elastic.should_stop():
            raise elastic.Stopped(step)

class Talk:
    def __call__(self, body):
        return chunks(body) if "chunks" in body else {"process": os.getpid()}

def chunks(body):
    for number in range(body["chunks"]):
        time.sleep(body["chunk_s"])
        yield {"number": number}
"""
SPEC = """
name: tune
kind: train
resources: {accelerators: "A100:1"}
workers: 1..4
workdir: .
retry: {max_restarts: 100}
train: {loop: "parts:loop"}
---
name: talk
kind: serve
resources: {accelerators: "A100:1", cpus: 0.5}
replicas: 2
workdir: .
serve: {app: "parts:Talk"}
"""


@dataclass
class Row:
    fault: str
    how: str
    during: str
    noticed_s: float | None = None
    again_s: float | None = None
    leaked_gpus: float = 0.0
    asked: int = 0
    cut: int = 0
    trouble: str = ""

    def line(self) -> str:
        noticed = "-" if self.noticed_s is None else f"{self.noticed_s:.1f} s"
        again = f"not in {RECOVERED_WITHIN_S:.0f} s" if self.again_s is None else f"{self.again_s:.1f} s"
        cut = f"{self.cut} of {self.asked}"
        cells = self.fault, self.how, self.during, noticed, again, f"{self.leaked_gpus:g}", cut, self.trouble
        return f"| {' | '.join(cells)} |"


class Cluster(Home):
    """A home whose controller may be another one at every look, on another port."""

    _looked_through: tuple[str, Client] | None = None

    def look(self) -> Client:
        controller = (self.folder / "controller.json").read_text()
        if self._looked_through is None or self._looked_through[0] != controller:
            self._looked_through = controller, self.client()
        return self._looked_through[1]

    def endpoint(self) -> str:
        return self.look().health().urls["endpoint"]


# -- what is struck ------------------------------------------------------------


def raylets(home: Cluster, count: int, holding: str) -> list[psutil.Process]:
    """Those of pretend nodes on which `holding` runs first."""
    recorded = json.loads((home.folder / "ray.json").read_text())["processes"][1:]
    busy = {place.node for gang in home.look().status(holding).gangs for place in gang.placement}
    recorded.sort(key=lambda one: (one["node"] not in busy, one["name"]))
    found = []
    for one in recorded:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(one["pid"]).children(recursive=True)
            found += [child for child in below if child.name() == "raylet"]
    return found[:count]


def head(home: Cluster) -> list[psutil.Process]:
    recorded = json.loads((home.folder / "ray.json").read_text())["processes"][0]
    return psutil.Process(recorded["pid"]).children(recursive=True)


def actor(name: str) -> Callable[[Cluster], list[psutil.Process]]:
    """The newest of that class: an older one is about to leave."""
    return lambda home: sorted(home.actors(name), key=lambda one: -one.create_time())[:1]


def bridge(home: Cluster) -> list[psutil.Process]:
    pid = home.bridge_pid()
    return [psutil.Process(pid)] if pid else []


def controller(home: Cluster) -> list[psutil.Process]:
    return [psutil.Process(home.controller_pid())]


def up_again(home: Cluster) -> None:
    home.llmsched("up", "--nodes", NODES)


@dataclass(frozen=True)
class Fault:
    name: str
    victims: Callable[[Cluster], list[psutil.Process]]
    hows: tuple[signal.Signals, ...] = (KILL, HANG)
    durings: tuple[str, ...] = ("steps and streams",)
    mend: Callable[[Cluster], None] | None = None  # what an operator does
    costs_nodes: bool = False


FAULTS = [
    Fault("bridge", bridge),
    Fault("supervisor", actor("Supervisor"), durings=("steps and streams", "launch", "resize")),
    Fault("Serve's controller", actor("ServeController")),
    Fault("gateway", actor("GatewayActor")),
    Fault("controller", controller, durings=("steps and streams", "launch", "resize"), mend=up_again),
    Fault(
        "raylet",
        lambda home: raylets(home, 1, "tune"),
        durings=("steps and streams", "launch", "resize"),
        costs_nodes=True,
    ),
    Fault("raylet of a replica", lambda home: raylets(home, 1, "talk"), (KILL,), costs_nodes=True),
    Fault("two raylets", lambda home: raylets(home, 2, "tune"), (KILL,), costs_nodes=True),
    Fault("head", head, (KILL,), mend=up_again, costs_nodes=True),
]


# -- one row -------------------------------------------------------------------


def step(home: Cluster) -> int:
    return int(home.look().status("tune").progress.get("step") or 0)


def until(there: Callable[[], Any], within_s: float) -> float | None:
    """Seconds until it was true, None if it was not in time. Trouble of the API counts as not yet."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        with contextlib.suppress(*TROUBLE):
            if there():
                return time.monotonic() - began
        time.sleep(0.05)
    return None


def is_well(home: Cluster, beyond: int) -> bool:
    return (
        step(home) > beyond
        and home.look().health().status == "ready"
        and home.look().status("talk").phase == "running"
        and all_answer(home)
    )


def all_answer(home: Cluster) -> bool:
    url, seen = home.endpoint(), set()
    for _ in range(12):
        answer = httpx.post(f"{url}/v1/apps/talk", json={}, headers=home.bearer(), timeout=5)
        if answer.status_code != 200:
            return False
        seen.add(answer.json()["process"])
    return len(seen) == 2


def strike(home: Cluster, fault: Fault, how: signal.Signals, during: str) -> Row:
    row = Row(fault.name, "killed" if how == KILL else "hung", during)
    if until(lambda: is_well(home, 0), RECOVERED_WITHIN_S) is None:
        row.trouble = "it was not well before"
        return row
    known = {node.id for node in home.look().nodes().nodes}
    with Traffic(home, "talk", home.endpoint) as traffic:
        until(lambda: traffic.asked > 2 * CLIENTS, 30)
        if not set_the_scene(home, during):
            row.trouble = f"no {during} to strike in"
            return row
        victims = victims_of(fault, home)
        if not victims:
            row.trouble = "nobody to strike"
            return row
        struck_at, seq, said = step(home), home.look().health().seq, home.look().health().message
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(how)
        began = time.monotonic()
        is_over = threading.Event()
        watching = threading.Thread(target=watch, args=(row, home, known, seq, said, is_over))
        watching.start()
        if fault.mend is not None and how == KILL:
            fault.mend(home)
        if fault.mend is not None and how == HANG:
            time.sleep(HUNG_UNTIL_MENDED_S)
            wake(victims)
        again = until(lambda: is_well(home, struck_at + STEPS_IN_FLIGHT), RECOVERED_WITHIN_S)
        row.again_s = None if again is None else time.monotonic() - began
        is_over.set()
        watching.join()
    if how == HANG:
        wake(victims)
    row.asked, row.cut = traffic.asked, len(traffic.failures)
    row.trouble = ", ".join(f"{times} x {what}" for what, times in sorted(Counter(traffic.failures).items()))
    row.leaked_gpus = leaked(home)
    return row


def victims_of(fault: Fault, home: Cluster) -> list[psutil.Process]:
    """As soon as they are there."""
    found: list[psutil.Process] = []
    until(lambda: found.extend(fault.victims(home)) or found, 30)
    return found


def wake(victims: list[psutil.Process]) -> None:
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.send_signal(signal.SIGCONT)


TELLING = ("NodeLost", "Lost", "LaunchFailed", "Finished", "Stalled")


def watch(row: Row, home: Cluster, nodes: set[str], seq: int, said: str, is_over: threading.Event) -> None:
    """Set when it was noticed; what runs again without a word is not."""

    def is_noticed() -> bool:
        try:
            health = home.look().health()
            gone = nodes - {node.id for node in home.look().nodes().nodes}
            told = any(event.kind in TELLING for event in home.look().events(after=seq, follow=False))
        except TROUBLE:
            return True
        return health.status != "ready" or health.message != said or bool(gone) or told

    began = time.monotonic()
    if until(lambda: is_over.is_set() or is_noticed(), RECOVERED_WITHIN_S) is not None and not is_over.is_set():
        row.noticed_s = time.monotonic() - began


def set_the_scene(home: Cluster, during: str) -> bool:
    """Whether it is so now."""

    def is_(status: str) -> bool:
        return home.look().status("tune").gangs[0].status == status

    if during == "launch":
        home.look().cancel("tune")
        until(lambda: home.look().status("tune").phase == "cancelled", 60)
        home.llmsched("apply", "-f", "tune.yaml", "--again")
        return until(lambda: is_("launching"), 60) is not None
    if during == "resize":
        size = 2 if home.look().status("tune").gangs[0].size > 2 else 4
        home.llmsched("scale", "tune", str(size))
        return until(lambda: is_("resizing"), 30) is not None
    return True


def leaked(home: Cluster) -> float:
    """The difference between Ray and the ledger, once it no longer shrinks; not a number if it cannot be known."""
    off = float("nan")
    deadline = time.monotonic() + LEAKS_SEEN_WITHIN_S
    while time.monotonic() < deadline and off != 0:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired, *TROUBLE):
            off = abs(sum(gpus_held_in_ray(home)) - sum(gpus_held_in_ledger(home)))
    return off


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        (work / "parts.py").write_text(CODE)
        home = Cluster(Path(folder) / "home", work)
        for name, spec in zip(("tune", "talk"), SPEC.split("---"), strict=True):
            (work / f"{name}.yaml").write_text(spec)
        try:
            home.llmsched("up", "--nodes", NODES)
            home.llmsched("apply", "-f", "tune.yaml")
            home.llmsched("apply", "-f", "talk.yaml")
            yield home
        finally:
            home.llmsched("down")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose fault holds one of these words: bridge,raylet")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    wanted = [
        (fault, how, during)
        for fault in FAULTS
        if any(word in fault.name for word in given.only.split(","))
        for how in fault.hows
        for during in fault.durings
        if during == "steps and streams" or how == KILL
    ]
    wanted.sort(key=lambda row: (row[0].costs_nodes, row[2] != "steps and streams"))  # a new cluster is made late
    machine = f"{os.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, Python {platform.python_version()}"
    print(f"{datetime.date.today()}, {machine}, no GPU: pretend nodes {NODES}\n")
    print("| Fault | How | During | Noticed | Running again | Leaked GPUs | Cut | What the clients saw |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    while wanted:
        with cluster() as home:
            while wanted:
                fault, how, during = wanted.pop(0)
                row = strike(home, fault, how, during)
                rows.append(row)
                print(row.line(), flush=True)
                if fault.costs_nodes or row.again_s is None:
                    break
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
