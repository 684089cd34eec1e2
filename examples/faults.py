"""Takes a pretended node away from the cluster that `llmsched up --nodes` started: what runs there is gone at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil


def kill_node(home: Path, name: str) -> None:
    """`home`: of the controller; `name`: such as node-2. Ends Ray's own process of it, and with that all below. Raises
    SystemExit for a node that is none."""
    known = {one["name"]: one["pid"] for one in json.loads((home / "ray.json").read_text())["processes"]}
    if name not in known:
        raise SystemExit(f"there is no node {name} here; there are {', '.join(known)}")
    node = psutil.Process(known[name])
    raylets = [each for each in node.children(recursive=True) if each.name() == "raylet"]
    for each in raylets:
        each.kill()
    psutil.wait_procs(raylets, timeout=10)


def home() -> Path:
    """Of the run that this program belongs to."""
    return Path(os.environ["LLMSCHED_HOME"])
