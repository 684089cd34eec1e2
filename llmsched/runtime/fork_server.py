"""One process a node that has imported what replicas need, and becomes each of them by a fork.

Importing torch, transformers and Ray takes as long as loading a small model, and each replica did it anew: Ray gives an
actor an idle worker only if that was made for the same job, actor and runtime environment, and a worker that held an
actor ends with it. So Ray is told to start a replica's worker by `forked.py`, which asks here.

Nothing of one replica is in another's: this process runs nobody's code and loads no model, and who has code, packages
or variables of its own (`may_fork`) starts as ever. A fork has its own environment to the letter; whoever's differs in
more than whose it is (another job of Ray's, another raylet) is refused. This process has one thread and no device open,
or it ends before it answers: a fork copies neither. It ends with its raylet, when memory gets short, and when nobody
has asked for long. Linux only. Start reading at `begin`, which is called on the node, and `serve`.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.runtime import forked, guardian, serve_internals, start_costs
from llmsched.runtime.environment import thread_envs
from llmsched.runtime.packages import own_folder

BEGINS_WITH_BYTES, ENDS_BELOW_BYTES = 3 * 1024**3, 1024**3  # of memory that is to be had on the node
IDLE_S = 3600.0
LOOK_EVERY_S = 5.0
ASKS_WITHIN_S = 2.0  # who connects
ENDS_WITHIN_S = 10.0  # who serves another environment
IMPORTED = "llmsched.runtime.replica", "ray.serve", "numpy.random"
ENGINE = "workloads.inference.replica"
OWN = (guardian.OWNER,)  # what may differ between those that are forked here
# Threads that libraries begin when they are imported are no use in a fork, which has none of them.
ENVS = {**thread_envs(1), "JE_ARROW_MALLOC_CONF": "background_thread:false", "SPT_NOENV": "1"}  # not the environment
DEVICES = "/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel", "/dev/davinci"
ROOM = "-" * 1024  # a fork writes its title where the words of this command stand


class Request(NamedTuple):
    argv: list[str]
    envs: dict[str, str]
    cwd: str
    streams: list[int]


def may_fork(order: Mapping[str, Any]) -> bool:
    """Whether the replica of this LaunchOrder (as JSON data) is our own code alone, with no variables of its owner's,
    which libraries may have read when they were imported."""
    spec = order["spec"]
    own = order.get("envs") or order.get("workdir") or (spec.get("environment") or {}).get("pip")
    return "model" in (spec.get("serve") or {}) and not own and len(order["members"]) == 1


def begin(pid: int) -> str:
    """Called on a node, beside a replica that was started as ever, by its pid: from now on replicas may be forked. What
    Ray is to start their workers with; "" where they should start as ever."""
    if sys.platform != "linux" or available_bytes() < BEGINS_WITH_BYTES:
        return ""
    envs = _own_removed(_environment_of(pid))
    if "RAY_RAYLET_PID" not in envs:
        return ""
    begun = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, ROOM],
        env=envs | ENVS,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    assert begun.stdin is not None
    with begun.stdin as said:  # among them is Ray's token, so not as arguments, which everybody may read
        said.write(json.dumps(envs).encode())
    begun.wait()  # only its first process
    return f"{sys.executable} -I -S {forked.__file__}"


def available_bytes() -> int:
    """Of memory: the machine's, and what the container leaves of it."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    least = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # ValueError: "max"
            group = Path("/sys/fs/cgroup")
            least = min(least, int((group / most).read_text()) - int((group / used).read_text()))
    return least


class ForkServer:
    """`envs`: the environment of those that may be forked, but for what is each one's OWN. `folder` is this user's."""

    def __init__(self, envs: Mapping[str, str], folder: Path) -> None:
        self._envs = dict(envs)
        raylet = int(envs["RAY_RAYLET_PID"])
        self._raylet = os.pidfd_open(raylet)
        self._path = folder / str(raylet)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)

    def is_first(self) -> bool:
        """Whether nobody serves this environment yet; who serves another one of this raylet's ends."""
        with suppress(OSError):
            if forked.ask(str(self._path), [], self._envs):
                return False
        until = time.monotonic() + ENDS_WITHIN_S
        while time.monotonic() < until:
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.1)  # a wait for a lock has no end of its own
        return False

    def serve(self, *, idle_s: float = IDLE_S, least_bytes: int = ENDS_BELOW_BYTES) -> Request | None:
        """In a fork: what it is to be. In this process, once it is of no use any more: None."""
        draft = self._path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        self._listener.bind(str(draft))
        self._listener.listen(16)
        self._listener.settimeout(ASKS_WITHIN_S)
        draft.rename(self._path)
        signal.signal(signal.SIGCHLD, _reap)
        signal.signal(signal.SIGTERM, _end)
        watched, asked_at = select.poll(), time.monotonic()
        watched.register(self._listener, select.POLLIN)
        watched.register(self._raylet, select.POLLIN)
        try:
            while available_bytes() >= least_bytes and time.monotonic() - asked_at < idle_s:
                ready = [handle for handle, _ in watched.poll(LOOK_EVERY_S * 1000)]
                if self._raylet in ready:
                    break
                if not ready:
                    continue
                asked_at = time.monotonic()
                with suppress(OSError, ValueError, KeyError, TypeError, struct.error):  # of who asks
                    line, _ = self._listener.accept()
                    with line:
                        request, is_over = self._answer(line)
                    if request is not None:
                        self._leave()
                        return request
                    if is_over:
                        break
        finally:
            if self._lock >= 0:
                self._path.unlink(missing_ok=True)
                self._path.with_suffix(".lock").unlink(missing_ok=True)
        return None

    def _answer(self, line: socket.socket) -> tuple[Request | None, bool]:
        """(In a fork, what it is to be; whether this process is of no use any more)"""
        line.settimeout(ASKS_WITHIN_S)
        head, streams, _, _ = socket.recv_fds(line, forked.LENGTH.size, 3)
        try:
            said = json.loads(_read(line, min(forked.LENGTH.unpack(head)[0], forked.MOST_BYTES)))
            if _own_removed(said["envs"]) != self._envs or len(streams) != 3:
                line.sendall(b"n")
                return None, not said["argv"]
            if not said["argv"]:
                line.sendall(b"y")
                return None, False
            request = Request([*said["argv"]], dict(said["envs"]), str(said["cwd"]), [os.dup(one) for one in streams])
            if os.fork():
                for stream in request.streams:
                    os.close(stream)
                return None, False
            if not _is_wanted(line):
                os._exit(0)
            return request, False
        finally:
            for stream in streams:
                os.close(stream)

    def _leave(self) -> None:
        """What a fork has no part in."""
        self._listener.close()
        os.close(self._raylet)
        os.close(self._lock)
        self._lock = -1


def become(request: Request) -> None:
    """Run a script in this fork, as if it were a Python that has just begun. Its output streams are the asker's."""
    os.setpgid(0, 0)
    for told in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(told, signal.SIG_DFL)
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.cwd)
    os.environ.clear()
    ctypes.CDLL(None).clearenv()  # what libraries have set beside
    os.environ.update(request.envs)
    _show(request.envs)
    import_module("numpy").random.seed()  # Python's own generator begins anew by itself
    start_costs.is_forked = True
    sys.argv[:] = request.argv
    runpy.run_path(request.argv[0], run_name="__main__")


def _show(envs: Mapping[str, str]) -> None:
    """Let others read this process's environment where they read any other's: whose it is stands there. The kernel
    shows the memory where the environment lay when this program began, which nothing uses any more."""
    words = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    begin, end = int(words[47]), int(words[48])
    first = [name for name in OWN if name in envs]
    said = b"".join(
        os.fsencode(f"{name}={envs[name]}") + b"\0" for name in [*first, *(n for n in envs if n not in first)]
    )
    size = end - begin
    ctypes.memmove(begin, said[: size - 1].ljust(size, b"\0"), size)


def _import() -> None:
    for name in IMPORTED:
        import_module(name)
    import_module(ENGINE).import_engine()
    serve_internals.set_title("llmsched: has imported what replicas need")
    gc.collect()
    gc.freeze()


def _is_fit() -> bool:
    """Whether a fork of this process would be whole."""
    open_files = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.exists()]
    return len([*Path("/proc/self/task").iterdir()]) == 1 and not any(one.startswith(DEVICES) for one in open_files)


def _environment_of(pid: int) -> dict[str, str]:
    found = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(one).split("=", 1) for one in found if b"=" in one)


def _is_wanted(line: socket.socket) -> bool:
    """Whether who asked for a fork still waits for it."""
    try:
        line.sendall(b"y")
        return line.recv(1) == b"g"
    except OSError:
        return False


def _own_removed(envs: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in envs.items() if name not in OWN}


def _read(line: socket.socket, size: int) -> bytes:
    said = b""
    while len(said) < size:
        more = line.recv(size - len(said))
        if not more:
            raise ValueError("it broke off")
        said += more
    return said


def _end(*told: Any) -> None:
    sys.exit()


def _reap(*told: Any) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _sweep(folder: Path) -> None:
    """Of those that were killed, after their raylet."""
    for lock in folder.glob("*.lock"):
        if not Path(f"/proc/{lock.stem}").exists():
            for file in (lock, lock.with_suffix(""), lock.with_suffix(".new")):
                file.unlink(missing_ok=True)


def main() -> None:
    envs = json.load(sys.stdin)
    if os.fork():
        return
    Path("/proc/self/oom_score_adj").write_text("1000")  # as Ray has its workers: nobody's work goes before it
    folder = own_folder(Path(forked.folder_of(os.getuid())))
    _sweep(folder)
    server = ForkServer(envs, folder)
    if not server.is_first():
        return
    _import()
    request = server.serve() if _is_fit() else None
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
