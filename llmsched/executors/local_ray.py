"""A Ray cluster on this machine, with pretend nodes: started for `llmsched up`, stopped without touching any other.

Knows processes and ports, never imports ray, decides nothing. Every process started here carries a random marker in
its environment and belongs to the session of a `ray start` whose pid and start time `<home>/ray.json` remembers, so
`stop` finds exactly what belongs to this home, however it was re-parented. None of them is told of the home: what they
share with the controller lies in a folder of its own, see `runtime_folder`. Start reading at `start`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil

from llmsched.errors import ClusterError, RequestError, SpecError
from llmsched.executors import ray_environment, ray_user
from llmsched.executors.ports import free_ports, is_free
from llmsched.executors.ray_user import RayUser
from llmsched.ray_start import RAY

LOOPBACK = "127.0.0.1"
# Ray replaces 127.0.0.1 by an address that others can reach, which changes with the network; all of 127/8 is loopback.
NODE_IP = "127.0.0.2" if sys.platform == "linux" else LOOPBACK
MARKER = "LLMSCHED_LOCAL_RAY"
TOKEN = "ray-token"
CPUS_PER_PRETEND_NODE = 8  # logical: nodes share the real ones, and CPUs must not be what pretend GPUs wait for
# So is their memory, and it is of what the machine has: Ray takes what is free while a node starts, which on a machine
# that is busy at that moment left two nodes with too little for ever.
MEMORY_SHARE = 0.7
OBJECT_STORE_BYTES = 256 * 1024**2
MAX_NODES = 64
# It sends what workers print to drivers that listen. Ours do not, as the log of each attempt is a file of its own, and
# one for every pretend node is a process that looks for new lines ten times a second.
_UNREAD = ("--include-log-monitor=false",)
HEAD_PARTS = ("gcs_server", "raylet")  # without one of them there is no cluster
# A node gives up when the head's own raylet is not known after 20 looks, which a busy machine needs longer for. Whether
# the head still comes is ours to see, so it looks for as long as we wait.
PATIENCE = {"RAY_NUM_REDIS_GET_RETRIES": "1000"}
# Another process was quicker to take a port; or the machine was busy, as Ray gives its raylet 30 s and no more.
_OTHERWISE_NEXT_TIME = ("bind", "timed out during startup")


class PretendNode(NamedTuple):
    gpus: int
    flavor: str | None


@dataclass(frozen=True)
class Process:
    """One `ray start --block`. `started` is the process' start time in seconds, which no reused pid shares."""

    name: str
    pid: int
    started: float
    gpus: int = 0
    flavor: str | None = None
    node: str = ""  # Ray's node id


@dataclass(frozen=True)
class LocalRay:
    address: str
    dashboard_url: str
    temp_dir: str
    marker: str
    processes: list[Process] = field(default_factory=list)
    user: str = ""  # whom it runs as; "": the controller's own user

    def is_alive(self) -> bool:
        """The head runs; a pretend node may be lost.

        `ray start` looks once a second whether its own processes live: one whose GCS was killed is still there for a
        moment, and its cluster is not.
        """
        head = _same(self.processes[0]) if self.processes else None
        if head is None or not self.processes[0].node:  # not joined yet: it is only being started
            return head is not None
        return {*HEAD_PARTS} <= {*_living_below(head)}


def parse_nodes(text: str) -> list[PretendNode]:
    """`2x4:A100,1x8:H100` -> nodes; count x GPUs : flavor, the flavor may be left out. Raises SpecError."""
    nodes: list[PretendNode] = []
    for part in text.split(","):
        shape, _, flavor = part.strip().partition(":")
        count, cross, gpus = shape.partition("x")
        if not (cross and count.isdigit() and gpus.isdigit() and int(count) > 0) or (":" in part and not flavor):
            raise SpecError(f"cannot read the nodes {part.strip()!r}.", hint="Write count x GPUs : flavor: 2x4:A100.")
        if flavor and not flavor.replace("-", "").replace("_", "").isalnum():
            raise SpecError(f"{flavor!r} is no name of an accelerator.", hint="Use letters, digits, - and _.")
        if len(nodes) + int(count) > MAX_NODES:
            raise SpecError(f"{text!r} asks for more than {MAX_NODES} nodes on one machine.")
        nodes += [PretendNode(int(gpus), flavor or None)] * int(count)
    return nodes


def environment(home: Path) -> dict[str, str]:
    """What every process that talks to this home's Ray must have set, beside its own, before Python starts."""
    several = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"} if sys.platform == "darwin" else {}
    return several | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(runtime_folder(home) / TOKEN),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
        "RAY_process_group_cleanup_enabled": "1",  # no orphan keeps a GPU
        "RAY_prestart_worker_first_driver": "0",  # a pretend node's 8 CPUs are not there to be filled with idle workers
        "RAY_enable_worker_prestart": "0",
        # A dead raylet is noticed after 5 s instead of 15; a slow one still has 10 s for each answer.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
    }


def read(home: Path) -> LocalRay | None:
    """What `start` wrote, or None. Says nothing about whether it still runs."""
    try:
        data = json.loads((home / "ray.json").read_text())
        return LocalRay(**{**data, "processes": [Process(**one) for one in data["processes"]]})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ClusterError(f"{home / 'ray.json'} is not readable: {error}.", hint="Remove it if no Ray runs.") from None


def start(
    home: Path,
    nodes: Sequence[PretendNode] = (),
    *,
    port: int | None = None,
    dashboard_port: int | None = None,
    timeout_s: float = 180.0,
    user: RayUser | None = None,
    pass_on: Sequence[str] = (),
) -> LocalRay:
    """Start a head, and one raylet a pretend node; return when all have joined. Adopts one that runs already.

    Without `nodes` the head is the only node and has this machine's real CPUs and GPUs. The processes run as `user`
    (None: as the caller), are sessions of their own and outlive the caller. `pass_on` names variables that they get
    beside the usual ones. Raises ClusterError when Ray is missing or does not come up, RequestError when a port is
    taken, SpecError for a variable that cannot be handed on.
    """
    running = read(home)
    if running is not None:
        if running.is_alive():
            return running
        stop(home)
    if importlib.util.find_spec("ray") is None:
        raise ClusterError("Ray is not installed in this Python.", hint="Install it: pip install llmsched.")
    for wanted in (port, dashboard_port):
        if wanted is not None and not is_free(wanted):
            raise RequestError(f"port {wanted} is in use.", code="port_in_use", hint="Choose another, or leave it out.")
    for tries_left in (2, 1, 0):
        chosen = free_ports(3)
        ports = (port or chosen[0], dashboard_port or chosen[1], chosen[2])
        try:
            return _begin(home, nodes, ports, time.monotonic() + timeout_s, user, pass_on)
        except ClusterError as error:
            if not tries_left or not any(words in str(error) for words in _OTHERWISE_NEXT_TIME):
                raise
    raise ClusterError("the local Ray did not come up.")  # not reached: the last try returns or raises


def _begin(
    home: Path,
    nodes: Sequence[PretendNode],
    ports: tuple[int, int, int],
    deadline: float,
    user: RayUser | None,
    pass_on: Sequence[str],
) -> LocalRay:
    port, dashboard_port, client_port = ports
    home.mkdir(parents=True, exist_ok=True)
    (home / "logs").mkdir(exist_ok=True)
    env = ray_environment.build(os.environ, user, pass_on).variables
    temp_dir = prepare(home, user, [str(index) for index in range(len(nodes) + 1)])
    _write_token(temp_dir / TOKEN, user)
    marker = secrets.token_hex(16)
    address = f"{NODE_IP}:{port}"
    url = f"http://{LOOPBACK}:{dashboard_port}"
    cluster = LocalRay(address, url, str(temp_dir), marker, [], user.name if user else "")
    env |= {**environment(home), MARKER: marker, "TMPDIR": str(temp_dir / "tmp")}
    head = ["--head", f"--port={port}", f"--temp-dir={temp_dir / '0'}", f"--ray-client-server-port={client_port}"]
    head += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard_port}"]
    if nodes:
        head += ["--num-cpus=0", "--num-gpus=0", "--labels=llmsched.io/name=head", *_UNREAD]
    try:
        _spawn(cluster, home, env, "head", head)
        _wait_until(lambda: not is_free(port), cluster, home, deadline)
        for index, node in enumerate(nodes):
            options = [f"--address={address}", f"--temp-dir={temp_dir / str(index + 1)}", *_node_options(index, node)]
            _spawn(cluster, home, env | PATIENCE, f"node-{index + 1}", options, node)
        for process in list(cluster.processes):
            _wait_until(partial(_has_joined, _log(home, process.name)), cluster, home, deadline)
        cluster.processes[:] = [Process(**{**asdict(one), "node": _node_id(one)}) for one in cluster.processes]
        _remember(home, cluster)
    except BaseException:
        stop(home)
        clear(home)
        raise
    return cluster


def restart(home: Path, nodes: Sequence[PretendNode] = (), pass_on: Sequence[str] = ()) -> LocalRay:
    """The same cluster again, for whoever knows its address: one whose head has died begins anew on its ports, as its
    user, with its nodes unless others are given. Raises what `start` raises."""
    before = read(home)
    if before is None or before.is_alive():
        return start(home, nodes, pass_on=pass_on)
    user = ray_user.find(before.user) if before.user else None
    if before.user and user is None:
        raise ClusterError(f"the user {before.user}, whom Ray ran as, is not there any more.", hint="llmsched down.")
    same = nodes or [PretendNode(one.gpus, one.flavor) for one in before.processes[1:]]
    port, dashboard_port = (int(url.rpartition(":")[2]) for url in (before.address, before.dashboard_url))
    stop(home)
    return start(home, same, port=port, dashboard_port=dashboard_port, user=user, pass_on=pass_on)


def stop(home: Path, *, grace_s: float = 1.5) -> int:
    """End every process of this home's Ray and forget it; return how many there were. Raises ClusterError if one
    cannot be ended."""
    cluster = read(home)
    if cluster is None:
        return 0
    ended: set[int] = set()
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        ours = list(_ours(cluster))
        ended |= {one.pid for one in ours}
        for process in ours:
            with contextlib.suppress(psutil.Error):
                ask(process)
        psutil.wait_procs(ours, timeout=grace_s)
    left = [f"{one.pid}" for one in _ours(cluster)]
    if left:
        message = f"processes of the local Ray did not end: {', '.join(left)}."
        raise ClusterError(message, hint="The machine may be busy: llmsched down once more ends what is left.")
    shutil.rmtree(cluster.temp_dir, ignore_errors=True)  # with the token: the next cluster gets one of its own
    (home / "ray.json").unlink(missing_ok=True)
    return len(ended)


def _node_options(index: int, node: PretendNode) -> list[str]:
    labels = {"llmsched.io/pretend": "true", "llmsched.io/name": f"node-{index + 1}"}
    if node.flavor and node.gpus:
        labels["ray.io/accelerator-type"] = node.flavor
    written = ",".join(f"{key}={value}" for key, value in labels.items())
    memory = int(_memory_bytes() * MEMORY_SHARE)
    sizes = [f"--num-gpus={node.gpus}", f"--num-cpus={CPUS_PER_PRETEND_NODE}", f"--memory={memory}"]
    return [*sizes, f"--labels={written}", *_UNREAD]


def _memory_bytes() -> int:
    """Of this machine, or of the container that this runs in."""
    total: int = psutil.virtual_memory().total
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            total = min(total, int(Path("/sys/fs/cgroup", limit).read_text()))
    return total


def _spawn(
    cluster: LocalRay, home: Path, env: dict[str, str], name: str, options: list[str], node: PretendNode | None = None
) -> None:
    user = ray_user.find(cluster.user) if cluster.user else None
    command = ray_user.command(user) if user else []
    command += [sys.executable, *RAY, "start", "--block", "--disable-usage-stats", *options]
    command += [f"--node-ip-address={NODE_IP}", "--min-worker-port=0", "--max-worker-port=0"]
    command += ["--dashboard-agent-listen-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}", "--log-color=false"]
    with open(_log(home, name), "wb", opener=_private) as log:
        child = subprocess.Popen(  # a session of its own: survives us and our terminal
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            cwd=Path(cluster.temp_dir, "empty"),  # it goes into the sys.path of workers
            start_new_session=True,
        )
    started = psutil.Process(child.pid).create_time()
    cluster.processes.append(Process(name, child.pid, started, *(node or (0, None))))
    _remember(home, cluster)  # before the next step: a crash here must leave nothing unknown


def _wait_until(is_done: Callable[[], bool], cluster: LocalRay, home: Path, deadline: float) -> None:
    while not is_done():
        for process in cluster.processes:
            if _same(process) is None:
                words = _last_lines(_log(home, process.name))
                hint = f"What Ray wrote: {_log(home, process.name)}"
                raise ClusterError(f"Ray's {process.name} ended while starting:\n{words}", hint=hint)
        if time.monotonic() > deadline:
            logs = [_last_lines(_log(home, one.name), 5) for one in cluster.processes]
            raise ClusterError(
                "\n".join(["the local Ray did not come up in time.", *filter(None, logs)]),
                hint=f"A machine that is busy needs longer: try again. What Ray wrote: {_log(home, '*')}",
            )
        time.sleep(0.05)


def _has_joined(log: Path) -> bool:
    """The line is Ray's own word, printed once the raylet is in the node table."""
    return "Ray runtime started" in log.read_text(errors="replace")


def _ours(cluster: LocalRay) -> Iterator[psutil.Process]:
    """Everything alive that is recorded, in the session of one that is, or marked; found anew each time, since workers
    come and go. The session finds what wrote its title over its environment, as Ray's agents do, once its raylet is
    gone; the marker finds what began a session of its own."""
    sessions = {one.pid for one in cluster.processes if not _is_reused(one)}
    user = ray_user.find(cluster.user) if cluster.user else None
    uids = {os.getuid(), *([user.uid] if user else [])}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            # The kernel gives no pid to anybody while it is the number of a session.
            is_in_session = os.getsid(process.pid) in sessions and process.uids().real in uids
            if is_in_session or process.environ().get(MARKER) == cluster.marker:
                yield process
        except (psutil.Error, ProcessLookupError):
            continue


def _is_reused(process: Process) -> bool:
    """Whether its pid is somebody else's now."""
    try:
        return bool(abs(psutil.Process(process.pid).create_time() - process.started) >= 0.1)
    except psutil.NoSuchProcess:
        return False


def _same(process: Process) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        is_it = abs(found.create_time() - process.started) < 0.1 and found.status() != psutil.STATUS_ZOMBIE
        return found if is_it else None
    except psutil.Error:
        return None


def _living_below(process: psutil.Process) -> Iterator[str]:
    """The names of its descendants."""
    with contextlib.suppress(psutil.Error):
        for one in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.status() != psutil.STATUS_ZOMBIE:
                    yield one.name()


def _node_id(process: Process) -> str:
    found = _same(process)
    for child in found.children() if found else []:
        with contextlib.suppress(psutil.Error):
            for word in child.cmdline():
                if word.startswith("--node_id="):
                    return str(word.partition("=")[2])
    return ""


def _remember(home: Path, cluster: LocalRay) -> None:
    file = home / "ray.json"
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(cluster), indent=1))
    draft.replace(file)


def _write_token(file: Path, user: RayUser | None = None) -> None:
    """For its owner alone; a second user reads it through the group, and cannot put another in its place."""
    with contextlib.suppress(FileExistsError):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_hex(32))
            if user is not None:
                os.fchown(handle, -1, user.gid)
                os.fchmod(handle, 0o640)


def runtime_folder(home: Path) -> Path:
    """Of this home's Ray and of its bridge: ray-token, sessions, `tmp` for their files, and `empty` where they stand.

    Short, because Ray puts sockets below it and their names end at 107 bytes; ours alone, by the home's name. It ends
    with the cluster, and with it the files of processes that were killed.
    """
    running = read(home)
    if running is not None:  # started with another TMPDIR, perhaps
        return Path(running.temp_dir)
    root = Path(tempfile.gettempdir())
    owner = hashlib.sha256(f"{os.geteuid()}:{home.resolve()}".encode()).hexdigest()[:10]
    return (root if len(str(root)) < 30 else Path("/tmp")) / f"llms-{owner}"


def prepare(home: Path, user: RayUser | None = None, theirs: Sequence[str] = ()) -> Path:
    """The runtime folder. It is ours: `user` may pass it, and write only to `tmp` and to the folders `theirs`.

    Raises ClusterError when it is somebody else's, or when `user` cannot reach it.
    """
    folder = runtime_folder(home)
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode):
        raise ClusterError(f"{folder} belongs to somebody else.", hint="Set TMPDIR to a short folder of your own.")
    (folder / "empty").mkdir(mode=0o755, exist_ok=True)
    for name in ("tmp", *theirs):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            os.chown(folder / name, user.uid, user.gid)
    if user is not None:
        os.chown(folder, -1, user.gid)
        folder.chmod(0o710)
        if ray_user.closed(user, [folder / "tmp"]):
            raise ClusterError(f"{user.name} cannot reach {folder}.", hint="Set TMPDIR to a folder open to all: /tmp.")
    return folder


def clear(home: Path) -> None:
    """Remove the runtime folder, unless a Ray of this home lives in it."""
    if read(home) is None:
        shutil.rmtree(runtime_folder(home), ignore_errors=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"ray-{name}.log"


def _last_lines(file: Path, count: int = 15) -> str:
    """Its last words; of a traceback what was raised alone, as the file has the rest."""
    try:
        lines = file.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line[:1].strip() and not line.startswith("Traceback")][-count:])
