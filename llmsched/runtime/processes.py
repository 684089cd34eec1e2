"""The processes of one worker's command: started together, ended together, with one log. Knows no Ray.

Each is a process group of its own. When one fails, the others are ended: they would wait for it.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmsched.runtime import failures, redaction
from llmsched.runtime.process import prepare_child

OTHERS_WITHIN_S = 10.0  # between SIGTERM and SIGKILL, for those whose neighbour has failed
_LAST_WORDS_WITHIN_S = 2.0
_KILLED_WITHIN_S = 5.0


class Exit(NamedTuple):
    """How the processes ended: the exit code of the first that failed (-N: by signal N), else 0, and its place among
    them."""

    code: int
    place: int = 0


class Processes:
    """`run` blocks while `stop` may be called from another thread."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @property
    def pids(self) -> list[int]:
        """Of those that run, in their order."""
        return [one.pid for one in self._running if one.returncode is None]

    def run(self, argv: Sequence[str], folder: Path, each: Sequence[Mapping[str, str]]) -> Exit:
        """The command once for each of these environments, to the end of all."""
        ended: queue.Queue[Exit] = queue.Queue()
        self._running = []
        for index, envs in enumerate(each):
            with self._lock:
                if self._stopping.is_set():
                    break
                try:
                    process = self._start(argv, folder, envs)
                except OSError as error:
                    with self._log.open("ab") as log:
                        log.write(f"cannot run {argv[0]!r}: {error.strerror}\n".encode())
                    missing = isinstance(error, FileNotFoundError)
                    ended.put(Exit(failures.NOT_FOUND if missing else failures.NOT_EXECUTABLE, index))
                    break
                self._running.append(process)
            threading.Thread(target=self._wait, args=(process, index, ended), daemon=True).start()
        if self._stopping.is_set() and not self._running:
            return Exit(-signal.SIGTERM)
        found = Exit(0)
        for _ in range(max(1, len(self._running))):
            one = ended.get()
            if found.code == 0 and one.code != 0:
                found = one
                if not self._stopping.is_set() and len(self._running) > 1:
                    self._end(OTHERS_WITHIN_S)
        return found

    def stop(self, grace_s: float) -> None:
        """Ask them to end, then end them. Returns when they are gone, or when nothing more helps."""
        with self._lock:
            self._stopping.set()
        self._end(grace_s)

    def _end(self, grace_s: float) -> None:
        for sign, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILLED_WITHIN_S)):
            until = time.monotonic() + patience
            running = [one for one in self._running if one.returncode is None]
            for one in running:
                with suppress(ProcessLookupError):
                    os.killpg(one.pid, sign)
            for one in running:
                with suppress(subprocess.TimeoutExpired):
                    one.wait(timeout=max(0.0, until - time.monotonic()))
            if all(one.returncode is not None for one in running):
                return

    def _start(self, argv: Sequence[str], folder: Path, envs: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                list(argv),
                cwd=folder,
                env=dict(envs),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if redaction.hides() else log,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
                preexec_fn=prepare_child,
            )

    def _wait(self, process: subprocess.Popen[bytes], index: int, ended: queue.Queue[Exit]) -> None:
        if process.stdout is None:
            ended.put(Exit(process.wait(), index))
            return
        pumping = redaction.pump(process.stdout, self._log.open("ab", buffering=0))
        code = process.wait()
        pumping.join(_LAST_WORDS_WITHIN_S)  # children that outlive the command may hold its output open
        ended.put(Exit(code, index))
