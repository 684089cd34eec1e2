"""One serve replica as Ray Serve runs it: the order's environment first, then the class that answers requests.

The class is named, not imported: who deploys a replica must not load what it loads, and secrets go through the order,
not through Ray's runtime environment, which is shown on its dashboard. Everything a request needs is passed through.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

import ray

from llmsched.runtime import (
    calls_door,
    containment,
    environment,
    exceptions,
    execute,
    in_hand,
    nested,
    packages,
    progress,
    redaction,
    start_costs,
)
from llmsched.runtime.by_hand import ByHand
from llmsched.runtime.command_worker import Ask
from llmsched.runtime.commands import Commands
from llmsched.runtime.storage import Storage

DEFAULT_MAX_ONGOING = 32
INBOX = 64  # messages of a client that the app has yet to read
UNASKED_S = 60.0  # nobody of ours has asked for its health since: the controller is away
OUR_REPLICA = "workloads.inference.replica:Replica"
# Before what a failed constructor says for people; Ray's own words are around it. The second: trying again is no use.
MARK, INPUT_MARK = "[llmsched] ", "[llmsched] (input) "


def contain(order: dict[str, Any]) -> None:
    """What the replica starts ends with its process, and is its own. Raises UserError in the place of one that used too
    much memory: Serve makes a new process, which would do the same."""
    if containment.OWNER not in os.environ:
        return  # by hand, nobody's
    verdict = f"{order['gang']}/{order['attempt']}/over-memory"
    store = Storage.at(order["storage"])
    with suppress(FileNotFoundError):
        raise environment.UserError(store.read(verdict).decode())

    def on_memory(word: containment.OverMemory) -> None:
        print(f"[llmsched] {word}", flush=True)
        if word.is_over:
            store.write(verdict, str(word).encode())
            os._exit(1)

    containment.guard_of(order, 0, is_here=True, on_memory=on_memory)
    containment.join_owner(ray.get_runtime_context().gcs_address)


class ReplicaHost:
    """`order` is the LaunchOrder as JSON. Constructing may take as long as loading a model does."""

    def __init__(self, order: str, replica: str = OUR_REPLICA) -> None:
        laps = start_costs.Laps()
        given: dict[str, Any] = json.loads(order)
        redaction.hide(given)
        self._commands: dict[str, threading.Event] = {}
        self._by_hand: dict[str, ByHand] = {}
        self._beside = Commands()  # beside the other members
        self._inboxes: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._in_hand = in_hand.InHand(int(given["spec"].get("max_ongoing_requests") or DEFAULT_MAX_ONGOING))
        self._asked_at = time.monotonic()
        self._numbers = progress.of_endpoint(given["spec"])
        os.environ.update(calls_door.envs_of(given) | given["envs"])
        try:
            contain(given)
            environment.check_version(given)
            if (extra := packages.provide(given, None, sys.stdout.write)) is not None:
                extra.enter()
                nested.offer(extra)
                laps.lap("packages")
            del given["envs"]
            more: tuple[Any, ...] = ()
            if len(given["members"]) > 1:
                from llmsched.runtime.serve_members import Members  # most replicas have none

                self._members = Members(order)
                self._members.hire()
                more = (self._members.open,)
            self._replica = environment.load_entry(replica, "serve")(given, *more)
            laps.lap("load")
            self._took = laps.took
        except BaseException as error:
            exceptions.show(error)
            mark = INPUT_MARK if isinstance(error, environment.UserError) else MARK
            raise exceptions.WorkError(mark + exceptions.words(error)) from None

    async def ready(self) -> dict[str, Any]:
        """What the replica says of itself, once it can answer, its "pid", what its start "took", and "is_fork"."""
        with exceptions.in_words():
            facts: dict[str, Any] = await self._replica.ready()
        took = self._whole(facts.get("took") or {})
        return {**facts, "pid": os.getpid(), "took": took, "is_fork": start_costs.is_forked}

    def _whole(self, took: Mapping[str, float]) -> dict[str, float]:
        """With what the replica has told apart in its constructor, which is a load as a whole."""
        apart = sum(seconds for step, seconds in took.items() if step not in ("load", "first_token"))
        return {**self._took, **took, "load": max(self._took["load"] - apart, 0.0)}

    async def call(self, route: str, body: Any, adapter: dict[str, Any] | None = None, request: str = "") -> Any:
        """Ends when the work has, also when it is cancelled: `request` is the name for `cancel`."""
        try:
            with self._in_hand.request(request), exceptions.in_words():
                return await self._replica.call(route, body, adapter)
        except in_hand.Refused as refused:
            return refused.answer

    async def stream(
        self, route: str, body: Any, adapter: dict[str, Any] | None = None, request: str = "", is_open: bool = False
    ) -> AsyncGenerator[Any, None]:
        """The chunks of an answer. `is_open`: the client goes on sending, by `receive`."""
        more: tuple[Any, ...] = ()
        if is_open:
            more = (self._inboxes.setdefault(request, asyncio.Queue(INBOX)),)
        try:
            with self._in_hand.request(request), exceptions.in_words():
                async with aclosing(self._replica.stream(route, body, adapter, *more)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except in_hand.Refused as refused:
            yield refused.answer
        finally:
            self._inboxes.pop(request, None)

    async def receive(self, request: str, message: dict[str, Any]) -> bool:
        """What the client of an open request sends. False: the app has yet to read what came before; ask again."""
        inbox = self._inboxes.get(request)
        if inbox is not None and inbox.full():
            return False
        if inbox is not None:
            inbox.put_nowait(message)
        return True

    async def cancel(self, request: str) -> None:
        self._in_hand.cancel(request)

    async def load_adapter(self, name: str, uri: str) -> str:
        """Empty when the adapter answers now, else why not."""
        with exceptions.in_words():
            return str(await self._replica.load_adapter(name, uri))

    async def execute(self, command: str, ask: Ask, rank: int = 0) -> AsyncGenerator[execute.Said, None]:
        """Do what a person asks in the surroundings of this replica, or of another member of its gang, by its `rank`.
        `command` is its id, for `take` and `end_command`."""
        stop = self._commands[command] = threading.Event()
        folder = str(Path.cwd())
        said: Iterator[execute.Said]
        if rank:
            place = await asyncio.to_thread(self._members.place_of, rank)
            said = self._beside.run(command, self._members.order, place, ask)
        elif ask.does == "run":
            said = execute.run(ask.words, folder, os.environ, ask.timeout_s, stop)
        else:
            by_hand = self._by_hand[command] = ByHand(ask.does, ask.words, folder, os.environ, stop)
            said = by_hand.said()
        try:
            while (item := await asyncio.to_thread(next, said, None)) is not None:
                yield item
        finally:
            stop.set()
            del self._commands[command]
            self._by_hand.pop(command, None)
            self._beside.end(command)
            with suppress(ValueError):  # it is being asked just now: then it ends when that is over
                cast(Generator[execute.Said, None, None], said).close()

    async def take(self, command: str, frames: list[bytes]) -> None:
        """What whoever asked for it sends."""
        if (by_hand := self._by_hand.get(command)) is not None:
            by_hand.take(frames)
        else:
            await asyncio.to_thread(self._beside.take, command, frames)

    async def end_command(self, command: str) -> None:
        if (stop := self._commands.get(command)) is not None:
            stop.set()
        self._beside.end(command)

    async def end_commands(self, but: list[str]) -> None:
        for command, stop in self._commands.items():
            if command not in but:
                stop.set()
        self._beside.end_all_but(but)

    async def health(self) -> dict[str, Any]:
        """{"trouble": why it should be replaced, or "", "in_hand": requests, "abandoned": those that do not end,
        "numbers": the newest that its app reported}."""
        self._asked_at = time.monotonic()
        return {
            "trouble": self._in_hand.trouble() or await self._own_trouble(),
            "in_hand": len(self._in_hand),
            "abandoned": self._in_hand.abandoned(),
            "numbers": self._numbers.newest(),
        }

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises. While we ask, and tell why, Serve has no say."""
        if time.monotonic() - self._asked_at > UNASKED_S:
            trouble = self._in_hand.trouble() or await self._own_trouble()
            if trouble:
                raise RuntimeError(trouble)

    async def _own_trouble(self) -> str:
        check = getattr(self._replica, "check_health", None)
        try:
            answer = check() if check else None
            if inspect.isawaitable(answer):
                await answer
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return f"its health check failed: {exceptions.words(error)}"
        return ""

    async def pid(self) -> int:
        return os.getpid()

    def __del__(self) -> None:
        """Called by Serve once nothing is asked of it any more."""
        replica = self.__dict__.get("_replica")
        if (close := getattr(replica, "close", None)) is not None:
            close()
        if (members := self.__dict__.get("_members")) is not None:
            members.close()
