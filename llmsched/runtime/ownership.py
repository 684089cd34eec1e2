"""Whose a thing in Ray is: who created it, who created that one, up to the supervisor of an attempt. Pure.

Ray knows the worker that owns each actor and the actor that created each placement group, whatever names they have and
whether anybody told us. `ray_internals.tables` reads both; a chain that ends at an actor named `llms/...` belongs to
that attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

PREFIX = "llms/"


class Actor(NamedTuple):
    id: str
    worker: str  # id of the process that it is in; empty before it has one
    owner: str  # id of the process that created it
    name: str
    namespace: str
    class_name: str
    is_alive: bool  # or about to be


class Group(NamedTuple):
    """A placement group that is not removed. `creator` is empty where a driver made it: Ray frees that by itself."""

    id: str
    creator: str
    is_detached: bool


@dataclass(frozen=True)
class Tables:
    """`actors` by id: all that live, and those dead ones that created a group."""

    actors: Mapping[str, Actor]
    groups: tuple[Group, ...]

    def attempt_of(self, actor: Actor | None) -> str | None:
        """The name of the attempt that an actor belongs to, also a dead one; None: of nobody that still lives."""
        by_worker = {one.worker: one for one in self.actors.values() if one.is_alive and one.worker}
        seen: set[str] = set()
        while actor is not None and actor.id not in seen:
            if actor.name.startswith(PREFIX) and actor.is_alive:
                return attempt_in(actor.name)
            seen.add(actor.id)
            actor = by_worker.get(actor.owner)
        return None

    def left_behind(self, live: Collection[str], namespace: str) -> list[str]:
        """Groups (ids) that nobody will free: made in our namespace by an actor that is gone, for an attempt that is
        not among the live ones."""
        orphans = []
        for group in self.groups:
            creator = self.actors.get(group.creator)
            if creator is None or creator.namespace != namespace or group.is_detached:
                continue
            attempt = self.attempt_of(creator)
            is_orphan = not creator.is_alive if attempt is None else attempt not in live
            if is_orphan:
                orphans.append(group.id)
        return orphans

    def owned_by(self, worker: str) -> tuple[list[Actor], list[Group]]:
        """What the process `worker` created: actors, and the groups that those created."""
        actors = [one for one in self.actors.values() if one.owner == worker]
        ids = {one.id for one in actors}
        return actors, [one for one in self.groups if one.creator in ids]


def attempt_in(name: str) -> str:
    """`llms/tune/0/1/rank-3` -> `llms/tune/0/1`: the attempt that a name belongs to."""
    return "/".join(name.split("/")[:4])
