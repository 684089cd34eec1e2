"""The process of one deployment on this machine, with a line to it: `serve_child.py` is what runs there.

It ends when the line is cut, at the latest. Start at `Process`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

CLOSE_WITHIN_S = 5.0
_BEGIN = (
    "import sys; fd, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; "
    "from llmsched.runtime import serve_child; serve_child.main(fd)"
)


class Process:
    """`line` is its end of the line, and no longer ours; `say` hears each line that it prints."""

    def __init__(
        self,
        line: socket.socket,
        envs: Mapping[str, str],
        say: Callable[[str], object],
        path: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        with line:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(line.fileno()), *(path or sys.path)],
                env=dict(envs),
                cwd=folder,
                pass_fds=[line.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        assert self._process.stdout is not None
        self._shown = threading.Thread(
            target=_show, args=(self._process.stdout, say), daemon=True, name="serve process says"
        )
        self._shown.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def how_it_ended(self, within_s: float = 0.0) -> str:
        """ "ended with 1", "was ended by SIGKILL"; "" while it is there."""
        try:
            code = self._process.wait(within_s) if within_s else self._process.poll()
        except subprocess.TimeoutExpired:
            return ""
        if code is None:
            return ""
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def close(self) -> None:
        """Its line is cut: it has CLOSE_WITHIN_S to end by itself."""
        try:
            self._process.wait(CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._shown.join(CLOSE_WITHIN_S)


def beside(envs: Mapping[str, str]) -> tuple[socket.socket, Process]:
    """A process of the replica's own, with these variables more; our end of the line to it."""
    ours, theirs = socket.socketpair()
    return ours, Process(theirs, {**os.environ, **envs}, _in_our_own_output)


def _in_our_own_output(line: str) -> None:
    """Which knows what is to be hidden."""
    sys.stdout.write(line)
    sys.stdout.flush()


def _show(said: IO[bytes], say: Callable[[str], object]) -> None:
    with said:
        for line in said:
            say(line.decode(errors="replace"))
