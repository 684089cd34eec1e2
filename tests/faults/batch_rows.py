"""Every row of a batch once: kill a worker, preempt it, give it another size, break a row; then count.

    python tests/faults/batch_rows.py [--rows 3000] > rows.json

One local Ray with two pretend GPUs. Prints one JSON object: what was done and when, rows in, out, distinct, set aside.
Exit 1 when a row is lost or doubled, or the broken one is not named.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WITHIN_S = 600.0
CLUSTER = {"queues": [{"name": "default"}], "scheduling": {"preemption": {"within_queue": "lower_priority"}}}
SLOW = """
import time

def length(rows):
    time.sleep(0.04 * len(rows))
    return [{"length": len(row["text"])} for row in rows]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    given = parser.parse_args()
    from llmsched.client import Client

    with tempfile.TemporaryDirectory(prefix="llms") as name:
        folder = Path(name)
        folder.chmod(0o711)
        work = folder / "work"
        work.mkdir()
        work.chmod(0o777)  # the work may run as a user of its own
        broken = given.rows // 2
        lines = [json.dumps({"text": f"row {number}"}) for number in range(1, given.rows + 1)]
        lines[broken - 1] = "no JSON"
        (work / "texts.jsonl").write_text("\n".join(lines) + "\n")
        code = folder / "code"
        code.mkdir()
        (code / "slow.py").write_text(SLOW)
        os.chdir(folder)
        os.environ["LLMSCHED_HOME"] = str(folder / "home")
        command("up", "--nodes", "1x2:A100")
        try:
            with Client() as client:
                client.configure(CLUSTER)
                said = disturbed(client, work, code)
        finally:
            command("down")
        out = [json.loads(line) for file in (work / "out").glob("part-*") for line in file.read_text().splitlines()]
        places = [row["_row"] for row in out]
        bad = [json.loads(line) for line in (work / "out" / "_bad_rows.jsonl").read_text().splitlines()]
    said |= {"rows": given.rows, "answered": len(places), "distinct": len(set(places)), "set_aside": bad}
    print(json.dumps(said, indent=2))
    is_right = len(places) == len(set(places)) == given.rows - 1 and [one["row"] for one in bad] == [broken]
    return 0 if is_right and said["phase"] == "succeeded" else 1


def disturbed(client: Any, work: Path, code: Path) -> dict[str, Any]:
    began = time.monotonic()
    resources = {"accelerators": ["A100:1"], "cpus": 0.25}
    section = {"input": {"path": str(work / "texts.jsonl")}, "map": "slow:length", "format": "jsonl", "batch_size": 8}
    batch = {**section, "output": str(work / "out")}
    spec = {"name": "rows", "kind": "batch", "workers": "1..2", "resources": resources, "priority": 10, "batch": batch}
    spec["workdir"] = code.name
    done: list[dict[str, Any]] = []

    def until(what: str, is_so: Callable[[Any], Any]) -> Any:
        ends = time.monotonic() + WITHIN_S
        while time.monotonic() < ends:
            view = client.status("rows")
            if found := is_so(view):
                done.append({"what": what, "at_s": round(time.monotonic() - began, 1), **view.progress})
                return found
            if view.ended:
                raise SystemExit(f"{what}: {view.phase}: {view.message}")
            time.sleep(0.2)
        raise SystemExit(f"{what}: not within {WITHIN_S:.0f} s")

    def further(rows: int) -> Callable[[Any], bool]:
        return lambda view: view.phase == "running" and view.progress.get("step", 0) > rows

    def step() -> int:
        return int(client.status("rows").progress.get("step", 0))

    client.apply([spec])
    until("it runs", further(0))
    os.kill(member(), signal.SIGKILL)
    until("a worker was killed", lambda view: view.phase != "running")
    until("and it goes on", further(step() + 100))
    urgent = {
        "name": "urgent",
        "kind": "task",
        "workers": 1,
        "priority": 90,
        "resources": resources | {"accelerators": ["A100:2"]},
    }
    client.apply([{**urgent, "task": {"run": ["sleep", "3"]}}])
    until("it was preempted", lambda view: view.phase == "waiting")
    until("it goes on", further(step()))
    client.apply([{**spec, "workers": 1}])
    until("it has another size", lambda view: view.phase == "running" and view.size == 1)
    view = client.wait("rows", timeout_s=WITHIN_S)
    done.append({"what": "it ended", "at_s": round(time.monotonic() - began, 1)})
    return {"phase": view.phase, "metrics": view.metrics, "done": done}


def member() -> int:
    """The process of one worker of the batch. No other batch may run on this machine meanwhile."""
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and b"(Member)" in (process / "cmdline").read_bytes():
                return int(process.name)
        except OSError:
            continue
    raise SystemExit("no worker of the batch is there")


def command(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
