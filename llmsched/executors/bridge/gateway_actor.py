"""One gateway, as the bridge speaks with it: an actor on the head, by its name. `Endpoint` decides about it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from llmsched.core.latency import Latency
from llmsched.executors.bridge import processes
from llmsched.executors.port import KeyUsageSeen, KeyUse, RouteTable
from llmsched.executors.ports import free_ports
from llmsched.gateway import app as gateway

ANSWERS_WITHIN_S = 3.0
STARTS_WITHIN_S = 60.0  # a process that imports Ray Serve, on a busy machine
ON_HEAD = {"resources": {"node:__internal_head__": 0.001}}


class Gone(Exception):
    """Its process is, or it was never there."""


class Silent(Exception):
    """It did not answer within ANSWERS_WITHIN_S."""


class Load(NamedTuple):
    """`version` of the table that it uses; {workload: (recent, queued)}, and what it has measured since it was asked
    last."""

    version: int
    of: dict[str, tuple[float, float]]
    latencies: Mapping[str, tuple[Latency, ...]] = MappingProxyType({})


class GatewayActor:
    """One that is there is taken on; another will listen at a port that is free now."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self._host, self._port = host, 0
        self._pid = 0
        self._used_of, self._used_upto = "", 0  # of its book: whose, and how far it is read
        self._coming: Any = None  # its address, of one that has just been made
        self._actor: Any = gateway.find(name)
        if self._actor is not None:
            try:
                self._host, self._port = ray.get(self._actor.address.remote(), timeout=ANSWERS_WITHIN_S)
            except (RayError, GetTimeoutError) as error:
                print(f"{name} is there and does not say where: {error}", file=sys.stderr)
        if not self._port:
            self._port = free_ports(1, host)[0]

    @property
    def place(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def is_there(self) -> bool:
        return self._actor is not None

    def begin(self) -> None:
        """Make it, if there is none; `has_come` says when it answers."""
        if self._coming is None:
            self._coming = gateway.start(self._host, self._port, name=self.name, **ON_HEAD).address.remote()

    def has_come(self, within_s: float = 0.0) -> bool:
        """Raises Gone when it does not come up. Two threads may wait for it at once."""
        coming = self._coming
        if self._actor is None and coming is not None:
            done, _ = ray.wait([coming], timeout=within_s)
            if not done:
                return False
            try:
                ray.get(coming)
            except RayActorError as error:
                self._coming = None
                raise Gone(str(error)) from None
            self._actor, self._coming = gateway.find(self.name), None
        return self._actor is not None

    def tell(self, table: RouteTable) -> None:
        """Raises Gone, Silent."""
        self._ask(lambda actor: actor.route.remote(asdict(table)))

    def load(self) -> Load:
        """Raises Gone, Silent."""
        said = self._ask(lambda actor: actor.load.remote())
        version, self._pid = said.pop("version", 0), said.pop("pid", 0)
        counts = {str(one): (float(of["recent"]), float(of["queued"])) for one, of in said.items()}
        measured = {str(one): tuple(Latency(**each) for each in of.get("latencies", ())) for one, of in said.items()}
        return Load(version, counts, measured)

    def used(self) -> KeyUsageSeen | None:
        """What keys have used, where that has grown since it was last asked. Raises Gone, Silent."""
        said = self._ask(lambda actor: actor.used.remote(self._used_upto))
        if said["gateway"] != self._used_of:  # made anew, or seen for the first time: this asked it for too little
            self._used_of, self._used_upto = said["gateway"], 0
            return None
        self._used_upto = said["version"]
        return KeyUsageSeen(said["gateway"], tuple(KeyUse(*row) for row in said["rows"])) if said["rows"] else None

    def end(self) -> None:
        """One that hangs: Ray makes another one of it."""
        if self._actor is not None:
            ray.kill(self._actor, no_restart=False)
        if self._pid:  # a stopped process does not hear that
            processes.end(self._pid, gateway.GatewayActor.__name__, **ON_HEAD)

    def remove(self) -> None:
        actor, self._actor = gateway.find(self.name), None
        if actor is not None:
            ray.kill(actor)

    def _ask(self, what: Any) -> Any:
        if self._actor is None:
            raise Gone(f"there is no {self.name}")
        try:
            return ray.get(what(self._actor), timeout=ANSWERS_WITHIN_S)
        except RayActorError as error:
            self._actor = None  # made anew, or found again, when it is asked for next
            raise Gone(str(error)) from None
        except GetTimeoutError as error:
            raise Silent(str(error)) from None
