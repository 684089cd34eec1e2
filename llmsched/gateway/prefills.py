"""Prompts that replicas of another endpoint read (`serve.prefill`), before the replica that answers goes on from there.

The replica that answers is chosen first, and its slot is taken for both parts: so a request is held, turned away and
measured as any other, and what was read has somebody who takes it. Then a replica of the other endpoint that serves the
same weights is asked to read the prompt; where none can, now, the one that answers reads it itself. Nobody waits for
that other endpoint, and nothing is lost by it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from llmsched.data.parameters import TRANSFER
from llmsched.gateway.bodies import WRITES
from llmsched.gateway.open_requests import OpenRequest
from llmsched.gateway.refusals import Refused
from llmsched.gateway.relay import Errand, Relay
from llmsched.gateway.replicas import Chosen, Pool, ReplicaGone, Slot
from llmsched.gateway.signals import Signals
from llmsched.gateway.table import Route, Target
from llmsched.policies.routing import Ask
from llmsched.policies.routing.work import prompt_text

ROUTE = "prefill"  # in what is observed: of each prompt that is to be read there, its status (200: it was)
SAID_EVERY_S = 60.0  # of one endpoint, that it reads prompts itself
# Of a request, what its prompt is made of.
_OF_THE_PROMPT = ("model", "messages", "prompt", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs")
_LOST, _FULL, _FAILED = 503, 429, 500

Observe = Callable[[str, str, int, float], None]  # workload, route, HTTP status, seconds


class Going(NamedTuple):
    """A request on its way: to which replica, and what is done there."""

    chosen: Chosen
    work: Any


class Reading(NamedTuple):
    """A prompt to be read: by replicas of `route` whose keys and values are of the word `kv`."""

    request: OpenRequest
    target: Target
    route: Route
    kv: str


class Prefills:
    def __init__(
        self, relay: Relay, signals: Signals, observe: Observe | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._relay, self._signals, self._observe, self._clock = relay, signals, observe, clock
        self._routes: dict[str, Route] = {}  # of those that read for others, by workload
        self._pools: Mapping[str, Pool] = {}
        self._said: dict[str, float] = {}  # when, by the workload that reads itself

    def route(self, routes: Iterable[Route], pools: Mapping[str, Pool]) -> None:
        """Take a new table."""
        self._routes = {each.workload: each for each in routes if each.role}
        self._pools = pools

    def call(self, request: OpenRequest, target: Target, chosen: Chosen, route: str, body: dict[str, Any]) -> Going:
        """What the chosen replica is asked; where another endpoint reads the prompt, after that."""
        reading = self._reading(request, target, chosen, route, body)
        if reading is None:
            return Going(chosen, chosen.slot.replica.call(route, body, target.adapter))
        return Going(chosen._replace(unread=0), self._then_call(reading, chosen.slot, route, body))

    def stream(
        self,
        request: OpenRequest,
        target: Target,
        chosen: Chosen,
        route: str,
        body: dict[str, Any],
        incoming: AsyncIterator[Any] | None,
    ) -> Going:
        """The same, in chunks. `incoming`: of apps."""
        reading = self._reading(request, target, chosen, route, body)
        if reading is None:
            more = () if incoming is None else (incoming,)
            return Going(chosen, chosen.slot.replica.stream(route, body, target.adapter, *more))
        return Going(chosen._replace(unread=0), self._then_stream(reading, chosen.slot, route, body))

    def _reading(
        self, request: OpenRequest, target: Target, chosen: Chosen, route: str, body: Mapping[str, Any]
    ) -> Reading | None:
        """None where the chosen replica reads the prompt itself, as it should."""
        wanted = target.route.prefill
        if wanted is None or route not in WRITES or chosen.unread < wanted.from_tokens or not _has_one_answer(body):
            return None
        other, kv = self._routes.get(wanted.workload), target.route.kv.get(chosen.slot.name)
        return Reading(request, target, other, kv) if other is not None and kv else None

    async def _then_call(self, reading: Reading, slot: Slot, route: str, body: dict[str, Any]) -> Any:
        told = await self._told(reading, route, body)
        return await slot.replica.call(route, told, reading.target.adapter)

    async def _then_stream(
        self, reading: Reading, slot: Slot, route: str, body: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        told = await self._told(reading, route, body)
        async with aclosing(slot.replica.stream(route, told, reading.target.adapter)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _told(self, reading: Reading, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The request as the replica that answers gets it: with where its prompt was read, if it was."""
        began, status = self._clock(), 499  # 499: the client left first
        try:
            found = await self._read(reading, route, body)
            status = found if isinstance(found, int) else 200
        finally:
            if self._observe is not None:
                self._observe(reading.route.workload, ROUTE, status, self._clock() - began)
        if not isinstance(found, int):
            return {**body, TRANSFER: found}
        self._say(reading, found)
        return body

    async def _read(self, reading: Reading, route: str, body: Mapping[str, Any]) -> dict[str, Any] | int:
        """vLLM's words for where the prompt was read; an HTTP status where it was not."""
        request, target, other, kv = reading
        asked = {name: body[name] for name in _OF_THE_PROMPT if name in body}
        asked |= {"max_tokens": 1, TRANSFER: {"do_remote_decode": True}}
        if (pool := self._pools.get(other.workload)) is None:  # it has been stopped since
            return _LOST
        unlike = {name for name in other.replicas if other.kv.get(name) != kv}
        gone = set[str]()
        limit_s = min(other.timeout_s, target.route.timeout_s / 2)  # the rest is for the answer
        while True:
            try:
                chosen = pool.choose(Ask(asked, prompt_text(body), request.session), unlike | gone)
            except Refused as refused:
                if not other.replicas or len(unlike) < len(other.replicas):  # else another model rolls out
                    self._signals.refused(other.workload)
                return refused.status
            work: Coroutine[Any, Any, Any] = chosen.slot.replica.call(route, asked, target.adapter)
            try:
                answer = await self._relay.call(Errand(pool, chosen, 1, request.key.id), work, limit_s)
            except ReplicaGone:
                pool.avoid(chosen.slot)
                gone.add(chosen.slot.name)
                continue
            except Refused as refused:
                return refused.status
            pool.forgive(chosen.slot)
            found = answer.get(TRANSFER) if isinstance(answer, dict) else None
            if isinstance(found, dict) and found:
                return found
            status = answer.get("status") if isinstance(answer, dict) else None
            return status if isinstance(status, int) else _FAILED

    def _say(self, reading: Reading, status: int) -> None:
        """Now and then: it may be so of every request. A request that is wrong is told so by who answers."""
        workload, now = reading.target.route.workload, self._clock()
        if 400 <= status < 500 and status != _FULL or now - self._said.get(workload, -SAID_EVERY_S) < SAID_EVERY_S:
            return
        self._said[workload] = now
        words = {_LOST: "has no replica that answers", _FULL: "is full"}
        why = words.get(status, f"failed ({status})")
        print(f"{workload} reads prompts itself: {reading.route.workload} {why}", file=sys.stderr, flush=True)


def _has_one_answer(body: Mapping[str, Any]) -> bool:
    """What was read is taken once: where several answers go on from one prompt, or from several, each is read there."""
    if body.get("n") not in (None, 1):
        return False
    prompt = body.get("prompt")
    return not isinstance(prompt, list) or len(prompt) == 1 or all(type(token) is int for token in prompt)
