"""What a worker's work starts on its node ends with the work, whatever it is: see `guardian.py`, which does it.

A worker that runs a user's code holds a `Guard` while it does, and closes it before it says that it is done; a worker
that is killed needs to do nothing. Whose work it is stands in the worker's environment under OWNER: the bridge gives it
to the attempt's first process in Ray's runtime environment, which Ray hands on to everything that is made from there.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.runtime import guardian, serve_internals

OWNER = guardian.OWNER
CLOSE_WITHIN_S = guardian.POLITE_S + guardian.PATIENCE_S + 5.0
METADATA = "llmsched.owner"  # of a Ray job
BRIDGE = "llmsched.bridge"  # of the Ray job that a bridge is; it stays in Ray's tables when the bridge has ended
FIRST = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
DRIVER_ENVS = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_PR_SET_CHILD_SUBREAPER = 36


class Cleared(NamedTuple):
    """What outlived the work, by name: what had to be ended, and what would not end."""

    ended: list[str]
    left: list[str]


class OverMemory(NamedTuple):
    used: int  # bytes
    asked: int
    is_over: bool  # else it is a warning

    def __str__(self) -> str:
        used = f"used {_size(self.used)} of the {_size(self.asked)} of memory it asked for, on {socket.gethostname()}"
        return used if self.is_over else f"{used}: ask for more, or it may be ended"


def driver_envs(owner: str, address: str) -> dict[str, str]:
    """What a command needs so that a Ray driver it starts joins the cluster it runs on, and is known for its owner's
    with all that it makes: Ray reads these variables in `ray.init`, whatever address the program leaves open, and
    merges the second with what the program gives there. `address` is of Ray's control store (GCS)."""
    if not owner:
        return {}
    marked = {"runtime_env": {"env_vars": {OWNER: owner}}, "metadata": {METADATA: owner}}
    return dict(zip(DRIVER_ENVS, (address, json.dumps(marked)), strict=True))


def envs_of(owner: str) -> dict[str, str]:
    """The variables of Ray's runtime environment for an attempt's first process, and so for all that is made from it:
    whose it is, and what Ray's workers do first. (`worker_process_setup_hook`, Ray's public word, is for drivers.)"""
    return {OWNER: owner, FIRST: "llmsched.runtime.nested.enter"}


def owner_mark(attempt: str, cluster: str) -> str:
    """Of an attempt by its name, `llms/tune/0/1`, on a cluster by its id; nobody else's on any machine they share."""
    return f"{attempt}@{cluster[:16]}"


def attempt_of(mark: str, cluster: str) -> str | None:
    """The attempt that a mark names, unless it is of another cluster."""
    attempt, _, where = mark.rpartition("@")
    return attempt if attempt and where == cluster[:16] else None


def join_owner(address: str) -> None:
    """In a process that runs a user's code itself: what this makes through Ray, by whatever way, is the owner's, and
    Ray drivers that it starts join the cluster at `address`."""
    owner = os.environ.get(OWNER, "")
    if owner:
        os.environ.update(driver_envs(owner, address))
        serve_internals.mark_deployments(envs_of(owner))


def guard_of(order: Mapping[str, Any], rank: int, *, is_here: bool, on_memory: Callable[[OverMemory], None]) -> Guard:
    """For a rank of a LaunchOrder (as JSON data). `is_here`: the user's code runs in this very process."""
    member = order["members"][rank]
    return Guard(
        memory_bytes=int(member["memory_bytes"]),
        memory_action=order.get("over_memory", "off"),
        counts_worker=is_here,
        on_memory=on_memory,
    )


class Guard:
    """From construction to `close`. Where there is no /proc, or nobody's name in the environment, it does nothing.

    `memory_bytes` is what this rank asked for, 0 when nothing was; `counts_worker` when the user's code runs in this
    very process. `on_memory` is called from a thread; after one that `is_over` the worker has REPORT_WITHIN_S.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 0,
        memory_action: str = "off",
        counts_worker: bool = False,
        on_memory: Callable[[OverMemory], None] = print,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._on_memory, self._asked = on_memory, memory_bytes
        self._answers: list[dict[str, Any]] = []
        self._listener: threading.Thread | None = None
        self._pipe = -1
        self._mark = ""
        owner = environment.get(OWNER, "")
        if not owner or sys.platform != "linux":
            return
        self._mark = os.environ[guardian.WORKER] = f"{owner}#{uuid.uuid4().hex}"
        settings = {
            "worker": os.getpid(),
            "owner": owner,
            "mark": f"{guardian.WORKER}={self._mark}",
            "memory_bytes": memory_bytes,
            "memory_action": memory_action,
            "counts_worker": counts_worker,
        }
        script = str(Path(guardian.__file__))
        _become_subreaper(False)  # or the guardian, an orphan by intent, would come back as our child
        beside = subprocess.Popen(
            [sys.executable, "-I", "-S", script, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            env={name: text for name, text in environment.items() if name not in (OWNER, guardian.WORKER)},
        )
        beside.wait()  # only its first process, which has left it to the machine's first
        _become_subreaper(True)
        assert beside.stdin is not None and beside.stdout is not None
        self._pipe = os.dup(beside.stdin.fileno())
        beside.stdin.close()
        said = beside.stdout
        if b"ready" not in said.readline():
            raise RuntimeError("the guardian of this worker's processes did not start")
        self._listener = threading.Thread(target=self._listen, args=(said,), daemon=True, name="guardian")
        self._listener.start()

    def allow(self, more: int) -> None:
        """So many bytes more are not the work's own."""
        if self._listener is not None:
            with suppress(OSError):  # it is gone
                os.write(self._pipe, b"allow %d\n" % more)

    def close(self) -> Cleared:
        """End what is left of the work; return when nothing is, or after CLOSE_WITHIN_S."""
        if self._listener is None:
            return Cleared([], [])
        listener, self._listener = self._listener, None
        with suppress(OSError):  # it is gone
            os.write(self._pipe, b"close\n")
        listener.join(CLOSE_WITHIN_S)
        os.close(self._pipe)
        answer = self._answers[-1] if self._answers else {}
        if "ended" not in answer:  # the guardian was killed
            return Cleared(*guardian.end_all(f"{guardian.WORKER}={self._mark}", _below(os.getpid())))
        return Cleared(answer["ended"], answer["left"])

    def _listen(self, said: Any) -> None:
        with said:
            for line in said:
                word = json.loads(line)
                self._answers.append(word)
                if "memory" in word:
                    self._on_memory(OverMemory(word["memory"], self._asked, word["is_over"]))


def guardians_of(owner: str) -> int:
    """How many guardians of this owner are at work on this node."""
    mine = json.dumps(owner)
    commands = (guardian._command(pid) for pid in guardian.everyone())
    return sum(len(words) > 3 and words[3].endswith("guardian.py") and mine in words[-1] for words in commands)


def clear_node(owner: str, rays: Sequence[int] = ()) -> dict[str, list[str]]:
    """What is left of an attempt on the node where this is called: wait for guardians that are at it, then see to it.

    `rays`: pids of workers of Ray's that hold the owner's actors and that Ray does not end."""
    assert owner, "nobody's name would be everybody's"
    for pid in rays:
        with suppress(ProcessLookupError):
            process = guardian.identify(pid)
            if guardian.is_rays(pid):
                guardian.send(process, signal.SIGKILL)
    until = time.monotonic() + CLOSE_WITHIN_S
    while guardians_of(owner) and time.monotonic() < until:
        time.sleep(0.05)
    return Cleared(*guardian.end_all(f"{OWNER}={owner}", set(), polite_s=0.0))._asdict()


def clear_node_of(owner: str | None, rays: Sequence[int] = ()) -> dict[str, list[str]]:
    """`clear_node`, for Ray to call. None: nobody's, nothing is looked at; Ray's worker is awake for who comes next."""
    return Cleared([], [])._asdict() if owner is None else clear_node(owner, rays)


def owners_of(pids: Sequence[int]) -> list[str]:
    """The marks of the attempts that processes on this node descend from; "" for none."""
    return [_owner_of(pid) for pid in pids]


def _owner_of(pid: int) -> str:
    while pid > 1 and (row := guardian.row_of(pid)) is not None:
        if mark := guardian.value_of(pid, OWNER):
            return mark
        pid = row.parent
    return ""


def _become_subreaper(is_one: bool) -> None:
    """Whether descendants of this process that lose their parent come to it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0)


def _below(pid: int) -> set[guardian.Process]:
    rows = ((child, guardian.row_of(child)) for child in guardian.descendants({pid}))
    return {guardian.Process(child, row.started) for child, row in rows if row is not None}


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
