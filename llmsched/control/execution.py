"""`exec`: a person's command beside a running member. Checked against the state here; run through the executor.

It changes no state and is in no journal: who ran what where stands in the controller's log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from typing import NamedTuple

from llmsched.control.requests import find
from llmsched.core.lifecycle import Status
from llmsched.core.records import GangState
from llmsched.core.state import State
from llmsched.errors import RequestError
from llmsched.executors import port

log = logging.getLogger("llmsched.control")
SILENCE_S = 5.0  # then whoever passes the answer on looks whether anybody still listens


class Command(NamedTuple):
    """`gang` is the index of a gang or replica; None: the first that runs."""

    name: str
    argv: tuple[str, ...]
    by: str
    rank: int = 0
    gang: int | None = None
    timeout_s: float = 600.0


def order_of(state: State, command: Command, epoch: int) -> port.CommandOrder:
    """Raises RequestError when there is nothing to run it beside."""
    found = find(state, command.name)
    name = found.workload.id
    gangs = [state.gangs[gang] for gang in found.gangs if gang in state.gangs]
    if command.gang is not None:
        gangs = [one for one in gangs if one.id == f"{name}/{command.gang}"]
        if not gangs:
            raise RequestError(f"{name} has no gang {command.gang}.", code="unknown_gang", http_status=404)
    running = next((one for one in gangs if one.status is Status.RUNNING), None)
    if running is None:
        raise RequestError(
            f"{name} is {found.phase}: a command runs beside work that is running.",
            code="not_running",
            hint=f"llmsched why {name} says how it stands; llmsched logs {name} shows what it wrote.",
        )
    size = _ranks(running)
    if command.rank >= size:
        ranks = "only rank 0" if size == 1 else f"ranks 0 to {size - 1}"
        raise RequestError(f"{running.id} has {ranks}, no rank {command.rank}.", code="unknown_rank", http_status=404)
    return port.CommandOrder(
        id=secrets.token_hex(8),
        gang=running.id,
        attempt=running.attempt,
        epoch=epoch,
        kind=found.workload.kind,
        rank=command.rank,
        argv=command.argv,
        timeout_s=command.timeout_s,
    )


def _ranks(gang: GangState) -> int:
    return 1 if gang.spec.kind == "serve" else len(gang.held)


async def run(
    executor: port.Executor, order: port.CommandOrder, by: str
) -> AsyncGenerator[port.CommandAnswer | None, None]:
    """What it says, and last how it ended; None after a while of silence. Whoever stops listening ends it.

    Raises ClusterError when it cannot be asked for."""
    heard: asyncio.Queue[port.CommandAnswer] = asyncio.Queue()  # bounded by what a command may write
    log.info("%s runs %r beside rank %d of %s", by, order.argv[0], order.rank, order.gang)
    await executor.execute(order, heard.put_nowait)
    return _listened(executor, order, heard)


async def _listened(
    executor: port.Executor, order: port.CommandOrder, heard: asyncio.Queue[port.CommandAnswer]
) -> AsyncGenerator[port.CommandAnswer | None, None]:
    try:
        while True:
            try:
                answer = await asyncio.wait_for(heard.get(), SILENCE_S)
            except TimeoutError:
                yield None
                continue
            yield answer
            if isinstance(answer, port.CommandEnded):
                return
    finally:
        await executor.end_command(order)
