"""The process of one deployment that has GPUs of its own: `serve_apart.py` starts it and says what it runs."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from typing import Any

from ray.serve.deployment import Deployment
from starlette.responses import Response

from llmsched.runtime import exceptions, serve_graph, serve_handles
from llmsched.runtime.serve_handles import Put, Running
from llmsched.runtime.serve_line import REQUEST, Line


class Child:
    """Answers for its one deployment."""

    def __init__(self) -> None:
        self._deployed: serve_graph.Deployed

    def answer(self, what: str, given: Any, put: Put | None) -> Running:
        match what:
            case "begin":
                return self._begin(*given)
            case "check":
                return self._deployed.check()
            case "close":
                return self._deployed.submit(self._deployed.destroyed())
        assert what == REQUEST
        id, metadata, args, kwargs = given
        return serve_handles.behind(id).run(metadata, args, kwargs, put)

    def _begin(self, deployment: Deployment, app_name: str, most: int, inside: Any) -> Running:
        if inside is not None:
            serve_graph.deploy_inside(inside)
        self._deployed = deployed = serve_graph.Deployed(deployment, app_name, most, _nobody_asks)
        serve_handles.handle_of(deployed.id, deployed)

        async def begun() -> bool:
            with exceptions.in_words():  # with the place where it was raised, which does not travel
                await deployed.constructed()
            return deployed.has_check

        return deployed.submit(begun())


def _nobody_asks(value: Any) -> Response:
    raise AssertionError("an ingress has no process of its own")


def main(fd: int) -> None:
    child = Child()
    Line(Connection(fd), child.answer, lambda: "the replica has ended").read()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads the work has left
