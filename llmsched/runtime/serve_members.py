"""The members of a replica's gang besides itself, made through Ray by the replica: an actor each, in the bundle of the
placement group that the replica runs in.

They are the replica's own, so they end with its process whatever way it ends, and whoever finds the replica again has
found them too. Start at `Members.hire`.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmsched.runtime import calls_door, containment, environment, gang_ray, serve_door
from llmsched.runtime.attempt import CLOSE_WITHIN_S, NAMESPACE, PLACED_WITHIN_S, resources_of
from llmsched.runtime.exceptions import WorkError
from llmsched.runtime.ranks import Place
from llmsched.runtime.serve_member import Member, Opened

if TYPE_CHECKING:
    from llmsched.runtime.serve_apart import Home

LOOPBACK = "127.0.0.1"
AT_ONCE = 4  # calls that a member answers side by side


class MemberActor:
    """A `Member` where Ray has put it. `node` is the replica's."""

    def __init__(self, order: str, rank: int, key: bytes, node: str) -> None:
        here, known = ray.get_runtime_context(), json.loads(order)
        host = LOOPBACK if here.get_node_id() == node else str(ray.util.get_node_ip_address())
        containment.join_owner(here.gcs_address)
        self._member = Member(order, rank, key, host, calls_door.envs_of(known))

    def is_there(self) -> bool:
        return True

    def open(self) -> Opened:
        return self._member.open()

    def place(self) -> Place:
        folder, envs = self._member.surroundings()
        return Place(ray.get_runtime_context().get_node_id(), folder, gang_ray.own(envs))

    def how_it_ended(self, within_s: float) -> str:
        return self._member.how_it_ended(within_s)

    def close(self) -> None:
        self._member.close()


class Members:
    """Of a LaunchOrder as JSON, whose first member is this process."""

    def __init__(self, order: str) -> None:
        known = json.loads(order)
        self.order = known
        self._order, self._key = order, serve_door.new_key()
        self._name = f"llms/{known['gang']}/{known['attempt']}"
        self._members: list[dict[str, Any]] = known["members"]
        self._hired: dict[int, tuple[Any, Any]] = {}  # by rank: the actor, and what it says once it is open

    def hire(self) -> None:
        """All at once; none is waited for."""
        group = ray.util.get_current_placement_group()
        node = ray.get_runtime_context().get_node_id()
        for member in self._members[1:]:
            need, rank = resources_of(member), int(member["rank"])
            actor = (
                ray.remote(max_restarts=0, max_concurrency=AT_ONCE)(MemberActor)
                .options(
                    name=f"{self._name}/rank-{rank}",
                    namespace=NAMESPACE,
                    num_gpus=need.pop("GPU", 0),
                    num_cpus=need.pop("CPU", 0),
                    memory=int(need.pop("memory", 0)) or None,
                    resources=need,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )
                .remote(self._order, rank, self._key, node)
            )
            self._hired[rank] = actor, actor.open.remote()

    def open(self, rank: int) -> tuple[socket.socket, Home]:
        """The line to the process of that member. Raises UserError and WorkError."""
        actor, opening = self._hired[rank]
        try:
            ray.get(actor.is_there.remote(), timeout=PLACED_WITHIN_S)
            opened: Opened = ray.get(opening)
        except ray.exceptions.GetTimeoutError:
            raise WorkError(f"Ray did not place rank {rank} of its gang in {PLACED_WITHIN_S:.0f} s") from None
        except ray.exceptions.RayError as error:
            raise WorkError(f"rank {rank} of its gang could not start: {type(error).__name__}") from error
        if opened.refused:
            raise (environment.UserError if opened.is_input else WorkError)(opened.refused)
        try:
            return serve_door.reach(opened.address, self._key), _AtMember(actor)
        except OSError as error:
            host, port = opened.address
            raise WorkError(f"rank {rank} of its gang is not reached at {host}:{port}: {error}") from None

    def place_of(self, rank: int) -> Place:
        """For commands beside it. Raises RayError when it is gone."""
        place: Place = ray.get(self._hired[rank][0].place.remote(), timeout=CLOSE_WITHIN_S)
        return place

    def close(self) -> None:
        """End those that are left."""
        for actor, _ in self._hired.values():
            with suppress(Exception):
                ray.kill(actor)
        self._hired.clear()


class _AtMember:
    """The process of a deployment, as its member knows it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def how_it_ended(self, within_s: float = 0.0) -> str:
        """Not asked for nothing: the line says that it has ended."""
        if not within_s:
            return ""
        try:
            return str(ray.get(self._actor.how_it_ended.remote(within_s), timeout=within_s + CLOSE_WITHIN_S))
        except ray.exceptions.GetTimeoutError:
            return ""
        except ray.exceptions.RayError:
            return "was lost with the worker or node that it ran on"

    def close(self) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(self._actor.close.remote(), timeout=CLOSE_WITHIN_S * 2)
        with suppress(Exception):
            ray.kill(self._actor)
