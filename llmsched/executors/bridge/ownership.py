"""Whose each thing in Ray is: which attempt made it, itself or by way of what it made, and what it holds where.

A function of Ray's tables (`ray_internals.tables`) and nothing else, so tests give it tables of their own. An attempt's
first process bears its mark in Ray's runtime environment, which Ray hands on to every actor that is made from there;
commands get it for the Ray drivers that they start. Where a program replaced its environment, who made the thing is
followed up: actor by actor, up to a marked one or to a driver's job. Serve makes the processes of applications by
itself: whose those are is told by the deployer's job (`deployers`). Start reading at `Ownership`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from llmsched.executors.bridge.ray_internals import Actor, Group, Job, Tables
from llmsched.gateway import app as gateway
from llmsched.runtime import addressed
from llmsched.runtime.containment import BRIDGE, METADATA, OWNER, attempt_of

ATTEMPTS = "llmsched"  # the namespace of supervisors and of the ranks of tasks
PREFIX = "llms/"
SERVE = "serve"
GATEWAY = gateway.NAME
REPLICA = "SERVE_REPLICA::"
_STEPS = 64  # up the line of makers


class Held(NamedTuple):
    """An amount that Ray has given away on a node."""

    node: str
    resources: Mapping[str, float]


class Ownership:
    """One look at the tables. As far as known: `deployers`, Serve application -> the job that deployed it, and
    `drivers`, job -> the mark that its process or a process above it bears. `carried`: the attempts of supervisors that
    have another one than their first, "" for none."""

    def __init__(
        self,
        tables: Tables,
        cluster: str,
        deployers: Mapping[str, str] | None = None,
        drivers: Mapping[str, str] | None = None,
        carried: Mapping[str, str] | None = None,
    ) -> None:
        self._tables, self._cluster, self._deployers = tables, cluster, deployers or {}
        self._carried = carried or {}
        self._by_worker = {one.worker: one for one in tables.actors if one.worker}
        self._by_id = {one.id: one for one in tables.actors}
        marks = {one.id: one.metadata.get(METADATA) or (drivers or {}).get(one.id, "") for one in tables.jobs}
        self._jobs = {job: self._attempt(mark) for job, mark in marks.items()}
        self._house = {one.id for one in tables.jobs if BRIDGE in one.metadata}
        self._makers = {one.id: self._maker_of(one) for one in tables.actors}

    def attempts(self) -> set[str]:
        """All that have something left beside their supervisor."""
        found = {self._makers[one.id] for one in self._tables.actors if not _is_supervisor(one)}
        found |= {self._attempt_of_group(one) for one in self._tables.groups}
        return {name for name in found if name}

    def actors(self, attempt: str) -> list[Actor]:
        """All of an attempt's, its own supervisor and ranks too."""
        return [one for one in self._tables.actors if self._makers[one.id] == attempt]

    def made(self, attempt: str) -> list[Actor]:
        """The same without its supervisor."""
        return [one for one in self.actors(attempt) if not _is_supervisor(one)]

    def groups(self, attempt: str) -> list[Group]:
        return [one for one in self._tables.groups if self._attempt_of_group(one) == attempt]

    def applications(self, attempt: str) -> set[str]:
        """Serve applications that the work deployed; not the one that a replica of ours is."""
        names = {application_of(one) for one in self.actors(attempt)}
        return {name for name in names if name and not name.startswith(PREFIX)}

    def strangers(self) -> dict[str, str]:
        """Replicas of applications that are not ours, by actor id: whose they are is to be asked of Serve."""
        found = {one.id: application_of(one) for one in self._tables.actors}
        return {
            replica: name for replica, name in found.items() if name and name != GATEWAY and not name.startswith(PREFIX)
        }

    def unmarked_jobs(self) -> dict[str, Job]:
        """Drivers that run and bear no mark of ours: whose they are is to be asked of their nodes."""
        known = self._house | {one.id for one in self._tables.jobs if METADATA in one.metadata}
        return {one.id: one for one in self._tables.jobs if not one.is_over and one.id not in known}

    def held(self) -> dict[str, list[Held]]:
        """What is held through Ray, by attempt: its actors and remote functions, and its groups with all that
        runs in them."""
        found: dict[str, list[Held]] = {}
        for one in self._tables.actors:
            if (attempt := self._makers[one.id]) and not one.group and one.node:
                found.setdefault(attempt, []).append(Held(one.node, one.resources))
        for task in self._tables.tasks:
            maker = self._attempt(task.envs.get(OWNER, "")) or self._jobs.get(task.job)
            if maker and task.node and not task.group:
                found.setdefault(maker, []).append(Held(task.node, task.resources))
        for group in self._tables.groups:
            if attempt := self._attempt_of_group(group):
                found.setdefault(attempt, []).extend(Held(node, amounts) for node, amounts in group.bundles if node)
        return found

    def _attempt(self, mark: str) -> str | None:
        attempt = attempt_of(mark, self._cluster) or ""
        if attempt.startswith(addressed.PREFIX):
            return self._carried_by(attempt)
        return attempt if attempt.startswith(PREFIX) else None

    def _carried_by(self, warm: str) -> str | None:
        return self._carried.get(warm, addressed.first_attempt(warm)) or None

    def _maker_of(self, actor: Actor) -> str | None:
        seen: Actor | None = actor
        for _ in range(_STEPS):
            if seen is None:
                return None
            if found := self._named(seen):
                return found
            if application := application_of(seen):
                return self._deployer_of(application, seen)
            if _is_rays(seen):
                return None
            if found := self._marked(seen):
                return found
            above = self._by_worker.get(seen.owner)
            if above is None:  # a driver made it
                return self._jobs.get(seen.job)
            seen = above
        return None

    def _deployer_of(self, application: str, replica: Actor) -> str | None:
        """By the deployer's job. Within an attempt that is a bridge's own, of this one or of one before it: there the
        deployment bears a mark. A mark alone proves nothing: Serve's controller hands on that of whoever started it."""
        job = self._deployers.get(application)
        if application == GATEWAY or job is None:
            return None
        return self._marked(replica) if job in self._house else self._jobs.get(job)

    def _named(self, actor: Actor) -> str | None:
        """Our own name for it: of a supervisor, a rank, or a replica."""
        if actor.namespace == ATTEMPTS and actor.name.startswith(PREFIX):
            return attempt_name(actor.name)
        if actor.namespace == ATTEMPTS and actor.name.startswith(addressed.PREFIX):
            return self._carried_by(addressed.supervisor_part(actor.name))
        application = application_of(actor)
        return attempt_name(application) if application.startswith(PREFIX) else None

    def _marked(self, actor: Actor) -> str | None:
        return self._attempt(actor.envs.get(OWNER, ""))

    def _attempt_of_group(self, group: Group) -> str | None:
        if (replica := _replica_part(group.name)).startswith(PREFIX):  # Serve made it for one of ours, under its name
            return attempt_name(replica)
        inside = [self._makers[one.id] for one in self._tables.actors if one.group == group.id]
        creator = self._by_id.get(group.creator)
        if creator is not None and creator.namespace != SERVE:
            return self._makers[creator.id]
        if creator is None and (found := self._attempt(group.envs.get(OWNER, ""))):
            return found  # its maker has gone and did not take it along: Ray keeps it for as long as the bridge lives
        # A driver made it, or Serve, which makes one for a replica to run in; or its maker has gone.
        return (None if creator else self._jobs.get(group.job)) or next(filter(None, inside), None)


def attempt_name(name: str) -> str:
    """`llms/tune/0/1/rank-3` -> `llms/tune/0/1`"""
    return "/".join(name.split("/")[:4])


def application_of(actor: Actor) -> str:
    """Of a replica of Serve, the application's name; "" for any other actor."""
    return _replica_part(actor.name) if actor.namespace == SERVE else ""


def _replica_part(name: str) -> str:
    return name.removeprefix(REPLICA).partition("#")[0] if name.startswith(REPLICA) else ""


def _is_supervisor(actor: Actor) -> bool:
    is_ours = actor.namespace == ATTEMPTS and actor.name.startswith((PREFIX, addressed.PREFIX))
    return is_ours and attempt_name(actor.name) == actor.name


def _is_rays(actor: Actor) -> bool:
    """One that Ray's libraries make once for everybody, when somebody first needs it: Serve's controller and proxies,
    the counters of Ray Data, Ray Train's record of all runs. Whoever that was does not take it along. A wish for a node
    (`node:...`) holds nothing there."""
    holds = any(not name.startswith("node:") for name in actor.resources)
    is_library = actor.is_detached and actor.module.startswith("ray.") and not holds
    return actor.namespace == SERVE or is_library
