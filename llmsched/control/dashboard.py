"""The dashboards of Ray, asked through the executor: a workload's own, and the cluster's. Changes nothing.

Start reading at `ask`.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import NamedTuple

from llmsched.control import execution
from llmsched.core.records import WorkloadState
from llmsched.core.status import Status
from llmsched.errors import ClusterError, RequestError
from llmsched.executors import port


class Answer(NamedTuple):
    """`body` says None after a while of silence; closing it ends the question."""

    status: int
    headers: dict[str, str]
    body: AsyncGenerator[bytes | None, None]


def order_of(found: WorkloadState | None, path: str, headers: Mapping[str, str], epoch: int) -> port.DashboardOrder:
    """Of the private Ray of a workload; None: of the cluster. Raises RequestError when there is none."""
    gang, attempt = "", 0
    if found is not None:
        name = found.workload.id
        if found.workload.kind != "ray":
            raise RequestError(
                f"{name} is a {found.workload.kind} workload: it has no Ray of its own.",
                code="no_dashboard",
                hint="Without a name, llmsched dashboard shows that of the cluster.",
            )
        one = next((found.known[each] for each in found.gangs), None)
        if one is None or one.status not in (Status.RUNNING, Status.RESIZING, Status.VACATING):
            raise RequestError(
                f"{name} is {found.phase}: its Ray is there while it runs.",
                code="not_running",
                hint=f"llmsched why {name} says how it stands.",
            )
        gang, attempt = one.id, one.attempt
    return port.DashboardOrder(uuid.uuid4().hex, gang, attempt, epoch, path, tuple(sorted(headers.items())))


async def ask(executor: port.Executor, order: port.DashboardOrder) -> Answer:
    """Raises ClusterError when it does not answer."""
    said = await execution.begin(executor.ask_dashboard, executor.end_command, order)
    async for item in said:
        if isinstance(item, port.CommandSaid) and item.stream == "head":
            head = json.loads(item.text)
            return Answer(int(head["status"]), dict(head["headers"]), _body(said))
        if item is not None:
            break
    await said.aclose()
    why = item.message if isinstance(item, port.CommandEnded) else ""
    raise ClusterError(why or "its dashboard does not answer.", code="dashboard", hint="Try again in a moment.")


async def _body(said: AsyncGenerator[port.CommandAnswer | None, None]) -> AsyncGenerator[bytes | None, None]:
    """Raises ClusterError when it breaks off: whoever hears half of it is to know."""
    async with aclosing(said):
        async for item in said:
            if item is None:
                yield None
            elif isinstance(item, port.CommandSaid):
                yield base64.b64decode(item.text)
            elif isinstance(item, port.CommandEnded) and item.code is None:
                raise ClusterError(item.message, code="dashboard")
