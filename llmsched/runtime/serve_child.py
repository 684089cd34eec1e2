"""What runs in the process of one deployment: `serve_process.py` starts it, `serve_apart.py` says what it makes."""

from __future__ import annotations

import asyncio
import os
import sys
from multiprocessing.connection import Connection
from typing import Any

from starlette.responses import Response

from llmsched.runtime import exceptions, serve_graph, serve_handles, serve_internals
from llmsched.runtime.serve_apart import Told
from llmsched.runtime.serve_handles import Put, Running
from llmsched.runtime.serve_line import REQUEST, Line


class Child:
    """Answers for its one deployment."""

    def __init__(self) -> None:
        self._deployed: serve_graph.Deployed

    def answer(self, what: str, given: Any, put: Put | None) -> Running:
        match what:
            case "begin":
                return self._begin(given)
            case "check":
                return self._deployed.check()
            case "close":
                return self._deployed.submit(self._deployed.destroyed())
        assert what == REQUEST
        id, metadata, args, kwargs = given
        return serve_handles.behind(id).run(metadata, args, kwargs, put)

    def _begin(self, told: Told) -> Running:
        if told.inside is not None:
            serve_graph.deploy_inside(told.inside)
        self._deployed = deployed = serve_graph.Deployed(
            told.deployment, told.app_name, told.most, _nobody_asks, told.rank, told.copies
        )
        serve_handles.handle_of(deployed.id, deployed)

        async def begun() -> bool:
            with exceptions.in_words():  # with the place where it was raised, which does not travel
                if told.prepare is not None:
                    await asyncio.to_thread(told.prepare)
                await deployed.constructed()
            return deployed.has_check

        return deployed.submit(begun())


def _nobody_asks(value: Any) -> Response:
    raise AssertionError("an ingress has no process of its own")


def main(fd: int) -> None:
    serve_internals.tell_no_controller()
    child = Child()
    Line(Connection(fd), child.answer, lambda: "the replica has ended").read()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # whatever threads the work has left
