"""The cluster at the other end: whether it is there, and what it must hear of the state as it was committed.

What it is told leaves through the outbox, one after the other. After an absence it hears first what is to live.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from llmsched.control.dispatch import Refused, Send, Site, event_of, resync, sends_of, stop_now
from llmsched.control.inbox import Inbox
from llmsched.control.live_state import LiveState
from llmsched.control.outbox import Outbox
from llmsched.control.routes import Routes
from llmsched.control.vault import Secrets
from llmsched.core.decisions import Decision
from llmsched.core.facts import Fact, NodeLost
from llmsched.core.records import GangState
from llmsched.core.scheduler import Plan
from llmsched.executors import port
from llmsched.spec import http_models

log = logging.getLogger("llmsched.control")
ORDERS_AT_A_TIME = 50


class Cluster:
    """`must_resync`: it may not know what is to live. `endpoint_trouble`: what is wrong with the gateway."""

    def __init__(
        self,
        live: LiveState,
        executor: port.Executor,
        inbox: Inbox,
        secrets: Secrets,
        keys: Callable[[], Sequence[dict[str, Any]]],
        storage: str,
    ) -> None:
        self.health = http_models.ClusterHealth()
        self.urls: dict[str, str] = {}
        self.must_resync = False
        self.endpoint_trouble = ""
        self.outbox = Outbox(executor, inbox.deliver)
        self._live = live
        self._inbox = inbox
        self._secrets = secrets
        self._keys = keys
        self._storage = storage
        self._epoch = 0
        self._routes = Routes(0, secrets)

    def begin(self, epoch: int) -> None:
        """Under this epoch from now on."""
        self._epoch = epoch
        self._routes = Routes(epoch, self._secrets)

    @property
    def is_there(self) -> bool:
        return self.health.connected

    @property
    def storage(self) -> str:
        return self._live.state.configuration.storage or self._storage

    # --- what it says of itself -------------------------------------------------------------------------------------

    def hear(self, seen: port.Connected | port.Disconnected | port.EndpointSeen, at: float) -> list[Fact]:
        match seen:
            case port.Connected():
                return self._connected(seen, at)
            case port.Disconnected():
                changed = {"connected": False, "insecure": seen.is_insecure, "message": seen.message}
                self.health = self.health.model_copy(update=changed)
                self.endpoint_trouble = ""  # whoever said so is gone, and the next one says it again
                log.warning("disconnected: %s", seen.message)
            case port.EndpointSeen():
                self.endpoint_trouble = seen.trouble
        return []

    def _connected(self, seen: port.Connected, at: float) -> list[Fact]:
        """After an absence the executor must hear what is to live, and the state which nodes are gone."""
        self.urls = dict(seen.urls)
        known = self.health
        self.health = http_models.ClusterHealth(connected=True, id=seen.cluster_id)
        if known.connected and known.id == seen.cluster_id:
            return []
        log.info("connected to %s", seen.cluster_id)
        self.outbox.clear()  # of before: what still counts is said again
        self.must_resync = True
        self._live.wake_at = at
        self._routes.forget()
        return [NodeLost(at, node) for node in self._live.state.nodes if seen.nodes and node not in seen.nodes]

    # --- what it is told --------------------------------------------------------------------------------------------

    async def carry_out(self, plan: Plan) -> None:
        """Orders are made now, from the state that was committed; they leave one after the other, later. Between some
        of them everybody else has a turn: the state changes only in a round."""
        if not self.is_there:
            return
        if self.must_resync:
            self.must_resync = False
            self._put(*await resync(self._live.state, self._site()))
            return
        for start in range(0, len(plan.decisions), ORDERS_AT_A_TIME):
            some = plan.decisions[start : start + ORDERS_AT_A_TIME]
            self._put(*sends_of(self._live.state, some, self._site()))
            await asyncio.sleep(0)

    def send_routes(self, decisions: Sequence[Decision] = ()) -> None:
        """The gateway keeps its last table: one that cannot be made holds up nothing else."""
        if not self.is_there:
            return
        try:
            table = self._routes.changed(self._live.state, self._keys(), decisions)
        except Exception:
            log.exception("the table of routes cannot be made")
            return
        if table is not None:
            self.outbox.put([Send("route", table)])

    def stop(self, gang: GangState, attempt: int) -> None:
        """For an attempt that is given up."""
        self.outbox.put([stop_now(gang, attempt, self._site())])

    def _put(self, sends: list[Send], refused: list[Refused]) -> None:
        self.outbox.put(sends)
        for gang, attempt, error in refused:
            self._inbox.deliver(port.NotStarted(gang, attempt, event_of(error), str(error)))

    def _site(self) -> Site:
        return Site(self._epoch, self.storage, self._secrets)
