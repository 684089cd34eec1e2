"""The gateway as the bridge keeps it: one actor on the head, there from the first endpoint on, with the newest table.

One that has gone, or answers no more, is made anew, told, and given the table again. Start at `Endpoint.look`.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from llmsched.executors.port import Deliver, EndpointSeen, KeyUsageSeen, KeyUse, LoadSeen, RouteTable
from llmsched.executors.ports import free_ports, is_free
from llmsched.executors.wire import Settings
from llmsched.gateway import app as gateway

ANSWERS_WITHIN_S = 5.0
STARTS_WITHIN_S = 60.0  # a process that imports Ray Serve, on a busy machine
HUNG_AFTER_S = 20.0  # without an answer it is ended, and Ray makes another
ON_HEAD = {"resources": {"node:__internal_head__": 0.001}}


class Endpoint:
    """Called from two threads: that of the orders, and that of `look`."""

    def __init__(self, deliver: Deliver, settings: Settings) -> None:
        self._deliver = deliver
        self._lock = threading.Lock()
        self._table: RouteTable | None = None
        self._silent_since: float | None = None
        self._said = ""
        self._used_of, self._used_upto = "", 0  # of the gateway's book: whose, and how far it is read
        self._host, self._port = settings.endpoint_host, settings.endpoint_port
        self._actor: Any = gateway.find()
        if self._actor is not None:
            try:
                self._host, self._port = ray.get(self._actor.address.remote(), timeout=ANSWERS_WITHIN_S)
            except (RayError, GetTimeoutError) as error:
                print(f"the gateway is there and does not say where: {error}", file=sys.stderr)
        if self._actor is None and not (self._port and is_free(self._port, self._host)):
            self._port = free_ports(1, self._host)[0]  # somebody else has that of last time

    @property
    def url(self) -> str:
        """Where the gateway answers, once the first endpoint is there."""
        return f"http://{self._host}:{self._port}"

    def route(self, table: RouteTable) -> None:
        """Keep the newest table, and push it when there is a gateway; a gateway that comes later gets it then."""
        with self._lock:
            if self._table is not None and table.version < self._table.version:
                return
            self._table = table
        if table.models or self._actor is not None:
            self._push(table)

    def look(self) -> None:
        """What is in flight, from the gateway's own counts; one without the newest table gets it again."""
        with self._lock:
            table = self._table
        if table is None or (self._actor is None and not table.models):
            return
        try:
            if self._actor is None:
                self._push(table)
            load = ray.get(self._actor.load.remote(), timeout=ANSWERS_WITHIN_S)
            used = ray.get(self._actor.used.remote(self._used_upto), timeout=ANSWERS_WITHIN_S)
            if load.pop("version", 0) != table.version:
                self._push(table)
        except (RayActorError, GetTimeoutError) as error:
            self._is_silent(error)
            return
        self._silent_since = None
        self._say("")
        for workload, counts in load.items():
            self._deliver(LoadSeen(str(workload), float(counts["recent"]), float(counts["queued"])))
        self._tell_used(used)

    def _tell_used(self, used: dict[str, Any]) -> None:
        if used["gateway"] != self._used_of:  # made anew, or seen for the first time: this asked it for too little
            self._used_of, self._used_upto = used["gateway"], 0
            return
        self._used_upto = used["version"]
        if used["rows"]:
            self._deliver(KeyUsageSeen(used["gateway"], tuple(KeyUse(*row) for row in used["rows"])))

    def shut_down(self) -> None:
        actor, self._actor = gateway.find(), None
        if actor is not None:
            ray.kill(actor)

    def _push(self, table: RouteTable) -> None:
        if self._actor is None:
            actor = gateway.start(self._host, self._port, **ON_HEAD)
            ray.get(actor.address.remote(), timeout=STARTS_WITHIN_S)
            self._actor = actor
        ray.get(self._actor.route.remote(asdict(table)), timeout=ANSWERS_WITHIN_S)

    def _is_silent(self, error: Exception) -> None:
        now = time.monotonic()
        self._silent_since = now if self._silent_since is None else self._silent_since
        self._say("the gateway does not answer: requests to endpoints fail until it is back")
        print(f"the gateway does not answer: {error}", file=sys.stderr)
        if isinstance(error, RayActorError):
            self._actor = None  # made anew, or found again, by the next look
        elif now - self._silent_since > HUNG_AFTER_S:
            self._silent_since = None
            ray.kill(self._actor, no_restart=False)

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            self._said = trouble
            self._deliver(EndpointSeen(trouble))
