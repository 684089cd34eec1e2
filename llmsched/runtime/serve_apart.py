"""A deployment in a process of its own, asked over a line: below the replica's, or at a member of its gang anywhere.

A program that asks for a GPU takes the first that it sees, so two deployments of one process would meet on it. Below
the replica (`serve_process.py`) the process has the replica's folder, packages, variables and log; a member
(`serve_member.py`) has these for itself. Either ends with the line, at the latest. Its other end is `serve_child.py`.
"""

from __future__ import annotations

import concurrent.futures
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from ray.serve._private.common import DeploymentID
from ray.serve.deployment import Application, Deployment
from ray.serve.handle import DeploymentHandle

from llmsched.runtime import serve_handles
from llmsched.runtime.serve_door import connection_of
from llmsched.runtime.serve_handles import Asked, Put, Running
from llmsched.runtime.serve_line import REQUEST, Line

CLOSE_WITHIN_S = 5.0  # for the destructor


class Home(Protocol):
    """The process of a deployment, wherever it is."""

    def how_it_ended(self, within_s: float = 0.0) -> str:
        """ "ended with 1"; "" while it is there, or while nobody knows."""

    def close(self) -> None:
        """Its line is cut: return when it has ended."""


class Place(NamedTuple):
    """Where a copy of a deployment is to run. `open` begins its process: our end of the line, and who knows how it
    ended. The others, which can be pickled, are called there: `inside` makes a serve_graph.Graph of what the deployment
    deploys itself, `prepare` fetches what its arguments name, before it is constructed."""

    open: Callable[[], tuple[socket.socket, Home]]
    inside: Callable[[Application, str], Any] | None = None
    prepare: Callable[[], object] | None = None


class Told(NamedTuple):
    """What the process is told to make: copy `rank` of `copies` of the deployment."""

    deployment: Deployment
    app_name: str
    most: int
    inside: Callable[[Application, str], Any] | None
    prepare: Callable[[], object] | None
    rank: int
    copies: int


class Apart:
    """As `serve_graph.Deployed`, but for requests over HTTP: an ingress is never here."""

    def __init__(
        self, deployment: Deployment, app_name: str, most: int, place: Place, rank: int = 0, copies: int = 1
    ) -> None:
        self.id = DeploymentID(deployment.name, app_name)
        self.has_check = True
        self._name = deployment.name if copies == 1 else f"{deployment.name} (copy {rank} of {copies})"
        self._told = Told(deployment, app_name, most, place.inside, place.prepare, rank, copies)
        ours, self._home = place.open()
        self._line = Line(connection_of(ours), _answer, self._gone)
        threading.Thread(target=self._line.read, daemon=True, name="serve apart").start()

    def begin(self) -> None:
        """Construct the user's object there. Raises what its constructor raises, WorkError when the process ends."""
        self.begun().result()

    def begun(self) -> concurrent.futures.Future[None]:
        """The same, to be waited for."""
        asked = self._line.ask("begin", self._told)
        asked.add_done_callback(self._learn)
        return asked

    def _learn(self, begun: concurrent.futures.Future[Any]) -> None:
        if begun.exception() is None:
            self.has_check = bool(begun.result())

    def handle(self) -> DeploymentHandle[Any]:
        return serve_handles.handle_of(self.id, self.asked())

    def asked(self) -> Asked:
        return self._line.deployment(self.id)

    @property
    def can_answer(self) -> bool:
        """Whether its process is there, as far as its line knows: nothing is waited for."""
        return self._line.is_open

    def check(self) -> concurrent.futures.Future[None]:
        """The user's own word, if there is one."""
        return self._line.ask("check", None)

    @property
    def is_gone(self) -> str:
        """Why its process is not there any more, or ""."""
        return self._line.has_ended or (self._gone() if self._home.how_it_ended() else "")

    def close(self) -> None:
        with suppress(Exception):  # it is gone, or has told its log
            self._line.ask("close", None).result(CLOSE_WITHIN_S)
        self._line.close()
        self._home.close()

    def _gone(self) -> str:
        how = self._home.how_it_ended(CLOSE_WITHIN_S) or "does not answer"
        return f"the process of deployment {self._name} {how}"


def _answer(what: str, given: Any, put: Put | None) -> Running:
    """What a deployment there asks of one here, or of one in another process."""
    assert what == REQUEST
    id, metadata, args, kwargs = given
    return serve_handles.behind(id).run(metadata, args, kwargs, put)
