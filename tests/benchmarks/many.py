"""Sixty-four one-replica Serve applications on pretend GPUs, deployed by llmsched: how long, how heavy, how it heals.

    python tests/benchmarks/many.py [--replicas 64] > many.json

Prints one JSON object; seconds, cores, MiB. One serve workload of 64 replicas of a trivial app: every replica is a gang
and so a Serve application of its own. Needs 220 MiB of memory a replica; stops before it starts when that is not there.
Starts a local Ray of its own with pretend GPUs and ends everything it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MIB_A_REPLICA = 220
WATCHED_S = 10.0
RECOVERED_WITHIN_S = 90.0
APP = "class Trivial:\n    def __call__(self, body):\n        return {'yes': True}\n"
SPEC = """\
name: many
kind: serve
resources: {{accelerators: "A100:1", cpus: 0}}
replicas: {replicas}
workdir: .
serve: {{app: "trivial:Trivial"}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=64)
    replicas = parser.parse_args().replicas
    need, there = replicas * MIB_A_REPLICA + 2048, psutil.virtual_memory().available >> 20
    if there < need:
        sys.exit(f"{replicas} replicas need about {need} MiB of memory; {there} MiB are free")
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        home, work = Path(folder) / "home", Path(folder) / "work"
        work.mkdir()
        (work / "trivial.py").write_text(APP)
        (work / "spec.yaml").write_text(SPEC.format(replicas=replicas))
        os.environ["LLMSCHED_HOME"] = str(home)
        from llmsched.executors import local_ray

        os.environ.update(local_ray.environment(home))  # before ray is imported: it caches the mode
        llmsched("up", "--nodes", f"1x{replicas}:A100")
        try:
            found = local_ray.read(home)
            assert found is not None
            result = measure(work / "spec.yaml", home, found.address, replicas)
        finally:
            llmsched("down")
    print(json.dumps(result, indent=2))


def llmsched(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(spec: Path, home: Path, address: str, replicas: int) -> dict[str, Any]:
    from llmsched.client import Client

    used = psutil.virtual_memory().used
    client = Client()
    began = time.monotonic()
    client.apply(spec)

    def ready() -> int:
        return sum(gang.status == "running" for gang in client.status("many").gangs)

    first = until(lambda: ready() > 0, 200, "the first replica")
    first_s, deploy_s = first - began, until(lambda: ready() == replicas, 200, f"{replicas} replicas") - began
    used = psutil.virtual_memory().used - used
    status = statistics.median(timed(lambda: llmsched("status")) for _ in range(5))

    import ray
    from ray import serve

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        controller = process("ServeController")
        serve_status = statistics.median(timed(serve.status) for _ in range(3))
        controller.cpu_percent()
        bridge = next(p for p in psutil.process_iter() if is_bridge(p, home))
        bridge.cpu_percent()
        time.sleep(WATCHED_S)
        cores, bridge_cores = controller.cpu_percent() / 100, bridge.cpu_percent() / 100
        rss = controller.memory_info().rss >> 20
        recovery = kill(controller, client, replicas)
    finally:
        ray.shutdown()
    return {
        "replicas": replicas,
        "first_replica_s": round(first_s, 1),
        "deploy_s": round(deploy_s, 1),
        "memory_mib_a_replica": round(used / replicas / 2**20),
        "status_s": round(status, 2),
        "serve_status_s": round(serve_status, 2),
        "serve_controller": {"cores": round(cores, 2), "rss_mib": rss},
        "bridge_cores": round(bridge_cores, 2),
        "controller_killed": recovery,
    }


def kill(controller: psutil.Process, client: Any, replicas: int) -> dict[str, Any]:
    """-9 to the Serve controller: who answers meanwhile, and when Serve says again that every application runs."""
    import httpx
    from ray import serve

    endpoint, token = client.health().urls["endpoint"], Path(os.environ["LLMSCHED_HOME"], "token").read_text().strip()
    answered: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=30) as http:
            while not stop.is_set():
                answered.append(http.post(f"{endpoint}/v1/apps/many", json={}).status_code)
                time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: len(answered) > 5, 30, "answers before the kill")
        os.kill(controller.pid, signal.SIGKILL)
        began = time.monotonic()

        def is_back() -> bool:
            if process("ServeController").pid == controller.pid:
                return False
            try:
                found = serve.status().applications
            except Exception:  # it is not up yet: whatever this raises means that
                return False
            return sum(one.status.value == "RUNNING" for name, one in found.items() if "/" in name) == replicas

        back = until(is_back, RECOVERED_WITHIN_S, "a Serve controller that knows all") - began
        time.sleep(5)  # llmsched looks again; nothing may be restarted or told as lost
    finally:
        stop.set()
        asking.join()
    view = client.status("many")
    return {
        "all_running_again_s": round(back, 1),
        "asked_meanwhile": len(answered),
        "answered_200": answered.count(200),
        "replicas_restarted": sum(gang.restarts for gang in view.gangs),
    }


def process(name: str) -> psutil.Process:
    """The newest process of ours whose title holds `name`."""
    found = [one for one in psutil.process_iter() if name in title(one) and belongs(one)]
    return max(found, key=lambda one: one.create_time(), default=psutil.Process())


def title(one: psutil.Process) -> str:
    try:
        return " ".join(one.cmdline())
    except psutil.Error:
        return ""


def belongs(one: psutil.Process) -> bool:
    try:
        is_ours = one.environ().get("LLMSCHED_HOME") == os.environ["LLMSCHED_HOME"]
        return is_ours and one.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_bridge(one: psutil.Process, home: Path) -> bool:
    return "llmsched.executors.bridge" in title(one) and belongs(one)


def until(there: Callable[[], Any], within_s: float, what: str) -> float:
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic()


def timed(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
