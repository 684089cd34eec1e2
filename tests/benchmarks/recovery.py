"""What a live cluster does when a part of it is killed or hangs: noticed, running again, leaked, cut.

    python tests/benchmarks/recovery.py [--only raylet] [--json FILE]

Prints a table, a row per fault; seconds from the fault on. A fine-tune of two workers, an endpoint of two replicas,
clients that ask it and clients that stream from it are under way on four pretend nodes when the fault comes. A row of
"launch" or "resize" strikes while the fine-tune starts, or changes its size.

    noticed        the first word of it: an event, another health, a node that is gone
    running again  the fine-tune makes steps again, and both replicas answer
    leaked         GPUs that Ray has given away and the ledger has not, or the other way round, 15 s later at most
    cut            requests and streams that failed, of how many

Starts a local Ray of its own for every few rows, and ends everything it starts. About 25 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "end_to_end")]
from ray_home import Home, gpus_held_in_ledger, gpus_held_in_ray  # noqa: E402

from llmsched.client import Client  # noqa: E402
from llmsched.errors import LlmschedError  # noqa: E402

NODES = "4x2:A100"
RECOVERED_WITHIN_S = 150.0
LEAKS_SEEN_WITHIN_S = 15.0
ASKING, STREAMING = 2, 4  # clients
CHUNKS, CHUNK_S = 20, 0.1
STEPS_IN_FLIGHT = 10  # may have been made before the fault, and told after it
KILL, HANG = signal.SIGKILL, signal.SIGSTOP
CODE = """
import json, os, time
from pathlib import Path
from llmsched.runtime import checkpoint, elastic, progress

def loop(config):
    found = checkpoint.latest()
    step = found.step if found else 0
    while not Path(config["until"]).exists():
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
train: {loop: "parts:loop", config: {until: UNTIL}}
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


@dataclass
class Traffic:
    """Clients that ask and stream without a pause; every failure is counted once."""

    home: Home
    url: str
    asked: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        works = [self._ask] * ASKING + [self._stream] * STREAMING
        self._threads = [threading.Thread(target=self._forever, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _forever(self, work: Callable[[httpx.Client], str]) -> None:
        with httpx.Client(headers=self.home.bearer(), timeout=30) as http:
            while not self._stop.is_set():
                try:
                    trouble = work(http)
                except httpx.HTTPError as error:
                    trouble = type(error).__name__
                self.asked += 1
                if trouble:
                    self.failures.append(trouble)
                self._stop.wait(0.1)

    def _ask(self, http: httpx.Client) -> str:
        answer = http.post(f"{self.url}/v1/apps/talk", json={})
        return "" if answer.status_code == 200 else f"{answer.status_code}"

    def _stream(self, http: httpx.Client) -> str:
        body = {"stream": True, "chunks": CHUNKS, "chunk_s": CHUNK_S}
        with http.stream("POST", f"{self.url}/v1/apps/talk", json=body) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code}"
            got = sum('"number"' in line for line in answer.iter_lines())
        return "" if got == CHUNKS else f"a stream of {got} of {CHUNKS}"


# -- what is struck ------------------------------------------------------------


def raylets(home: Home, count: int, holding: str = "") -> list[psutil.Process]:
    """Those of pretend nodes on which `holding` runs first."""
    recorded = json.loads((home.folder / "ray.json").read_text())["processes"][1:]
    with home.client() as client:
        busy = {place.node for gang in client.status(holding).gangs for place in gang.placement} if holding else set()
    recorded.sort(key=lambda one: (one["node"] not in busy, one["name"]))
    found = []
    for one in recorded:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child for child in psutil.Process(one["pid"]).children() if child.name() == "raylet"]
    return found[:count]


def head(home: Home) -> list[psutil.Process]:
    recorded = json.loads((home.folder / "ray.json").read_text())["processes"][0]
    return psutil.Process(recorded["pid"]).children(recursive=True)


def actor(name: str) -> Callable[[Home], list[psutil.Process]]:
    return lambda home: home.actors(name)[:1]


def bridge(home: Home) -> list[psutil.Process]:
    pid = home.bridge_pid()
    return [psutil.Process(pid)] if pid else []


def controller(home: Home) -> list[psutil.Process]:
    return [psutil.Process(home.controller_pid())]


def up_again(home: Home) -> None:
    home.llmsched("up", "--nodes", NODES)


@dataclass(frozen=True)
class Fault:
    name: str
    victims: Callable[[Home], list[psutil.Process]]
    hows: tuple[signal.Signals, ...] = (KILL, HANG)
    durings: tuple[str, ...] = ("steps and streams",)
    mend: Callable[[Home], None] | None = None  # what an operator does
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


def step(client: Client) -> int:
    return int(client.status("tune").progress.get("step") or 0)


def until(there: Callable[[], Any], within_s: float) -> float | None:
    """Seconds until it was true, None if it was not in time. Trouble of the API counts as not yet."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        with contextlib.suppress(LlmschedError, httpx.HTTPError, OSError):
            if there():
                return time.monotonic() - began
        time.sleep(0.05)
    return None


def is_well(home: Home, client: Client, beyond: int) -> bool:
    talk = client.status("talk")
    return (
        step(client) > beyond
        and client.health().status == "ready"
        and talk.phase == "running"
        and all_answer(home, client)
    )


def all_answer(home: Home, client: Client) -> bool:
    url = client.health().urls["endpoint"]
    seen = set()
    for _ in range(12):
        answer = httpx.post(f"{url}/v1/apps/talk", json={}, headers=home.bearer(), timeout=5)
        if answer.status_code != 200:
            return False
        seen.add(answer.json()["process"])
    return len(seen) == 2


def strike(home: Home, fault: Fault, how: signal.Signals, during: str) -> Row:
    row = Row(fault.name, "killed" if how == KILL else "hung", during)
    with home.client() as client:
        assert until(lambda: is_well(home, client, 0), RECOVERED_WITHIN_S) is not None, "it never ran"
        url, known = client.health().urls["endpoint"], {node.id for node in client.nodes().nodes}
        with Traffic(home, url) as traffic:
            until(lambda: traffic.asked > 2 * (ASKING + STREAMING), 30)
            set_the_scene(home, client, during)
            victims: list[psutil.Process] = []
            until(lambda: victims.extend(fault.victims(home)) or victims, 30)
            if not victims:
                row.trouble = "nobody to strike"
                return row
            struck_at, seq = step(client), client.health().seq
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(how)
            began = time.monotonic()

            def is_noticed() -> bool:
                health = client.health()
                gone = known - {node.id for node in client.nodes().nodes}
                return health.status != "ready" or bool(gone) or told(client, seq)

            watching = threading.Thread(
                target=lambda: setattr(row, "noticed_s", until(is_noticed, RECOVERED_WITHIN_S / 2))
            )
            watching.start()
            if fault.mend is not None and how == KILL:
                fault.mend(home)
            if fault.mend is not None and how == HANG:
                until(lambda: False, 5)
                for victim in victims:
                    victim.send_signal(signal.SIGCONT)
            again = until(lambda: is_well(home, client, struck_at + STEPS_IN_FLIGHT), RECOVERED_WITHIN_S)
            row.again_s = None if again is None else time.monotonic() - began
            watching.join()
        row.asked, row.cut = traffic.asked, len(traffic.failures)
        row.trouble = ", ".join(sorted(set(traffic.failures)))[:80]
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                if how == HANG:
                    victim.send_signal(signal.SIGCONT)
        row.leaked_gpus = leaked(home)
    return row


WORDS = ("NodeLost", "Lost", "LaunchFailed", "Finished", "Suspected", "ReplicaRestarted", "Stuck")


def told(client: Client, after: int) -> bool:
    return any(event.kind in WORDS for event in client.events(after=after, follow=False))


def set_the_scene(home: Home, client: Client, during: str) -> None:
    if during == "launch":
        client.cancel("tune")
        until(lambda: client.status("tune").phase == "cancelled", 60)
        home.llmsched("apply", "-f", "spec.yaml", "--again")
        until(lambda: client.status("tune").gangs[0].status == "launching", 60)
    elif during == "resize":
        size = 2 if client.status("tune").gangs[0].size > 2 else 4
        home.llmsched("scale", "tune", str(size))
        until(lambda: client.status("tune").gangs[0].status == "resizing", 30)


def leaked(home: Home) -> float:
    """The difference between Ray and the ledger, once it no longer shrinks."""
    off = 0.0
    deadline = time.monotonic() + LEAKS_SEEN_WITHIN_S
    while time.monotonic() < deadline:
        ray, ledger = gpus_held_in_ray(home), gpus_held_in_ledger(home)
        off = abs(sum(ray) - sum(ledger))
        if off == 0:
            return 0.0
    return off


@contextlib.contextmanager
def cluster() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        (work / "parts.py").write_text(CODE)
        home = Home(Path(folder) / "home", work)
        (work / "spec.yaml").write_text(SPEC.replace("UNTIL", str(work / "enough")))
        try:
            home.llmsched("up", "--nodes", NODES)
            home.llmsched("apply", "-f", "spec.yaml")
            yield home
        finally:
            home.llmsched("down")
            shutil.rmtree(home.folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose fault holds this word")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    wanted = [
        (fault, how, during)
        for fault in FAULTS
        if given.only in fault.name
        for how in fault.hows
        for during in fault.durings
        if during == "steps and streams" or how == KILL
    ]
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
