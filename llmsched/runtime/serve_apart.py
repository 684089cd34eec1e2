"""A deployment in a process of its own, below the replica's: it sees its share of the replica's GPUs alone.

A program that asks for a GPU takes the first that it sees, so two deployments of one process would meet on it. The
process has the replica's folder, packages, variables and log, and ends with it: when the line to it is cut, at the
latest. Its other end is `serve_child.py`.
"""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any, NamedTuple

from ray.serve._private.common import DeploymentID
from ray.serve.deployment import Application, Deployment
from ray.serve.handle import DeploymentHandle

from llmsched.runtime import serve_handles
from llmsched.runtime.serve_handles import Put, Running
from llmsched.runtime.serve_line import REQUEST, Line

CLOSE_WITHIN_S = 5.0  # for the destructor, and again for the process
_BEGIN = (
    "import sys; fd, sys.path[:] = int(sys.argv[1]), sys.argv[2:]; "
    "from llmsched.runtime import serve_child; serve_child.main(fd)"
)


class Place(NamedTuple):
    """What its process differs in. `inside`, which can be pickled, makes a serve_graph.Graph there of what the
    deployment deploys itself."""

    envs: Mapping[str, str]
    inside: Callable[[Application, str], Any] | None = None


class Apart:
    """As `serve_graph.Deployed`, but for requests over HTTP: an ingress is never here."""

    def __init__(self, deployment: Deployment, app_name: str, most: int, place: Place) -> None:
        self.id = DeploymentID(deployment.name, app_name)
        self.has_check = True
        self._deployment, self._most, self._inside = deployment, most, place.inside
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(theirs.fileno()), *sys.path],
                env={**os.environ, **place.envs},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        assert self._process.stdout is not None
        _thread(_show, self._process.stdout)
        self._line = Line(Connection(ours.detach()), _answer, self._gone)
        _thread(self._line.read)

    def begin(self) -> None:
        """Construct the user's object there. Raises what its constructor raises, WorkError when the process ends."""
        given = self._deployment, self.id.app_name, self._most, self._inside
        self.has_check = self._line.ask("begin", given).result()

    def handle(self) -> DeploymentHandle[Any]:
        return serve_handles.handle_of(self.id, self._line.deployment(self.id))

    def check(self) -> concurrent.futures.Future[None]:
        """The user's own word, if there is one."""
        return self._line.ask("check", None)

    @property
    def is_gone(self) -> str:
        """Why its process is not there any more, or ""."""
        return self._gone() if self._process.poll() is not None else ""

    def close(self) -> None:
        with suppress(Exception):  # it is gone, or has told its log
            self._line.ask("close", None).result(CLOSE_WITHIN_S)
        self._line.close()
        try:
            self._process.wait(CLOSE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_WITHIN_S)
        code = self._process.returncode
        how = "does not answer" if code is None else f"ended with {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return f"the process of deployment {self.id.name} {how}"


def _answer(what: str, given: Any, put: Put | None) -> Running:
    """What a deployment there asks of one here, or of one in another process."""
    assert what == REQUEST
    id, metadata, args, kwargs = given
    return serve_handles.behind(id).run(metadata, args, kwargs, put)


def _show(said: IO[bytes]) -> None:
    """In this process's own output, which knows what is to be hidden."""
    with said:
        for line in said:
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()


def _thread(work: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=work, args=args, daemon=True, name="serve apart").start()
