"""How fast the control plane answers: the real controller process over real HTTP, with pretended nodes instead of Ray.

    python tests/benchmarks/control.py [--seconds 60] > control.json

Prints one JSON object; seconds unless a name says otherwise. With 1,000 workloads finished and 100 waiting: `status`
and `--help` as whole processes (medians of 7), memory, and kill -9 to serving again. Then `apply_ms`: 200 of one
workload, one after the other; `burst`: an open loop of 50 a second. `cpu` is CPU time, of the process itself or of the
controller for one submission: neighbours hardly change it. Ends everything it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from llmsched.client.core import AsyncClient

UP = ("up", "--fake-nodes", "16x8:A100")
KNOWN, WAITING = 1000, 100
PER_SECOND = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="length of the burst")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        os.environ["LLMSCHED_HOME"] = folder
        # An installation has its bytecode; a checkout may be told to write none, and would compile all at each start.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        llmsched(*UP)
        try:
            result: dict[str, Any] = median_of("help", lambda: llmsched("--help"))
            asyncio.run(fill())
            result |= {"finished": KNOWN, "waiting": WAITING, **median_of("status", lambda: llmsched("status"))}
            result |= restart(Path(folder))
            result |= asyncio.run(submit(Path(folder), options.seconds))
            result |= median_of("status_with_all_of_them", lambda: llmsched("status"))
        finally:
            llmsched("down")
    print(json.dumps(result, indent=2))


def llmsched(*words: str) -> None:
    command = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def median_of(name: str, act: Any, runs: int = 7) -> dict[str, float]:
    took = [timed(act) for _ in range(runs)]
    medians = [round(statistics.median(values), 4) for values in zip(*took, strict=True)]
    return dict(zip((f"{name}_s", f"{name}_cpu_s"), medians, strict=True))


def timed(act: Any) -> tuple[float, float]:
    """(seconds, CPU seconds of the processes that it waited for)"""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def task(name: str, *, gpus: int = 0) -> dict[str, Any]:
    wanted = {"accelerators": f"A100:{gpus}"} if gpus else {"cpus": 1}
    return {"name": name, "kind": "task", "resources": wanted, "task": {"run": ["true"]}}


async def fill() -> None:
    """KNOWN tasks that ended and WAITING ones that cannot start: an endpoint holds every GPU."""
    everything = {"accelerators": "A100:8", "cpus": 0}
    holder = {"name": "holder", "kind": "serve", "resources": everything, "replicas": 16, "serve": {"app": "a:B"}}
    async with AsyncClient() as client:
        await client.apply([holder])
        for begin in range(0, KNOWN, 100):
            await client.apply([task(f"known-{begin + i}") for i in range(100)])
        for i in range(KNOWN):
            await client.wait(f"known-{i}")
        await client.apply([task(f"waiting-{i}", gpus=8) for i in range(WAITING)])
        phases = Counter(view.phase for view in (await client.all_workloads()).workloads)
        assert phases == {"succeeded": KNOWN, "waiting": WAITING, "running": 1}, phases


async def submit(folder: Path, seconds: int) -> dict[str, Any]:
    async with AsyncClient() as client:
        one_by_one, before = [], cpu_s(folder)
        for i in range(200):
            began = time.perf_counter()
            await client.apply([task(f"single-{i}")])
            one_by_one.append((time.perf_counter() - began) * 1000)
        between, burst = cpu_s(folder), list[float]()

        async def one(i: int) -> None:
            began = time.perf_counter()
            await client.apply([task(f"burst-{i}")])
            burst.append((time.perf_counter() - began) * 1000)

        sent = []
        began = time.perf_counter()
        for i in range(seconds * PER_SECOND):
            await asyncio.sleep(max(0.0, began + i / PER_SECOND - time.perf_counter()))
            sent.append(asyncio.create_task(one(i)))
        await asyncio.gather(*sent)
        after = cpu_s(folder)
        known = {view.name for view in (await client.all_workloads()).workloads}
        lost = [i for i in range(seconds * PER_SECOND) if f"burst-{i}" not in known]
    return {
        "apply_ms": quantiles(one_by_one),
        "apply_cpu_ms": round((between - before) / 200 * 1000, 2),
        "burst": {
            "per_s": round(len(sent) / (time.perf_counter() - began), 1),
            "submitted": len(sent),
            "lost": len(lost),
            "cpu_ms": round((after - between) / len(sent) * 1000, 2),
            **quantiles(burst),
        },
    }


def restart(folder: Path) -> dict[str, Any]:
    """Killed with -9 and started again: until it answers, and what it needs before and after."""
    before = rss_mib(folder)
    os.kill(pid_of(folder), signal.SIGKILL)
    again, _ = timed(lambda: llmsched(*UP))
    used = cpu_s(folder)
    entries = asyncio.run(last_seq())
    return {
        "restart_to_serving_s": round(again, 2),
        "restart_controller_cpu_s": round(used, 2),
        "journal_entries": entries,
        "controller_rss_mib": max(before, rss_mib(folder)),
    }


def cpu_s(folder: Path) -> float:
    """Of the controller, so far."""
    times = psutil.Process(pid_of(folder)).cpu_times()
    return times.user + times.system


def rss_mib(folder: Path) -> int:
    return int(psutil.Process(pid_of(folder)).memory_info().rss >> 20)


async def last_seq() -> int:
    async with AsyncClient() as client:
        return (await client.health()).seq


def pid_of(folder: Path) -> int:
    return int(json.loads((folder / "controller.json").read_text())["pid"])


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": round(statistics.median(ordered), 1), "p99": round(ordered[int(len(ordered) * 0.99)], 1)}


if __name__ == "__main__":
    main()
