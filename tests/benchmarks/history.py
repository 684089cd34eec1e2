"""What history costs: the real controller process with N workloads that ended, over real HTTP, without Ray.

    python tests/benchmarks/history.py [--ended 100000] > history.json

Writes the history with the product's own core and store (each workload submitted, launched, bound, finished), then
starts the controller on it and asks. Prints one JSON object; seconds unless a name says otherwise. A `stop` is the
longest that /healthz took to answer meanwhile, asked every 5 ms by another process. `cpu` is what the controller's
process used, which a busy machine does not lengthen. Ends everything that it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from llmsched.client.core import AsyncClient
from llmsched.control.archive import StoreArchive
from llmsched.control.housekeeping import SNAPSHOT_EVERY
from llmsched.control.snapshot_maker import spelled
from llmsched.core import archive
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import Archived, Bound, Finished, NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.policies.registry import load
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json
from llmsched.store.journal import Batch
from llmsched.store.sqlite import SqliteStore

UP = ("up", "--fake-nodes", "4x8:A100")
PER_COMMIT = 100

PROBE = """
import sys, time, httpx
longest = 0.0
with httpx.Client(base_url=sys.argv[1]) as http:
    print("ready", flush=True)
    until = time.monotonic() + 600
    import select
    while not select.select([sys.stdin], [], [], 0)[0] and time.monotonic() < until:
        began = time.perf_counter()
        http.get("/healthz")
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.005)
print(longest)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ended", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        home = Path(folder) / "home"
        os.environ["LLMSCHED_HOME"] = str(home)
        home.mkdir(mode=0o700)
        began = time.perf_counter()
        entries = write(home / "state.sqlite", options.ended)
        result: dict[str, Any] = {
            "ended": options.ended,
            "entries": entries,
            "writing_s": round(time.perf_counter() - began, 1),
            "store_mib": sum(file.stat().st_size for file in home.glob("state.sqlite*")) >> 20,
        }
        try:
            result["start_s"] = timed(lambda: llmsched(*UP))
            os.kill(pid_of(home), signal.SIGKILL)
            result["restart_after_kill_s"] = timed(lambda: llmsched(*UP))
            result["restart_after_kill_cpu_s"] = cpu(home)
            result["rss_after_start_mib"] = rss(home)
            result |= asyncio.run(ask(home, options.ended))
            result |= usage(home, options.ended)
            result["rss_at_the_end_mib"] = rss(home)
        finally:
            llmsched("down")
    print(json.dumps(result, indent=2))


def write(path: Path, count: int) -> int:
    """As a controller would, but that PER_COMMIT workloads share a commit."""
    store = SqliteStore(path)
    store.open()
    store.take_over("history", store.lease())
    shelf = StoreArchive(store)
    state, policies, seq, snapshot_at = State(archive=shelf), load(PolicyNames()), 0, 0
    now = time.time() - 86_400.0
    step = 80_000.0 / count
    spec = {
        "kind": "task",
        "resources": {"accelerators": "A100:1", "cpus": 1},
        "task": {"run": ["python", "train.py"]},
        "envs": {"A": "x" * 400},
    }
    first: list[Any] = [NodeJoined(now, Node("n0", Resources(8000, 2_000_000, 1 << 40), "A100"))]
    for fact in first:
        state.apply(fact)
    for begin in range(0, count, PER_COMMIT):
        entries: list[Any] = first if not begin else []
        for number in range(begin, min(begin + PER_COMMIT, count)):
            now += step
            compiled = compile_workload(load_json({"name": f"w{number}", **spec}))
            workload = replace(compiled, user=f"user-{number % 50}")
            submitted = Submitted(now, workload)
            launched = turn(state, [submitted], policies).decisions
            done = [Bound(now, f"w{number}/0", 1), Finished(now + step / 2, f"w{number}/0", 1, "succeeded")]
            for fact in done:
                state.apply(fact)
            entries += [submitted, *launched, *done]
        while any(due := archive.due(state, now)):
            aside = Archived(now, *due)
            state.apply(aside)
            entries.append(aside)
        rows = shelf.unwritten()
        seq = store.commit(Batch(now, entries, rows)).result()[-1].seq
        shelf.written(rows)
        if seq - snapshot_at >= SNAPSHOT_EVERY:
            snapshot_at = seq
            old = store.older(type(row := spelled(state, shelf, seq, now)), float("inf"))
            store.commit(Batch(now, (), [row])).result()
            store.remove(type(row), old[1:]).result()
    store.close()
    return seq


async def ask(home: Path, count: int) -> dict[str, Any]:
    task = {"name": "now", "kind": "task", "resources": {"cpus": 1}, "task": {"run": ["true"]}}
    async with AsyncClient() as client:
        asked: dict[str, Any] = {
            "plan": lambda: client.plan([task]),
            "apply": lambda: client.apply([task | {"name": f"n{time.time_ns()}"}]),
            "first_page": lambda: client.workloads(),
            "longest_page": lambda: client.workloads(active=250, waiting=250, ended=250),
            "old_status": lambda: client.status("w7"),
            "old_story": lambda: client.story("w7"),
            "models": lambda: client.models(),
            "no_such_name": lambda: _refused(client.status("nobody")),
        }
        found: dict[str, Any] = {}
        for name, act in asked.items():
            took, used, stop = await probed(home, client.url, act)
            found[f"{name}_s"], found[f"{name}_cpu_s"], found[f"{name}_stop_ms"] = took, used, stop
        page = await client.workloads()
        found["counts"] = page.counts
        assert sum(page.counts.values()) >= count
        return found


def usage(home: Path, count: int) -> dict[str, float]:
    """Seconds of the whole command line, by two keys and line by line; `cpu` is the controller's."""
    found: dict[str, float] = {}
    for name, by, lines in (("usage", "user,queue", 1), ("usage_by_four_keys", "user,queue,workload,day", count)):
        before, began = cpu(home), time.perf_counter()
        said = llmsched("usage", "--by", by, "--csv")
        found |= {f"{name}_s": round(time.perf_counter() - began, 3), f"{name}_cpu_s": round(cpu(home) - before, 3)}
        assert len(said.splitlines()) > lines, said[:200]
    return found


async def _refused(request: Any) -> None:
    try:
        await request
    except Exception:
        return


async def probed(home: Path, url: str, act: Any, runs: int = 5) -> tuple[float, float, float]:
    """(the slowest of the runs, the controller's mean CPU seconds of one with the probe's questions, the longest stop
    in ms)"""
    probe = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", PROBE, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert probe.stdin is not None and probe.stdout is not None
    await asyncio.to_thread(probe.stdout.readline)
    slowest, before = 0.0, cpu(home)
    for _ in range(runs):
        began = time.perf_counter()
        await act()
        slowest = max(slowest, time.perf_counter() - began)
    used = (cpu(home) - before) / runs
    said = await asyncio.to_thread(probe.communicate, "stop\n")
    return round(slowest, 4), round(used, 4), round(float(said[0]) * 1000, 1)


def llmsched(*words: str) -> str:
    command = [sys.executable, "-m", "llmsched.cli.main", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def timed(act: Any) -> float:
    began = time.perf_counter()
    act()
    return round(time.perf_counter() - began, 2)


def cpu(home: Path) -> float:
    times = psutil.Process(pid_of(home)).cpu_times()
    return round(times.user + times.system, 2)


def rss(home: Path) -> int:
    return int(psutil.Process(pid_of(home)).memory_info().rss >> 20)


def pid_of(home: Path) -> int:
    return int(json.loads((home / "controller.json").read_text())["pid"])


if __name__ == "__main__":
    main()
