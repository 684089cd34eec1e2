"""The real controller process, killed with -9 again and again while clients submit; then what it remembers is counted.

    python tests/faults/kill_loop.py --kills 500 [--clients 4] [--seed 1] > kills.json

Prints one JSON object: acknowledged submissions lost or doubled, what fsck finds (gaps are among it), restart times in
seconds from the start of the process to its first answer. Snapshots, what ended leaving the state, and compaction
happen every moment, so that kills fall into them. Each client sends a submission, with its key, until it is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from llmsched.api import fsck, home

CHECK_EVERY = 25  # kills; fsck folds all that is kept
LIVES_S = (0.02, 0.8)  # after the first answer, until the next kill
SERVER = """
import sys
from llmsched.api import server
from llmsched.control import housekeeping
from llmsched.core import archive

housekeeping.SNAPSHOT_EVERY, housekeeping.TIDY_EVERY_S = 40, 0.2
archive.ENDED_KEPT, archive.AT_ONCE = 20, 5
tidy = housekeeping.Housekeeping._tidy

async def soon(self, kept, at):
    await tidy(self, kept._replace(journal_s=5.0), at)

housekeeping.Housekeeping._tidy = soon
sys.exit(server.command(sys.argv[1:]))
"""


async def loop(folder: Path, kills: int, clients: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    home.prepare(folder)
    acknowledged: dict[str, int] = {}
    stop = asyncio.Event()
    headers = {"authorization": f"Bearer {home.own_token(folder)}"}
    senders = [asyncio.create_task(submit(url, headers, f"c{n}", acknowledged, stop)) for n in range(clients)]
    restarts, found = [], []
    began = time.monotonic()
    process: asyncio.subprocess.Process | None = None
    try:
        for number in range(kills):
            process, took = await started(folder, port)
            restarts.append(took)
            await asyncio.sleep(chance.uniform(*LIVES_S))
            process.send_signal(signal.SIGKILL)
            await process.wait()
            if (number + 1) % CHECK_EVERY == 0:
                found += await asyncio.to_thread(broken, folder)
        process, took = await started(folder, port)
        restarts.append(took)
        stop.set()
        await asyncio.gather(*senders)
        known = await names(url, headers)
        process.terminate()
        await process.wait()
    finally:
        for sender in senders:
            sender.cancel()
        if process is not None and process.returncode is None:
            process.kill()
    found += broken(folder)
    ordered = sorted(restarts)
    return {
        "kills": kills,
        "seconds": round(time.monotonic() - began, 1),
        "acknowledged": len(acknowledged),
        "lost": len([name for name in acknowledged if name not in known]),
        "doubled": len([name for name, count in known.items() if count > 1]),
        "fsck_differences": len(found),
        "fsck_said": found[:10],
        "restart_s": {
            "p50": round(statistics.median(ordered), 2),
            "p99": round(ordered[int(len(ordered) * 0.99)], 2),
            "max": round(ordered[-1], 2),
        },
    }


async def started(folder: Path, port: int) -> tuple[asyncio.subprocess.Process, float]:
    """The process once it answers, and how long that took. Raises AssertionError when it ended instead."""
    began = time.monotonic()
    words = ["--home", str(folder), "--fake-nodes", "2x4:A100", "--port", str(port)]
    with (folder / "logs" / "controller.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, *words, stderr=log)
    async with httpx.AsyncClient() as http:
        while True:
            assert process.returncode is None, (folder / "logs" / "controller.log").read_text()[-3000:]
            try:
                await http.get(f"http://127.0.0.1:{port}/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.01)
            else:
                return process, time.monotonic() - began


async def submit(url: str, headers: dict[str, str], client: str, acknowledged: dict[str, int], stop: Any) -> None:
    """One submission after the other, each until it is answered."""
    number = 0
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=100) as http:
        while not stop.is_set():
            name = f"{client}-{number}"
            spec = {"name": name, "kind": "task", "resources": {"cpus": 1}, "task": {"run": ["true"]}}
            try:
                answer = await http.post(
                    "/api/v1/apply", json={"specs": [spec]}, headers={"idempotency-key": f"key-{name}"}
                )
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if answer.status_code in (429, 503):
                await asyncio.sleep(0.05)
                continue
            assert answer.status_code == 200, answer.text
            (applied,) = answer.json()["applied"]
            assert applied["outcome"] == "created", applied  # the same answer to the same key
            acknowledged[name] = applied["run"]
            number += 1


async def names(url: str, headers: dict[str, str]) -> dict[str, int]:
    """Every workload there is, by pages, and how many runs each name has."""
    known: dict[str, dict[str, None]] = {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=100) as http:
        left: list[str | None] = [None]
        while left:
            cursor = left.pop()
            chosen: dict[str, Any] = {"active": 250, "waiting": 250, "ended": 250}
            answer = await http.get("/api/v1/workloads", params=chosen | ({"cursor": cursor} if cursor else {}))
            answer.raise_for_status()
            page = answer.json()
            for view in page["workloads"]:
                known.setdefault(view["name"], {})[view["id"]] = None
            left += page["next"]
    return {name: len(ids) for name, ids in known.items()}


def broken(folder: Path) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in fsck.examine(folder) if check.result != "ok"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        result = asyncio.run(loop(Path(folder) / "home", options.kills, options.clients, options.seed))
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["lost"] or result["doubled"] or result["fsck_differences"]))


if __name__ == "__main__":
    main()
