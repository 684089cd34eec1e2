"""`environment.pip`: what a workload needs beside the cluster's Python, installed once a node.

Each list of requirements has a virtual environment of its own on each node, on top of the Python that runs Ray: what
is there is not installed again, and ray, torch and llmsched stay the cluster's. The command of a task finds it first on
its PATH; a train worker and a replica put it before their own packages.

Ray's `runtime_env` was looked at and not taken. Its `pip` fails before any of our code runs: over and over, with the
reason in an agent's log, and it knows no wheel of a workdir. Its `py_executable` wants a path that is there on every
node before a worker starts, so another actor a node would have to go first. A member that installs for itself says why
it cannot, in its own log and in the workload's story. The price: a module that Ray loaded before (numpy, say) stays the
cluster's in train workers and replicas.

Where packages come from is the node's matter: pip's own configuration there (pip.conf, PIP_INDEX_URL).
Start reading at `provide`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.runtime import redaction
from llmsched.runtime.environment import UserError, drop, scratch, unpack
from llmsched.runtime.process import prepare_child

BUILD_WITHIN_S = 600.0  # for all packages of a list together, and for whoever waits until another member has done it
KEPT = 8  # environments on a node that nobody uses now; the one that was used longest ago goes first
LAST_WORDS = 4096  # bytes of pip's output that may be told
_LOOK_EVERY_S = 0.1
_CLUSTERS_OWN = ("ray", "torch")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_held: dict[str, int] = {}  # environments that this process uses: descriptors whose shared locks end with it

# What pip says when its index did not answer: another time it may.
_PASSING = re.compile(r"Retrying \(Retry|ConnectionError|ReadTimeout|Temporary failure|HTTP error 50[234]")

Say = Callable[[str], object]


class Unreachable(RuntimeError):
    """The packages could not be fetched just now. Trying again may help."""


class Packages(NamedTuple):
    """A virtual environment that is complete."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def site(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def surround(self, envs: dict[str, str]) -> dict[str, str]:
        """The same variables, for a process that runs in it."""
        path = os.pathsep.join([str(self.bin), envs.get("PATH", os.defpath)])
        return {**envs, "PATH": path, "VIRTUAL_ENV": str(self.folder)}

    def enter(self) -> None:
        """Let this process import from it, before its own packages, and whatever it starts find its commands."""
        before = list(sys.path)
        site.addsitedir(str(self.site))
        added = [path for path in sys.path if path not in before]
        sys.path[:] = [*added, *before]
        importlib.invalidate_caches()
        os.environ.update(self.surround(dict(os.environ)))


def provide(order: dict[str, Any], workdir: Path | None, say: Say = lambda text: None) -> Packages | None:
    """What the LaunchOrder's `environment.pip` asks for, installed if no member did that here before; None: nothing.

    `workdir` is where the packed folder was laid out, for the wheels in it; None lays it out for as long as it takes.
    Raises UserError for what cannot be installed: trying again is no use before somebody has changed something; and
    Unreachable when the index did not answer."""
    wanted: list[str] = (order["spec"].get("environment") or {}).get("pip") or []
    if not wanted:
        return None
    # What is shared must not depend on the variables of one workload, and an installer has no use for its secrets.
    secret = order["spec"].get("secrets") or ()
    theirs = {name for name in order["envs"] if name in secret or name.startswith("PIP_")}
    envs = {name: text for name, text in os.environ.items() if name not in theirs}
    if workdir is not None or not order.get("workdir") or not any(map(_is_wheel, wanted)):
        return build(wanted, workdir, envs, say)
    folder = scratch("packages")
    try:
        return build(wanted, unpack(order["workdir"], folder), envs, say)
    finally:
        drop(folder)


def build(
    wanted: list[str],
    workdir: Path | None,
    envs: Mapping[str, str] = os.environ,
    say: Say = lambda text: None,
    cache: Path | None = None,
) -> Packages:
    """The environment of these requirements, in `cache`, made with these variables. It is complete, and stays while
    this process lives."""
    cache = cache or own_folder(Path(tempfile.gettempdir()) / f"llmsched-packages-{os.getuid()}")
    parts = [str(_wheel(name, workdir)) if _is_wheel(name) else name for name in sorted(set(wanted))]
    found = Packages(cache / _key(parts))
    mark = str(found.folder)
    until = time.monotonic() + BUILD_WITHIN_S
    while mark not in _held:
        handle = _lock(found.folder, fcntl.LOCK_SH, until)
        if _is_ready(found):
            os.utime(found.folder)
            _held[mark] = handle
            break
        os.close(handle)
        # Nobody reads it while it is not complete. Whoever completes it meanwhile holds it for good.
        try:
            handle = _lock(found.folder, fcntl.LOCK_EX, until, unless=lambda: _is_ready(found))
        except _Completed:
            continue
        try:
            if not _is_ready(found):
                say(f"installing {', '.join(wanted)}\n")
                _install(found, parts, envs, until, say)
                say("installed\n")
        finally:
            os.close(handle)
        _forget_old(cache, found.folder)
    return found


def _is_wheel(requirement: str) -> bool:
    return requirement.endswith(".whl") and "@" not in requirement


def _wheel(name: str, workdir: Path | None) -> Path:
    if workdir is None:
        raise UserError(f"environment.pip: {name} is a file of the workdir, and there is none.")
    file = (workdir / name).resolve()
    if not file.is_relative_to(workdir.resolve()) or not file.is_file():
        raise UserError(f"environment.pip: no file {name} in the workdir. Put it there and apply the file again.")
    return file


def _key(parts: Iterable[str]) -> str:
    """Equal for equal contents: the Python underneath, the requirements, and what is in a wheel."""
    contents = [
        [Path(part).name, hashlib.sha256(Path(part).read_bytes()).hexdigest()] if Path(part).is_absolute() else part
        for part in parts
    ]
    about = [sys.version, sys.prefix, sys.base_prefix, platform.platform(), _constraints(), contents]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]


def _constraints() -> list[str]:
    """What stays as the cluster has it, whatever a requirement drags in."""
    kept = []
    for name in _CLUSTERS_OWN:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            kept.append(f"{name}=={importlib.metadata.version(name)}")
    return kept


def own_folder(folder: Path) -> Path:
    """`folder`, made if it is not there. In a place that everybody may write to, somebody else's would run their code
    as us. Raises UserError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if folder.is_symlink() or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise UserError(f"{folder} on this node belongs to somebody else; an operator must remove it.")
    return folder


class _Completed(Exception):
    pass


def _is_ready(found: Packages) -> bool:
    return (found.folder / "ready").exists()


def _lock(folder: Path, how: int, until: float, unless: Callable[[], bool] = lambda: False) -> int:
    """A descriptor that holds the lock on `folder`, which need not exist. Raises UserError if it takes too long, and
    _Completed when `unless` comes true first."""
    file = folder.with_suffix(".lock")
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
            if file.exists() and os.fstat(handle).st_ino == file.stat().st_ino:
                return handle
        except OSError:
            pass
        os.close(handle)  # in use, or removed between the two
        if unless():
            raise _Completed
        if time.monotonic() > until:
            raise UserError(f"environment.pip: another member was not ready with it after {BUILD_WITHIN_S:g} s.")
        time.sleep(_LOOK_EVERY_S)


def _install(found: Packages, parts: list[str], envs: Mapping[str, str], until: float, say: Say) -> None:
    """Built in its place, because the scripts in bin name their Python by its path; what makes it whole is `ready`."""
    shutil.rmtree(found.folder, ignore_errors=True)
    try:
        _call([sys.executable, "-m", "venv", "--without-pip", str(found.folder)], parts, envs, until, say)
        below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in below]  # with what those folders lead to
        (found.site / "zz_cluster.pth").write_text("".join(lines))
        kept = found.folder / "constraints.txt"
        kept.write_text("".join(f"{line}\n" for line in _constraints()))
        scraps = found.folder / "tmp"  # of a pip that is ended: they go with the rest
        scraps.mkdir()
        envs = {**envs, "TMPDIR": str(scraps)}
        pip = [sys.executable, "-m", "pip", "--python", str(found.bin / "python"), "install", "--no-input"]
        _call([*pip, "--disable-pip-version-check", "--constraint", str(kept), "--", *parts], parts, envs, until, say)
        shutil.rmtree(scraps, ignore_errors=True)
        (found.folder / "ready").touch()
    except BaseException:
        shutil.rmtree(found.folder, ignore_errors=True)
        raise


def _call(argv: list[str], parts: list[str], envs: Mapping[str, str], until: float, say: Say) -> None:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv,
            env=dict(envs),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare_child,
        )
        try:
            code: int | None = process.wait(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # itself, and the builds it began
            process.wait()
        if code == 0:
            return
        output.seek(max(0, output.seek(0, os.SEEK_END) - LAST_WORDS))
        said = _CREDENTIALS.sub("***@", redaction.clean(output.read().decode(errors="replace"))).strip()
    say(f"{said}\n")
    passing = code is not None and _PASSING.search(said)
    raise (Unreachable if passing else UserError)(_why(code, parts, said))


def _why(code: int | None, parts: list[str], said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = " ".join(lines[next((at for at, line in enumerate(lines) if line.startswith("ERROR:")), -2) :])
    names = [Path(part).name if Path(part).is_absolute() else part for part in parts]
    blamed = [name for name in names if re.split(r"[^A-Za-z0-9._-]", name)[0] in told] or names
    took = f" within {BUILD_WITHIN_S:g} s" if code is None else ""
    return (
        f"environment.pip: could not install {', '.join(blamed)[:200]}{took}: {told[:500]}  "
        "Check the name and version, and that this node's pip reaches its index (pip config list); apply again."
    )


def _forget_old(cache: Path, but: Path) -> None:
    """Remove what is beyond KEPT and used by nobody."""
    folders = sorted((one for one in cache.iterdir() if one.is_dir() and one != but), key=_used_at, reverse=True)
    for folder in folders[KEPT - 1 :]:
        with contextlib.suppress(UserError):
            handle = _lock(folder, fcntl.LOCK_EX, until=0.0)
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(".lock").unlink(missing_ok=True)
            os.close(handle)


def _used_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
