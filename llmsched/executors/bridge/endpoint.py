"""The gateways as the bridge keeps them: there from the first endpoint on, with the newest table.

One serves. On a cluster of several nodes a second one stands by, a while later, so that none has to start for it: the
proxy before them passes on to it what the first has not answered when it is lost or hangs. One that has gone, or
answers no more, is made anew, told, and given the table again. Loads are asked for often, and told now and then, as the
journal keeps what is told; one that jumps is told at once, as replicas are to follow it. Knows no Ray. Start at
`Endpoint.look`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from llmsched.core.latency import Latency
from llmsched.executors.bridge.gateway_actor import STARTS_WITHIN_S, Gone, Load, Silent
from llmsched.executors.port import Deliver, EndpointSeen, KeyUsageSeen, LoadSeen, RouteTable

TELL_EVERY_S = 1.5
JUMP_PART, JUMP_AT_LEAST = 0.1, 0.3  # of what was told, and in requests: a load that has grown by both is told at once
HUNG_AFTER_S = 5.0  # without an answer it is ended, and Ray makes another
STANDBY_AFTER_S = 20.0  # that the first one has answered: it starts alone
NODES_FOR_TWO = 2


class Gateway(Protocol):
    """See `gateway_actor.GatewayActor`."""

    @property
    def place(self) -> tuple[str, int]: ...

    @property
    def is_there(self) -> bool: ...

    def begin(self) -> None: ...

    def has_come(self, within_s: float = 0.0) -> bool: ...

    def tell(self, table: RouteTable) -> None: ...

    def load(self) -> Load: ...

    def used(self) -> KeyUsageSeen | None: ...

    def end(self) -> None: ...

    def remove(self) -> None: ...


class Endpoint:
    """`gateways`: the first one, and who may stand by. `nodes` says how many can run work. Called from two threads:
    that of the orders, and that of `look`."""

    def __init__(
        self,
        deliver: Deliver,
        gateways: Sequence[Gateway],
        nodes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver, self._gateways, self._nodes, self._clock = deliver, gateways, nodes, clock
        self._lock = threading.Lock()
        self._table: RouteTable | None = None
        self._silent_since: dict[int, float] = {}  # by number
        self._answers_since: float | None = None  # the first
        self._said = EndpointSeen("")
        self._told: dict[str, float] = {}  # the load of each workload, when it was told last
        self._tell_at = self._clock()
        self._untold: dict[str, tuple[Latency, ...]] = {}  # latencies

    @property
    def url(self) -> str:
        """Where the first gateway answers, once the first endpoint is there."""
        host, port = self._gateways[0].place
        return f"http://{host}:{port}"

    def route(self, table: RouteTable) -> None:
        """Keep the newest table, and push it to the gateways that are there; one that comes later gets it then."""
        with self._lock:
            if self._table is not None and table.version < self._table.version:
                return
            self._table = table
        for gateway in self._gateways[1:]:
            if gateway.is_there:
                try:
                    gateway.tell(table)
                except (Gone, Silent) as error:  # the next look tells it again
                    print(f"a gateway that stands by does not take its table: {error}", file=sys.stderr)
        if table.models or self._gateways[0].is_there:
            self._make_sure(self._gateways[0])
            self._gateways[0].tell(table)

    def look(self) -> None:
        """What is in flight, from the gateways' own counts; one without the newest table gets it again."""
        with self._lock:
            table = self._table
        if table is None or not (table.models or self._gateways[0].is_there):
            return
        recent, queued, there = dict[str, float](), dict[str, float](), list[Gateway]()
        is_due = self._clock() >= self._tell_at
        for number, gateway in enumerate(self._gateways):
            if number and not (gateway.is_there or self._wants_another(table)):
                continue
            load = self._load_of(number, gateway, table, with_use=is_due)
            if load is None:
                continue
            there.append(gateway)
            for workload, (lately, waiting) in load.of.items():
                recent[workload] = recent.get(workload, 0.0) + lately
                queued[workload] = queued.get(workload, 0.0) + waiting
            for workload, measured in load.latencies.items():
                self._untold[workload] = (*self._untold.get(workload, ()), *measured)
        self._say(there)
        if is_due:
            self._tell_at = self._clock() + TELL_EVERY_S
            self._told = {workload: self._told[workload] for workload in self._told.keys() & recent.keys()}
        for workload in recent:
            load_now, told = recent[workload] + queued[workload], self._told.get(workload, 0.0)
            if is_due or load_now - told >= max(JUMP_PART * told, JUMP_AT_LEAST):
                self._told[workload] = load_now
                measured = self._untold.pop(workload, ())
                self._deliver(LoadSeen(workload, recent[workload], queued[workload], measured))

    def shut_down(self) -> None:
        for gateway in self._gateways:
            gateway.remove()

    def _wants_another(self, table: RouteTable) -> bool:
        """Where there is one node it would be lost with the first."""
        lasts = 0.0 if self._answers_since is None else self._clock() - self._answers_since
        return bool(table.models) and lasts >= STANDBY_AFTER_S and self._nodes() >= NODES_FOR_TWO

    def _load_of(self, number: int, gateway: Gateway, table: RouteTable, *, with_use: bool) -> Load | None:
        """None while it does not answer. `with_use`: what keys have used is told, too."""
        try:
            if number and not gateway.is_there:
                gateway.begin()
                if not gateway.has_come():
                    return None
            elif not number:
                self._make_sure(gateway)
            load = gateway.load()
            used = gateway.used() if with_use else None
            if load.version != table.version:
                gateway.tell(table)
        except (Gone, Silent) as error:
            self._is_silent(number, gateway, error)
            return None
        if used is not None:
            self._deliver(used)
        self._silent_since.pop(number, None)
        if not number and self._answers_since is None:
            self._answers_since = self._clock()
        return load

    def _make_sure(self, gateway: Gateway) -> None:
        """That it is there. Raises Gone, Silent."""
        if not gateway.is_there:
            gateway.begin()
            if not gateway.has_come(STARTS_WITHIN_S):
                raise Silent(f"it does not start within {STARTS_WITHIN_S:g} s")

    def _is_silent(self, number: int, gateway: Gateway, error: Exception) -> None:
        print(f"gateway {number + 1} does not answer: {error}", file=sys.stderr)
        now = self._clock()
        since = self._silent_since.setdefault(number, now)
        if isinstance(error, Silent) and now - since > HUNG_AFTER_S:
            del self._silent_since[number]
            gateway.end()

    def _say(self, there: Sequence[Gateway]) -> None:
        trouble = ""
        if not there:
            trouble = "the gateway does not answer: requests to endpoints fail until it is back"
        elif self._silent_since:
            trouble = "one of two gateways does not answer: the other one serves until it is back"
        places = self._said.places
        if len(there) == len(self._gateways) > 1:
            places = tuple(gateway.place for gateway in there)  # one that is lost comes back where it was
        seen = EndpointSeen(trouble, places)
        if seen != self._said:
            self._said = seen
            self._deliver(seen)
