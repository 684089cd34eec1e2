"""A home with its own Ray of pretend GPUs, used through the command line as anyone would, and the looks that tests on
real Ray share: what each side holds, and what is left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from waiting import PATIENCE_S, SLACK, wait_until

from llmsched.client import Client
from llmsched.executors.local_ray import MARKER
from llmsched.spec.endpoint_keys import key_of


class Home:
    def __init__(self, folder: Path, work: Path | None = None) -> None:
        """`work` is the folder in which commands are given."""
        self.folder, self.work = folder, work
        self.sessions: set[int] = set()
        self.markers: set[str] = set()  # of its Rays
        self.environment = {**os.environ, "LLMSCHED_HOME": str(folder)}

    def llmsched(self, *words: str, expect: int = 0, given: str = "") -> str:
        """What the command said; `given` is its standard input."""
        done = subprocess.run(
            [sys.executable, "-m", "llmsched.cli.main", *words],
            env=self.environment,
            cwd=self.work,
            input=given,
            capture_output=True,
            text=True,
            timeout=SLACK * 120,
        )
        assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def client(self) -> Client:
        return Client(home=self.folder)

    def bearer(self) -> dict[str, str]:
        """For endpoints, which take the key of a token."""
        return {"authorization": f"Bearer {key_of((self.folder / 'token').read_text().strip())}"}

    @property
    def storage(self) -> Path:
        """Where results lie."""
        return Path(json.loads((self.folder / "isolation.json").read_text())["storage"])

    def controller_pid(self) -> int:
        return int(json.loads((self.folder / "controller.json").read_text())["pid"])

    def bridge_pid(self) -> int | None:
        """Of the controller's child that alone talks to Ray; None while there is none."""
        for child in psutil.Process(self.controller_pid()).children():
            with contextlib.suppress(psutil.Error):  # one that has just ended is a zombie for a moment
                if any(word.endswith("llmsched.executors.bridge.main") for word in child.cmdline()):
                    return child.pid
        return None

    def actors(self, name: str) -> list[psutil.Process]:
        """Processes of Ray actors of that class; Ray adds the method that one is in to its title."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].partition(".")[0] == f"ray::{name}":
                    found.append(process)
        return found

    def processes(self) -> Iterator[psutil.Process]:
        """Whatever belongs to this home: in the session of a process it recorded, or with a mark in its environment.
        Ray's agents write their title over their environment, so that one mark is not enough."""
        for file in ("controller.json", "ray.json"):
            if (self.folder / file).exists():
                noted = json.loads((self.folder / file).read_text())
                self.sessions |= {one["pid"] for one in noted.get("processes", [noted])}
                self.markers |= {noted["marker"]} if "marker" in noted else set()
                with contextlib.suppress(psutil.NoSuchProcess):
                    if file == "controller.json" and (bridge := self.bridge_pid()):
                        self.sessions.add(bridge)  # a session of its own, and nothing of it names the home
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                around = process.environ()
                is_marked = around.get("LLMSCHED_HOME") == str(self.folder) or around.get(MARKER) in self.markers
                if is_marked or os.getsid(process.pid) in self.sessions:
                    yield process


PREEMPTION = Path(__file__).resolve().parents[2] / "examples" / "04_preempt_and_resume"
OPERATORS = "canary-of-the-operators-shell"  # in variables that no work may see


class SharedHome(Home):
    """Two pretend GPUs, the cluster file of an example, and perhaps a user for Ray; `said` is what `up` said."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "home", work=folder)
        theirs = ("LLMSCHED_TOKEN_OF_MINE", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "NOBODY_THOUGHT_OF_IT")
        self.environment |= dict.fromkeys(theirs, OPERATORS) | {"SHARED": "with all work", "HF_HOME": "/root/hub"}
        self.said = self.llmsched(
            "up", "--nodes", "1x2:A100", "--config", str(PREEMPTION / "cluster.yaml"), "--env", "SHARED"
        )

    def apply(self, text: str, *words: str, expect: int = 0) -> str:
        assert self.work is not None
        (self.work / "spec.yaml").write_text(text)
        return self.llmsched("apply", "-f", "spec.yaml", *words, expect=expect)


HELD = """
import json, ray, sys
ray.init(address=sys.argv[1], namespace="llmsched", log_to_driver=False, logging_level="ERROR")
from ray._private.state import available_resources_per_node
free = available_resources_per_node()
nodes = [node for node in ray.nodes() if node["Alive"]]
held = [node["Resources"].get("GPU", 0) - free.get(node["NodeID"], {}).get("GPU", 0) for node in nodes]
print(json.dumps(sorted(held)))
"""


def gpus_held_in_ray(home: Home) -> list[float]:
    """GPUs given away on each node, as Ray has it."""
    from llmsched.executors import local_ray

    cluster = local_ray.read(home.folder)
    assert cluster is not None
    environment = {**os.environ, **local_ray.environment(home.folder)}
    command = [sys.executable, "-c", HELD, cluster.address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, cwd=home.folder)
    assert done.returncode == 0, done.stderr
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


def gpus_held_in_ledger(home: Home) -> list[float]:
    """GPUs given away on each node, as llmsched has it."""
    with home.client() as client:
        return sorted(float(node.used.gpus) for node in client.nodes().nodes)


def assert_ray_and_ledger_agree(home: Home) -> None:
    """Nothing is leaked and nothing is missing: what Ray has given away is what the ledger says."""
    wait_until(lambda: gpus_held_in_ray(home) == gpus_held_in_ledger(home), 60, "Ray and the ledger agree")
