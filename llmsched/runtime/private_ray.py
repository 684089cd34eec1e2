"""One node of a private Ray: `ray start` beside a member, which ends with it. Knows processes, imports no Ray.

It shares nothing with the Ray on whose machines it runs, nor with another private one: its ports are chosen by the
kernel or held for it, its token is its own, and so is the folder of its sockets and logs. Its address is what the
head's GCS writes into that folder. Start reading at `RayNode.start`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from llmsched.ray_start import RAY
from llmsched.runtime import environment
from llmsched.runtime.process import prepare_child
from llmsched.runtime.rendezvous import HeldPort

COMES_UP_WITHIN_S = 120.0  # on a machine that is busy; some 5 s on one that is not
STORE_SHARE = 0.3  # of a member's memory, as Ray itself has it
LEAST_STORE_BYTES = 80_000_000
USUAL_STORE_BYTES = 256 * 1024**2  # of a member that asked for no memory: the machine's is not its own
# Its own processes, which nobody asks for: not counted as the program's. Measured at a head: 0.95 GB of daemons and
# dashboard, and 0.58 GB of what Ray Train and Ray Data keep beside a program's workers.
RAY_ITSELF_BYTES = 3 * 1024**3 // 2
LOOPBACK = "127.0.0.1"
_RUNNING = "Ray runtime started"  # Ray's own word, printed once the node is in its table
_DIED = "[exit code="
# Ray puts sockets below its folder, and the system ends their paths at 107 bytes.
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_TaskEventsHead"
_LONGEST_ROOT = 107 - len(_LONGEST_SOCKET) - len("/llmsched-12345678")
_STOPS_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.2
_CALLED = ("ray::", "ray-dashboard-")
_ALREADY_OURS = ("ray.io/node-id", "ray.io/node-group")  # labels that Ray gives by itself
_PROGRAM = (sys.executable, *RAY)


class DidNotStart(RuntimeError):
    """Why, in Ray's last words."""


class Share(NamedTuple):
    """What of a machine the node is told that it has."""

    cpus: int
    gpus: int
    memory: int  # bytes; 0: not counted
    store: int  # bytes, of memory
    custom: dict[str, float]
    labels: dict[str, str]

    @classmethod
    def of(cls, member: Mapping[str, Any], labels: Mapping[str, str], store: int = 0) -> Share:
        """Of a member of a LaunchOrder (as JSON data), on a machine with these labels."""
        asked = int(member.get("memory_bytes") or 0)
        store = store or (max(LEAST_STORE_BYTES, int(asked * STORE_SHARE)) if asked else USUAL_STORE_BYTES)
        kept = {name: text for name, text in labels.items() if name not in _ALREADY_OURS}
        gpus = int(member.get("gpus") or 0)
        custom = {name: float(amount) for name, amount in (member.get("custom") or {}).items()}
        flavor = kept.get("ray.io/accelerator-type")
        if not gpus:
            kept.pop("ray.io/accelerator-type", None)
        elif flavor:
            custom[f"accelerator_type:{flavor}"] = 1.0  # what a program's accelerator_type= asks for
        cpus = math.ceil(member.get("cpus") or 0)  # a part of one still runs one function at a time
        return cls(cpus, gpus, max(0, asked - store), store, custom, kept)

    def options(self) -> list[str]:
        options = [f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}", f"--object-store-memory={self.store}"]
        options += [f"--memory={self.memory}"] if self.memory else []
        options += [f"--resources={json.dumps(self.custom)}"] if self.custom else []
        written = ",".join(f"{name}={text}" for name, text in sorted(self.labels.items()))
        return [*options, *([f"--labels={written}"] if written else [])]


def is_rays(process: str) -> bool:
    """A process of Ray itself or one of its workers, by how it is called: it ends with its node, a moment later."""
    return process.startswith(_CALLED) or "/site-packages/ray/" in process or "ray.scripts.scripts" in process


class RayNode:
    """`start` once, then `wait` until it ends, or `stop`."""

    def __init__(self, token: str, share: Share, envs: Mapping[str, str], program: Sequence[str] = _PROGRAM) -> None:
        self._share, self._program, self.token = share, program, token
        self.folder = _folder()
        self._log = self.folder / "start.log"
        token_file = self.folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token)
        self.envs = {
            "RAY_agent_register_timeout_ms": str(int(COMES_UP_WITHIN_S * 1000)),
            "RAY_process_group_cleanup_enabled": "1",
            **envs,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[HeldPort] = []
        self._is_asked = False
        self.address = ""
        self.dashboard = ""  # of the head: http://127.0.0.1:PORT

    def start(self, ip: str, folder: Path, address: str = "") -> None:
        """Come up at `ip`, with `folder` as where workers stand; as the head, or as a node of the Ray at `address`.
        Raises DidNotStart."""
        self._process = subprocess.Popen(
            [*self._program, "start", *self._options(ip, address)],
            stdin=subprocess.DEVNULL,
            stdout=self._log.open("ab"),
            stderr=subprocess.STDOUT,
            env=self.envs,
            cwd=folder,
            start_new_session=True,
            preexec_fn=prepare_child,
        )
        until = time.monotonic() + COMES_UP_WITHIN_S
        while _RUNNING not in self._said():
            if self._process.poll() is not None:
                raise DidNotStart(f"`ray start` ended with code {self._process.returncode}{self.last_words()}")
            if time.monotonic() > until or self._is_asked:
                raise DidNotStart(f"`ray start` was not through after {COMES_UP_WITHIN_S:.0f} s{self.last_words()}")
            time.sleep(0.05)
        self.address = address or f"{ip}:{self._gcs_port()}"
        self.envs["RAY_ADDRESS"] = self.address

    def _options(self, ip: str, address: str) -> list[str]:
        options = ["--block", "--disable-usage-stats", "--log-color=false", f"--temp-dir={self.folder}"]
        options += [f"--node-ip-address={ip}", "--min-worker-port=0", "--max-worker-port=0"]
        options += ["--dashboard-agent-listen-port=0", *self._share.options()]
        if address:
            return [*options, f"--address={address}"]
        self._ports = [HeldPort(), HeldPort()]
        dashboard, client = (one.number for one in self._ports)
        self.dashboard = f"http://{LOOPBACK}:{dashboard}"
        options += ["--head", "--port=0", f"--ray-client-server-port={client}"]
        return [*options, f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard}"]

    def _gcs_port(self) -> int:
        files = list(self.folder.glob("session_latest/gcs_server_port_*"))
        if not files:
            raise DidNotStart("Ray did not write down on which port it listens")
        return int(files[0].read_text())

    @property
    def pid(self) -> int:
        """Of the process that all others of the node descend from; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    def node_id(self) -> str:
        """Ray's, in hex; "" when it is gone."""
        with suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                words = child.cmdline() if child.status() != psutil.STATUS_ZOMBIE else []
                if words and Path(words[0]).name == "raylet":
                    return next((str(word.partition("=")[2]) for word in words if word.startswith("--node_id=")), "")
        return ""

    def has_left(self, within_s: float) -> bool:
        """Whether it has gone by itself, as a node does that was drained and is idle. `ray start` stays."""
        until = time.monotonic() + within_s
        while (is_there := bool(self.node_id())) and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
        return not is_there

    def drain(self, node: str, within_s: float) -> str:
        """Tell the Ray that this node will go: what runs there has so long to leave. "", or why that failed."""
        words = ["drain-node", f"--address={self.address}", f"--node-id={node}"]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the workload gets smaller"]
        words += [f"--deadline-remaining-seconds={max(1, int(within_s))}"]
        told = subprocess.run(
            [*self._program, *words], env=self.envs, capture_output=True, text=True, cwd=self.folder, check=False
        )
        return "" if told.returncode == 0 else (told.stderr or told.stdout).strip()[-500:]

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended; whether it has."""
        if self._process is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it. Its workers go with it; the guardian ends what does not."""
        self._is_asked = True
        process = self._process
        if process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
                if self.wait(_STOPS_WITHIN_S):
                    break
        for port in self._ports:
            port.close()

    @property
    def was_stopped(self) -> bool:
        return self._is_asked

    def clean(self) -> None:
        """Remove its folder, once it has ended."""
        environment.drop(self.folder)

    def last_words(self) -> str:
        lines = [line.rpartition(" -- ")[2].strip() for line in self._said().splitlines() if line.strip()]
        died = next((line for line in lines if _DIED in line), "")  # which of its processes: Ray says it, and goes on
        return f": {died}" if died else f"; last line: {lines[-1][:300]}" if lines else ""

    def _said(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _folder() -> Path:
    root = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="llmsched-", dir=root if len(root) <= _LONGEST_ROOT else environment.SHORT))
    environment.keep(folder)
    return folder
