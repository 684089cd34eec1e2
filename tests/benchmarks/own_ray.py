"""From nothing to a Ray program's first line: `kind: ray` beside `ray start` by hand, in turn, in one run.

    python tests/benchmarks/own_ray.py [--runs 5] [--workers 1] > own_ray.json

Prints one JSON object; seconds, medians, and every run. The program imports ray, calls `ray.init()` and tells the time.
`llmsched_s`: from `apply` on a controller that runs; the gang is placed, its Ray comes up, the program starts.
`by_hand_s`: from `ray start --head`, and a node more for each further worker, until the same program's line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llmsched.executors.ports import free_ports

WITHIN_S = 180.0
PROGRAM = "import ray, sys, time; ray.init(log_to_driver=False); open(sys.argv[1], 'w').write(repr(time.time()))"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        Path(folder).chmod(0o711)
        work.chmod(0o777)  # the program may run as a user of its own
        os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
        command("up", "--nodes", f"{given.workers}x1:A100")
        try:
            pairs = [(ours(work, i, given.workers), by_hand(work, i, given.workers)) for i in range(given.runs)]
        finally:
            command("down")
    our, hand = (statistics.median(side) for side in zip(*pairs, strict=True))
    result = {"llmsched_s": round(our, 2), "by_hand_s": round(hand, 2), "ratio": round(our / hand, 2)}
    runs = [[round(one, 2) for one in pair] for pair in pairs]
    print(json.dumps({**result, "workers": given.workers, "cpus": os.cpu_count(), "runs": runs}, indent=2))


def command(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until_first_line(file: Path, begin: Callable[[], None]) -> float:
    began, until = time.time(), time.monotonic() + WITHIN_S
    begin()
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until, f"{file.name} never began"
        time.sleep(0.01)
    return float(file.read_text()) - began


def ours(work: Path, number: int, workers: int) -> float:
    from llmsched.client import Client

    name, file = f"own-{number}", work / f"ours-{number}"
    spec = {
        "name": name, "kind": "ray", "workers": workers, "resources": {"accelerators": "A100:1"},
        "ray": {"run": ["python", "-c", PROGRAM, str(file)]},
    }  # fmt: skip
    with Client() as client:
        taken = until_first_line(file, lambda: client.apply([spec]) and None)
        assert client.wait(name, timeout_s=WITHIN_S).phase == "succeeded"
    return taken


def by_hand(work: Path, number: int, workers: int) -> float:
    env = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "LLMSCHED_"))}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}
    file, sessions = work / f"hand-{number}", tempfile.mkdtemp(prefix="r", dir="/tmp")
    nodes: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        options = [
            "--block",
            "--num-cpus=1",
            "--num-gpus=1",
            f"--temp-dir={sessions}/{len(nodes)}",
            "--min-worker-port=0",
        ]
        options += ["--max-worker-port=0", "--dashboard-agent-listen-port=0", "--object-store-memory=256000000"]
        log = Path(f"{sessions}/{len(nodes)}.log")
        with log.open("wb") as out:
            nodes.append(subprocess.Popen([*RAY, "start", *words, *options], env=env, stdout=out, stderr=out))
        while b"Ray runtime started" not in log.read_bytes():
            assert nodes[-1].poll() is None, log.read_text()
            time.sleep(0.02)

    def begin() -> None:
        dashboard, client = free_ports(2)
        start("--head", "--port=0", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}")
        address = address_in(Path(sessions) / "0.log")
        for _ in range(workers - 1):
            start(f"--address={address}")
        subprocess.run([sys.executable, "-c", PROGRAM, str(file)], env={**env, "RAY_ADDRESS": address}, check=True)

    try:
        return until_first_line(file, begin)
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
        subprocess.run(["rm", "-rf", sessions], check=True)


def address_in(log: Path) -> str:
    """As `ray start` tells those who are to join."""
    found = re.search(r"--address='([0-9.:]+)'", log.read_text())
    assert found is not None, log.read_text()
    return found[1]


if __name__ == "__main__":
    main()
