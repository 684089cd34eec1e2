"""`exec`, and what else a person does by hand beside a running member: checked against the state here, run through the
executor.

It changes nothing that is scheduled. Who runs what beside which rank is in the workload's story before it runs: the
words, cut, with the values of its secrets hidden. What it wrote is kept nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from llmsched.control import requests, vault
from llmsched.control.lookup import spec_of
from llmsched.control.requests import find
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.errors import RequestError
from llmsched.executors import port
from llmsched.spec.workload import KEY_VALUE

WORDS_AT_MOST = 200  # characters of a command in the story
SHORTEST_LINE = 8  # of a longer secret: what is shorter stands in every second command
_WORDS = {"forward": "port-forward", "fetch": "cp from", "store": "cp to"}  # what a story calls it
SILENCE_S = 5.0  # then whoever passes the answer on looks whether anybody still listens


class Command(NamedTuple):
    """`gang` is the index of a gang or replica; None: the first that runs."""

    name: str
    argv: tuple[str, ...]
    by: str
    rank: int = 0
    gang: int | None = None
    timeout_s: float = 600.0
    does: str = "run"  # or as a CommandOrder has it


class Begun(NamedTuple):
    """What it says, and how to send it frames, where it takes any; whoever sends waits there while too many are on the
    way. That raises ClusterError."""

    said: AsyncGenerator[port.CommandAnswer | None, None]
    tell: Callable[[bytes], Awaitable[None]]


def order_of(state: State, command: Command, epoch: int) -> port.CommandOrder:
    """Raises RequestError when there is nothing to run it beside."""
    found = find(state, command.name)
    name = found.workload.id
    gangs = [found.known[gang] for gang in found.gangs]
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
    size = len(running.held)
    if command.rank >= size:
        ranks = "only rank 0" if size == 1 else f"ranks 0 to {size - 1}"
        raise RequestError(f"{running.id} has {ranks}, no rank {command.rank}.", code="unknown_rank", http_status=404)
    return port.CommandOrder(
        id=uuid.uuid4().hex,
        gang=running.id,
        attempt=running.attempt,
        epoch=epoch,
        kind=found.workload.kind,
        rank=command.rank,
        argv=command.argv,
        timeout_s=command.timeout_s,
        does=command.does,
    )


def note_of(state: State, order: port.CommandOrder, by: str, secrets: vault.Secrets) -> requests.CommandNote:
    """What the story keeps of it."""
    workload = state.gangs[order.gang].spec
    hidden = []
    for name in spec_of(workload).get("secrets") or ():
        with suppress(RequestError):  # removed since
            value = secrets.value(workload.user, name)
            hidden += [value, *(line.strip() for line in value.splitlines() if len(line.strip()) >= SHORTEST_LINE)]
    words = [_WORDS[order.does]] if order.does in _WORDS else []
    for word in order.argv:
        for value in sorted(filter(None, hidden), key=len, reverse=True):
            word = word.replace(value, "***")
        words.append(KEY_VALUE.sub("***", word))
    told = " ".join(shlex.quote(word) if word != "***" else word for word in words)
    told = " ".join(told.split())
    told = told if len(told) <= WORDS_AT_MOST else f"{told[:WORDS_AT_MOST]}..."
    return requests.CommandNote(order.gang, order.attempt, order.rank, by, told)


Asked = TypeVar("Asked", port.CommandOrder, port.DashboardOrder)


async def begin(
    ask: Callable[[Asked, port.Hear], Awaitable[None]], end: Callable[[Asked], Awaitable[None]], order: Asked
) -> AsyncGenerator[port.CommandAnswer | None, None]:
    """What is said, and last how it ended; None after a while of silence. Whoever stops listening ends it.

    Raises ClusterError when it cannot be asked for."""
    heard: asyncio.Queue[port.CommandAnswer] = asyncio.Queue()  # bounded by what a command or an answer may be
    await ask(order, heard.put_nowait)
    return _listened(end, order, heard)


async def begin_command(executor: port.Executor, order: port.CommandOrder) -> Begun:
    """Raises ClusterError when it cannot be asked for."""
    room = asyncio.Semaphore(port.FRAMES_AT_ONCE)

    async def ask(order: port.CommandOrder, hear: port.Hear) -> None:
        def heard(answer: port.CommandAnswer) -> None:
            if isinstance(answer, port.CommandTook):
                for _ in range(answer.count):
                    room.release()
            else:
                hear(answer)

        await executor.execute(order, heard)

    async def tell(frame: bytes) -> None:
        await room.acquire()
        await executor.tell_command(port.CommandInput(order, base64.b64encode(frame).decode()))

    return Begun(await begin(ask, executor.end_command, order), tell)


async def _listened(
    end: Callable[[Asked], Awaitable[None]], order: Asked, heard: asyncio.Queue[port.CommandAnswer]
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
        await end(order)
