"""As which user Ray runs, and so every workload: found, made, and whether anything lies between it and the controller.

Inside one user of the system there is no boundary: whoever may start an actor may read what that user may read. So a
controller that root starts has Ray run as a user of its own, in a view of the file system in which only its Python,
this code and what is open to everybody can be seen (`enter.py`). Where that cannot be had, `Choice.why` says why, and
the controller is in single-user mode. Start reading at `choose`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from llmsched.errors import RequestError

DEFAULT = "llmsched-ray"
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
# Whoever is in one of these may become root, or read what root may read.
MIGHTY = frozenset({"root", "sudo", "wheel", "admin", "docker", "lxd", "incus", "libvirt", "disk", "shadow", "kmem"})
_MAKE_WITHIN_S = 30.0
_TRY_WITHIN_S = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


class RayUser(NamedTuple):
    """A user of this system. `groups` are all of its groups, `home` is its home directory."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: Path

    def may_write(self, path: Path) -> bool:
        """By the permission bits of `path` alone."""
        about = path.stat()
        bits = 0o200 if about.st_uid == self.uid else 0o020 if about.st_gid in self.groups else 0o002
        return bool(about.st_mode & bits)


class Choice(NamedTuple):
    """`user`: whom Ray runs as; None: the controller's own user, which is single-user mode, and `why` says why."""

    user: RayUser | None
    why: str = ""


def find(name: str) -> RayUser | None:
    try:
        about = pwd.getpwnam(name)
    except KeyError:
        return None
    groups = os.getgrouplist(name, about.pw_gid)
    return RayUser(name, about.pw_uid, about.pw_gid, tuple(groups), Path(about.pw_dir))


def own() -> str:
    """The name of this process' user."""
    return pwd.getpwuid(os.geteuid()).pw_name


def owner_of(address: str) -> str | None:
    """The name of the user whose Ray listens at HOST:PORT on this machine, if that can be told."""
    import psutil

    port = address.rpartition(":")[2]
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and str(one.laddr.port) == port and one.pid:
            with suppress(psutil.Error, KeyError):
                return pwd.getpwuid(psutil.Process(one.pid).uids().real).pw_name
    return None


def choose(asked: str | None, *, make: bool = True) -> Choice:
    """Whom Ray runs as when this process starts it. Raises RequestError when `asked` by name and not to be had.

    With `make`, a user who is not there is made with the system's own tool.
    """
    if asked == own():
        return Choice(None, f"Ray runs as {asked}, as the controller does")
    try:
        return Choice(_second(asked or DEFAULT, make))
    except RequestError as error:
        if asked is not None:
            raise
        return Choice(None, f"{error.message.rstrip('.')}. {error.hint}".rstrip())


def _second(name: str, make: bool) -> RayUser:
    """Raises RequestError."""
    if sys.platform != "linux":
        raise _refusal(f"a user of its own for Ray needs Linux, and this is {sys.platform}", "")
    if os.geteuid() != 0:
        raise _refusal(
            f"only root can start Ray as another user, and this is {own()}",
            "Start with sudo llmsched up, for a boundary between the controller and what it runs.",
        )
    user = find(name) or (_made(name) if make else None)
    if user is None:
        raise _refusal(f"there is no user {name}", f"llmsched up makes it: --ray-user {name}.")
    check(user, code())
    if make:
        _try(user)
    return user


def check(user: RayUser, runs: Sequence[Path]) -> None:
    """That there is a boundary between root, who runs what lies in the folders `runs`, and `user`. Raises
    RequestError."""
    if user.uid == 0:
        raise _refusal(f"{user.name} is root by another name", "Choose a user who may do less.")
    mighty = sorted(MIGHTY & set(_group_names(user.groups)))
    if mighty:
        hint = "Choose a user who is in no such group."
        raise _refusal(f"{user.name} could become root: it is in the group {', '.join(mighty)}", hint)
    writable = next((path for path in runs if user.may_write(path)), None)
    if writable is not None:
        hint = f"chown -R root {writable}, and chmod -R go-w {writable}."
        raise _refusal(f"{user.name} may change {writable}, which the controller runs", hint)


def _refusal(message: str, hint: str) -> RequestError:
    return RequestError(f"{message}.", code="ray_user", hint=hint)


def _made(name: str) -> RayUser:
    if not _NAME.fullmatch(name):
        raise _refusal(f'"{name}" is no name of a user', "Use lower-case letters, digits, - and _.")
    tool = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if tool is None:
        raise _refusal(f"there is no user {name}, and no useradd to make it", f"Make a system user {name}.")
    words = [tool, "--system", "--user-group", "--create-home", "--home-dir", f"/var/lib/{name}"]
    done = subprocess.run(
        [*words, "--shell", "/usr/sbin/nologin", name], capture_output=True, text=True, timeout=_MAKE_WITHIN_S
    )
    user = find(name)
    if user is None:
        said = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        raise _refusal(f"the user {name} could not be made: {said}", f"Make a system user {name}.")
    user.home.chmod(0o700)
    return user


def _group_names(groups: Sequence[int]) -> Iterator[str]:
    import grp

    for group in groups:
        try:
            yield grp.getgrgid(group).gr_name
        except KeyError:
            continue


def _try(user: RayUser) -> None:
    """That Ray can be started as `user`: its Python and its packages can be read. Raises RequestError."""
    say = "import importlib.util, llmsched, workloads; open(importlib.util.find_spec('ray').origin).close()"
    words = [*command(user), sys.executable, "-P", "-c", say]
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TRY_WITHIN_S, cwd="/", env=env
        )
    except subprocess.TimeoutExpired:
        hint = "Look what keeps it, then try again."
        raise _refusal(f"a Python of {user.name} did not start within {_TRY_WITHIN_S:g} s", hint) from None
    if done.returncode:
        said = (done.stderr.strip() or f"it ended with {done.returncode}").splitlines()[-1]
        hint = "Install llmsched and its Python where every user can read them, as in /opt."
        raise _refusal(f"{user.name} cannot run the Python of this llmsched, {sys.executable} ({said})", hint)


# --- what it can see ------------------------------------------------------------------------------------------------


def code() -> list[Path]:
    """Folders with what our processes run: Python, its packages, llmsched. Not where somebody happens to stand, which
    Python also looks through: what is revealed must not depend on that."""
    import llmsched

    own = Path(llmsched.__file__).resolve().parent.parent
    found = [
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(sys.executable).parent,
        own,
        *map(Path, site.getsitepackages()),
    ]
    found += [path.resolve() for path in found]
    kept: list[Path] = []
    for path in sorted({one for one in found if one.is_absolute() and one.exists()}):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return kept


def closed(user: RayUser, paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """Folders that `user` may not pass, with those of `paths` that lie below each."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        for folder in reversed(path.parents):
            about = folder.stat()
            bits = 0o100 if about.st_uid == user.uid else 0o010 if about.st_gid in user.groups else 0o001
            if not about.st_mode & bits:
                found.setdefault(folder, []).append(path)
                break
    return found


def hidden(user: RayUser, path: Path) -> bool:
    """Whether `user`, in its view, cannot get to `path`."""
    below = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    return bool(closed(user, [below / "any" if below.is_dir() else below]))


def command(user: RayUser, *, module: str = "") -> list[str]:
    """The words before a command that runs as `user`, in its view; or, with `module`, all words to run that module."""
    reveal = [f"--reveal={folder}:{path}" for folder, paths in closed(user, code()).items() for path in paths]
    # -I: it begins as root, and must run nothing that lies in the user's home or is named by a variable.
    words = [sys.executable, "-I", "-m", "llmsched.executors.enter", f"--user={user.name}", *reveal]
    return [*words, f"--module={module}"] if module else [*words, "--"]


# --- what the controller does in its place ----------------------------------------------------------------------------


@contextmanager
def acting_as(user: RayUser | None) -> Iterator[None]:
    """Within, this thread uses files as `user` would: what a link of theirs leads to is theirs, or is refused.

    For plain calls, never around an await: the thread is what changes. None changes nothing.
    """
    try:
        act_as(user)
        yield
    finally:
        if user is not None:
            _libc.setfsuid(os.geteuid())
            _libc.setfsgid(os.getegid())


def act_as(user: RayUser | None) -> None:
    """The same for the rest of this thread. Raises PermissionError when this process may not."""
    if user is None:
        return
    if os.getgroups():  # root has no need of them, and a link could lead to what they open
        os.setgroups([])
    _libc.setfsgid(user.gid)
    _libc.setfsuid(user.uid)
    if _libc.setfsuid(-1) != user.uid:  # it answers with what was, and refuses without a word
        raise PermissionError(f"this process may not use files as {user.name}")


def folder_of(user: RayUser, home: Path) -> Path:
    """Where `user` keeps what belongs to the controller of `home`: results, converted models."""
    return (
        user.home / f"{home.name.strip('.') or 'home'}-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:8]}"
    )
