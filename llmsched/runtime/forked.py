"""Run by Ray in the place of Python (`py_executable` of a runtime environment), for a process that may be a fork of the
one on its node that has imported everything: asks for that, and where there is none, becomes Python as ever.

    python -I -S forked.py WORKER.PY ARGUMENTS...

Who waits here waits for a replica, so this starts in milliseconds: with the standard library alone. What is said goes
over a socket that is named after the node's raylet: the whole environment, so that nobody is forked of another one's.
"""

# ruff: noqa: PTH109
# pathlib alone would double the time that this takes to start.

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

ANSWERS_WITHIN_S = 5.0  # who waits longer starts as ever
LENGTH = struct.Struct("!I")
MOST_BYTES = 4 * 1024**2  # of a request: an environment and arguments


def folder_of(user: int) -> str:
    """Of sockets, so its path must be short. Only this user may enter it."""
    return f"/tmp/llmsched-forks-{user}"


def socket_of(raylet: int, user: int) -> str:
    """`raylet`: the pid of a node's, of which there may be several on a machine."""
    return f"{folder_of(user)}/{raylet}"


def ask(path: str, argv: Sequence[str], envs: Mapping[str, str]) -> bool:
    """Whether a fork runs this now, in the place of the caller: with its environment, folder and three streams."""
    said = json.dumps({"argv": [*argv], "envs": dict(envs), "cwd": os.getcwd()}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWERS_WITHIN_S)
        line.connect(path)
        _, user, _ = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user != os.getuid():
            return False
        socket.send_fds(line, [LENGTH.pack(len(said))], [0, 1, 2])
        line.sendall(said)
        if line.recv(1) != b"y":
            return False
        line.sendall(b"g")  # who has waited too long for it does not say so, and then the fork ends
        return True


def main() -> None:
    argv = sys.argv[1:]
    with suppress(OSError, ValueError, KeyError):
        if ask(socket_of(int(os.environ["RAY_RAYLET_PID"]), os.getuid()), argv, os.environ):
            return
    os.execv(sys.executable, [sys.executable, *argv])


if __name__ == "__main__":
    main()
