"""Become the user that Ray runs as, for good, in a view of the file system of its own; then run what was asked.

    python -I -m llmsched.executors.enter --user=NAME [--reveal=CLOSED:PATH ...] -- COMMAND ...
    python -I -m llmsched.executors.enter --user=NAME [--reveal=CLOSED:PATH ...] --module=MODULE

As root. CLOSED is a folder that the user may not pass, such as /root, and PATH a folder below it that it has to read,
such as a Python: within the view CLOSED is an empty folder that holds nothing but PATH, which cannot be written to.
Nothing of it can be seen from outside, and no permission of any file is changed.

With --module there is no exec in between. That leaves a process which nobody but root can look into or trace, from the
first moment that it belongs to the user: no window in which another process of that user could take its pipe.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m llmsched.executors.enter")
    parser.add_argument("--user", required=True)
    parser.add_argument("--reveal", action="append", default=[])
    parser.add_argument("--module", default="")
    parser.add_argument("command", nargs="*")
    given = parser.parse_args(arguments)
    if bool(given.module) == bool(given.command):
        parser.error("give a command or --module")
    revealed: dict[Path, list[Path]] = {}
    for one in given.reveal:
        closed, _, path = one.partition(":")
        revealed.setdefault(Path(closed), []).append(Path(path))
    if revealed:
        reveal(revealed)
    become(given.user)
    if given.command:
        os.execvp(given.command[0], given.command)
    sys.argv = [given.module]
    runpy.run_module(given.module, run_name="__main__", alter_sys=True)


def reveal(folders: dict[Path, list[Path]]) -> None:
    """Put an empty folder in the place of each, with these paths below it. Raises OSError."""
    _check(_libc.unshare(_CLONE_NEWNS), "a view of the file system of its own")
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)  # what is mounted outside later appears here, never the reverse
    for closed, paths in sorted(folders.items()):
        held = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in paths}
        _mount("none", str(closed), "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=64k")
        for path, handle in held.items():
            path.mkdir(parents=True)
            _mount(f"/proc/self/fd/{handle}", str(path), "", _MS_BIND | _MS_REC)
            _mount("none", str(path), "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
            os.close(handle)


def become(name: str) -> None:
    """Give up everything but what user `name` may do; it cannot be had back, not by a set-user-id program either."""
    about = pwd.getpwnam(name)
    if about.pw_uid == 0:
        raise SystemExit("enter: that user is root")
    os.initgroups(name, about.pw_gid)
    os.setresgid(about.pw_gid, about.pw_gid, about.pw_gid)
    os.setresuid(about.pw_uid, about.pw_uid, about.pw_uid)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "to have no more privileges")
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "to be looked into by nobody")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(done, f"to mount {target}")


def _check(answer: int, what: str) -> None:
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} (asked for {what})")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        raise SystemExit(f"enter: {error.strerror}") from None
