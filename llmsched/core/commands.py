"""What users ask of the scheduler. `check(state, command)` turns a command into a fact, or says why not. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING

from llmsched.core import cron, node_commands, rollout
from llmsched.core.configuration import Configuration, Reservation
from llmsched.core.facts import Cancelled, Configured, Fact, RolledBack, Scaled, Submitted
from llmsched.core.message import (
    ACTOR,
    COHORT,
    FLAVOR,
    NODE,
    QUEUE,
    RESERVATION,
    Arg,
    Message,
    Quote,
    Ref,
    say,
    workload,
)
from llmsched.core.node_commands import DrainNode, UndrainNode
from llmsched.core.open_work import open_of
from llmsched.core.possible import why_never
from llmsched.core.records import WorkloadState, allowed_sizes
from llmsched.core.refusal import Refusal
from llmsched.core.reservation import is_immovable, window
from llmsched.core.resources import MILLI
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows, nodes_of
from llmsched.core.workload import Workload

if TYPE_CHECKING:
    from llmsched.core.state import State

CHILDREN_AT_ONCE = 64  # that one workload has asked for and that have not ended
NAMES_COMPARED = 500  # the newest: so many are looked through for the one that was meant


@dataclass(frozen=True, slots=True)
class Submit:
    """New, or changed under a known name. The same workload again is a no-op (`Refusal` code "unchanged").

    `in_place`: nothing that a running replica was started with has changed, so that it goes on under the new spec."""

    at: float
    workload: Workload
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    at: float
    workload: str
    by: str = ""
    by_parent: bool = False


@dataclass(frozen=True, slots=True)
class ScaleTo:
    at: float
    workload: str
    size: int


@dataclass(frozen=True, slots=True)
class Configure:
    at: float
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Reserve:
    """Beside those of the cluster file, which it outlives: a new file leaves it alone until its window is over."""

    at: float
    reservation: Reservation


@dataclass(frozen=True, slots=True)
class Unreserve:
    at: float
    name: str


@dataclass(frozen=True, slots=True)
class RollBack:
    """To the last version that answered before the newest, or to that of revision `to`."""

    at: float
    workload: str
    by: str = ""
    to: int | None = None


Command = Submit | Cancel | ScaleTo | RollBack | Configure | Reserve | Unreserve | DrainNode | UndrainNode


def check(state: State, command: Command) -> Fact | Refusal:
    """The fact that `command` becomes in `state`, or the refusal. Neither is applied."""
    if isinstance(command, Submit):
        return _submit(state, command)
    if isinstance(command, Cancel):
        record = state.find(command.workload)
        if record is None:
            return _unknown(state, command.workload)
        if record.outcome and command.workload not in state.scheduled:
            return Refusal("ended", say(f"ended.{record.outcome}", who=workload(command.workload)))
        if record.cancelled:
            return Refusal("unchanged", say("unchanged.cancel", who=workload(command.workload)))
        return Cancelled(command.at, command.workload, command.by, command.by_parent)
    if isinstance(command, ScaleTo):
        return _scale(state, command)
    if isinstance(command, Reserve):
        return _reserve(state, command)
    if isinstance(command, Unreserve):
        return _unreserve(state, command)
    if isinstance(command, DrainNode):
        return node_commands.drain(state, command)
    if isinstance(command, UndrainNode):
        return node_commands.undrain(state, command)
    if isinstance(command, RollBack):
        return _roll_back(state, command)
    return _configure(state, command)


def _unknown(state: State, name: str) -> Refusal:
    near = get_close_matches(name, [*islice(reversed(state.workloads), NAMES_COMPARED)], 1)
    if near:
        message = say("unknown_workload.near", name=Quote(name), near=workload(near[0]))
        return Refusal("unknown_workload", message)
    return Refusal("unknown_workload", say("unknown_workload", name=Quote(name)))


def _submit(state: State, command: Submit) -> Fact | Refusal:
    spec = command.workload
    who = _named(spec)
    known = state.find(spec.id)
    if known is not None:
        if replace(known.workload, user=spec.user) == spec:
            return Refusal("unchanged", say("unchanged.workload", who=who))
        if known.outcome and spec.id not in state.scheduled:
            return Refusal("ended", say(f"ended.change_{known.outcome}", who=who))
        if known.cancelled:
            return Refusal("conflict", say("conflict.cancelling", who=who))
        if known.workload.kind != spec.kind:
            kinds = say("conflict.kind", who=who, kind=Quote(known.workload.kind), other=Quote(spec.kind))
            return Refusal("conflict", kinds)
    return (
        _in_queue(state, spec)
        or _sizes(spec)
        or _bounds(state, spec)
        or (None if known else _family(state, spec))
        or _dependencies(state, spec)
        or _schedules(spec)
        or _deadline(spec, command.at)
        or (None if known else _crowded(state, spec))
        or _could_never_start(state, spec)
        or Submitted(command.at, spec, known is not None, command.in_place and known is not None, met(state, spec))
    )


def _in_queue(state: State, spec: Workload) -> Refusal | None:
    queues = [queue.name for queue in state.configuration.queues]
    if spec.queue in queues:
        return None
    who, near = _named(spec), get_close_matches(spec.queue, queues, 1)
    unknown = say("unknown_queue", who=who, name=Quote(spec.queue), known=_queues(queues))
    if near:
        unknown = say("unknown_queue.near", who=who, name=Quote(spec.queue), near=Ref(QUEUE, near[0]))
    return Refusal("unknown_queue", unknown)


def _could_never_start(state: State, spec: Workload) -> Refusal | None:
    never = why_never(state, spec)
    return Refusal(*never) if never is not None else None


def _named(spec: Workload) -> Quote:
    """Whoever submits it wrote its name: it is no secret to them, whether it exists or not."""
    return Quote(spec.id)


def _queues(names: Iterable[str]) -> tuple[Ref, ...]:
    return tuple(Ref(QUEUE, name) for name in names)


def _sizes(spec: Workload) -> Refusal | None:
    who = _named(spec)
    if not 1 <= spec.min_size <= spec.max_size or spec.step < 1:
        return Refusal("impossible", say("impossible.workers", who=who, least=spec.min_size, most=spec.max_size))
    if spec.sizes and not all(spec.min_size <= size <= spec.max_size for size in spec.sizes):
        return Refusal("impossible", say("impossible.sizes", who=who, least=spec.min_size, most=spec.max_size))
    if not 0 <= spec.min_replicas <= spec.max_replicas:
        return Refusal(
            "impossible", say("impossible.replicas", who=who, least=spec.min_replicas, most=spec.max_replicas)
        )
    return None


def _family(state: State, spec: Workload) -> Refusal | None:
    """Whether its parent, if it has one, may have it."""
    if not spec.parent:
        return None
    parent, who = state.workloads.get(spec.parent), _named(spec)
    if parent is None or parent.outcome or parent.cancelled:
        return Refusal("ended", say("parent_over", who=who, parent=workload(spec.parent)))
    if parent.workload.parent:
        return Refusal("too_deep", say("too_deep", who=who, parent=workload(spec.parent)))
    if len(state.children.get(spec.parent, ())) >= CHILDREN_AT_ONCE:
        return Refusal(
            "too_many", say("too_many.children", who=who, parent=workload(spec.parent), limit=CHILDREN_AT_ONCE)
        )
    return None


def _dependencies(state: State, spec: Workload) -> Refusal | None:
    who = _named(spec)
    for name in spec.after:
        if name == spec.id:
            return Refusal("cycle", say("cycle.itself", who=who))
        record = state.find(name)
        if record is None:
            return unknown_dependency(spec, name)
        if record.workload.kind == "serve":
            return Refusal("impossible", say("impossible.after_serve", who=who, other=workload(name)))
        if record.outcome in ("failed", "cancelled"):
            return Refusal("impossible", say(f"impossible.after_{record.outcome}", who=who, other=workload(name)))
    path = _path_back(state, spec)
    if path:
        steps: tuple[Arg, ...] = tuple(who if name == spec.id else workload(name) for name in path)
        return Refusal("cycle", say("cycle.path", who=who, path=steps))
    return None


def met(state: State, workload: Workload) -> tuple[str, ...]:
    """What it comes after that has left the state: `_dependencies` has seen that it succeeded."""
    return tuple(name for name in workload.after if name not in state.workloads and state.find(name) is not None)


def unknown_dependency(spec: Workload, name: str) -> Refusal:
    """Also for what is there and may not be seen: `name` is as the spec has it."""
    return Refusal("unknown_workload", say("unknown_dependency", who=_named(spec), name=Quote(name)))


def _path_back(state: State, spec: Workload) -> list[str]:
    """A chain of `after` from this workload back to itself, if there is one."""
    stack: list[tuple[str, list[str]]] = [(name, [spec.id, name]) for name in spec.after]
    seen: dict[str, None] = {}
    while stack:
        name, path = stack.pop()
        if name == spec.id:
            return path
        if name in seen or name not in state.workloads:
            continue
        seen[name] = None
        stack += [(following, [*path, following]) for following in state.workloads[name].workload.after]
    return []


def _schedules(spec: Workload) -> Refusal | None:
    who = _named(spec)
    if spec.schedule and spec.deadline is not None:
        return Refusal("impossible", say("impossible.deadlines", who=who))
    bounds = spec.autoscaling.bounds if spec.autoscaling else ()
    for text in (*((spec.schedule,) if spec.schedule else ()), *(bound[0] for bound in bounds)):
        try:
            cron.check(text)
        except ValueError as wrong:
            return Refusal("impossible", say("impossible.schedule", who=who, problem=Quote(str(wrong))))
    return None


def _deadline(spec: Workload, at: float) -> Refusal | None:
    if spec.deadline is None or spec.deadline > at:
        return None
    return Refusal("impossible", say("impossible.deadline", who=_named(spec), ago=at - spec.deadline))


def _bounds(state: State, spec: Workload) -> Refusal | None:
    """What one submission, and one user, may ask for at all."""
    limits, who = state.configuration, _named(spec)
    workers = spec.max_size + sum(group.count for group in spec.groups[1:])
    if workers > limits.max_workers:
        return Refusal("too_many", say("too_many.workers", who=who, count=workers, limit=limits.max_workers))
    if spec.kind == "serve" and spec.max_replicas > limits.max_replicas:
        message = say("too_many.replicas", who=who, count=spec.max_replicas, limit=limits.max_replicas)
        return Refusal("too_many", message)
    then = state.open_work.of_user(spec.user, but=spec.id).plus(open_of(spec))
    if then.gangs > limits.max_gangs_per_user:
        message = say("too_many.gangs", who=who, count=then.gangs, limit=limits.max_gangs_per_user)
        return Refusal("too_many", message)
    if then.spec_bytes > limits.max_spec_bytes_per_user:
        message = say("too_many.bytes", who=who, count=then.spec_bytes, limit=limits.max_spec_bytes_per_user)
        return Refusal("too_many", message)
    return None


def _crowded(state: State, spec: Workload) -> Refusal | None:
    limit = state.configuration.max_pending_per_queue
    if state.waiting.by_queue.get(spec.queue, 0) >= limit:
        return Refusal("queue_full", say("queue_full", queue=Ref(QUEUE, spec.queue), limit=limit))
    return None


def _scale(state: State, command: ScaleTo) -> Fact | Refusal:
    record = state.find(command.workload)
    if record is None:
        return _unknown(state, command.workload)
    if record.outcome or record.cancelled:
        return Refusal("ended", say(f"ended.scale_{record.outcome or 'cancelled'}", who=workload(command.workload)))
    spec = record.workload
    serves = spec.kind == "serve"
    low, high = (spec.min_replicas, spec.max_replicas) if serves else (spec.min_size, spec.max_size)
    if not low <= command.size <= high:
        message = say(
            "over_limit.replicas" if serves else "over_limit.workers",
            who=workload(spec.id),
            least=low,
            most=high,
            size=command.size,
        )
        return Refusal("over_limit", message)
    sizes = allowed_sizes(spec)
    if not serves and command.size not in sizes:
        message = say("over_limit.size", who=workload(spec.id), size=command.size, sizes=sizes)
        return Refusal("over_limit", message)
    if _is_wanted(state, record, command.size):
        return Refusal("unchanged", say("unchanged.scale", who=workload(spec.id), size=command.size))
    return Scaled(command.at, command.workload, command.size)


def _is_wanted(state: State, record: WorkloadState, size: int) -> bool:
    """Asking for that size again would change nothing. Of an endpoint it begins anew replicas that failed."""
    gangs = state.gangs_of(record)
    if record.workload.kind == "serve":
        failed = any(gang.status is Status.FAILED for gang in gangs)
        return record.scaled_by_user and record.wanted_replicas == size and not failed
    return all(gang.wanted_size == size for gang in gangs)


def _roll_back(state: State, command: RollBack) -> Fact | Refusal:
    record = state.find(command.workload)
    if record is None:
        return _unknown(state, command.workload)
    version = rollout.to_go_back_to(record, command.to)
    if isinstance(version, Message):
        return Refusal("no_revision", version)
    spec = version.spec
    return (
        _in_queue(state, spec)
        or _bounds(state, spec)
        or _dependencies(state, spec)
        or _could_never_start(state, spec)
        or RolledBack(command.at, command.workload, version.revision, command.by, met(state, spec))
    )


def _configure(state: State, command: Configure) -> Fact | Refusal:
    """Configurations are checked by spec/cluster.py; what depends on the state is checked here."""
    made = _made(state, command.at)
    in_file = [one.name for one in command.configuration.reservations]
    for one in made:
        if one.name in in_file:
            message = say("conflict.reserved", reserved=Ref(RESERVATION, one.name), by=Ref(ACTOR, one.by))
            return Refusal("conflict", message)
    reservations = (*command.configuration.reservations, *made)
    return _put_in_force(state, command.at, replace(command.configuration, reservations=reservations))


def _made(state: State, at: float) -> tuple[Reservation, ...]:
    """Reservations made by command whose window is not over."""
    return tuple(one for one in state.configuration.reservations if one.by and window(one, at) is not None)


def _reserve(state: State, command: Reserve) -> Fact | Refusal:
    new, configuration = command.reservation, state.configuration
    reserved = Ref(RESERVATION, new.name)
    from_file = tuple(one for one in configuration.reservations if not one.by)
    made = _made(state, command.at)
    if any(one.name == new.name for one in (*from_file, *made)):
        return Refusal("conflict", say("conflict.reservation", reserved=reserved))
    if window(new, command.at) is None:
        return Refusal("impossible", say("impossible.window", reserved=reserved))
    queues = [queue.name for queue in configuration.queues]
    if new.queue is not None and new.queue not in queues:
        unknown = say("unknown_queue.reservation", name=Quote(new.queue), known=_queues(queues))
        return Refusal("unknown_queue", unknown)
    there = _gpus_milli(state, new.flavor)
    if new.gpus_milli > there:
        flavor = Ref(FLAVOR, new.flavor or "GPUs")
        message = say("impossible.reservation", reserved=reserved, need=new.gpus_milli, flavor=flavor, there=there)
        return Refusal("impossible", message)
    reservations = (*from_file, *made, new)
    version = configuration.version + 1
    return _put_in_force(state, command.at, replace(configuration, version=version, reservations=reservations))


def _unreserve(state: State, command: Unreserve) -> Fact | Refusal:
    configuration = state.configuration
    found = next((one for one in configuration.reservations if one.name == command.name), None)
    if found is None:
        return Refusal("unknown_reservation", say("unknown_reservation", name=Quote(command.name)))
    if not found.by:
        return Refusal("conflict", say("conflict.in_file", reserved=Ref(RESERVATION, command.name)))
    left = tuple(one for one in configuration.reservations if one is not found)
    changed = replace(configuration, version=configuration.version + 1, reservations=left)
    return Configured(command.at, changed)


def _gpus_milli(state: State, flavor: str | None) -> int:
    """The most there can be of a flavor (None: of all), nodes that may yet be rented counted."""
    here = [found.node for found in state.nodes.values()]
    total = sum(node.total.gpus_milli for node in here if flavor in (None, node.flavor))
    for kind in state.configuration.node_types:
        joined = sum(node.node_type == kind.name for node in here)
        if flavor in (None, kind.flavor):
            total += max(kind.max - joined, 0) * kind.gpus * MILLI
    return total


def _put_in_force(state: State, at: float, configuration: Configuration) -> Fact | Refusal:
    if replace(configuration, version=state.configuration.version) == state.configuration:
        return Refusal("unchanged", say("unchanged.configuration"))
    parents = {cohort.name: cohort.parent for cohort in configuration.cohorts}
    for name in parents:
        seen: list[str] = []
        above: str | None = name
        while above is not None and above not in seen:
            seen.append(above)
            above = parents.get(above)
        if above is not None:
            circle = tuple(Ref(COHORT, each) for each in (*seen, above))
            return Refusal("cycle", say("cycle.cohorts", path=circle))
    overlapping = _overlaps(state, configuration)
    if overlapping is not None:
        return overlapping
    queues = [queue.name for queue in configuration.queues]
    for record in state.workloads.values():
        if not record.outcome and record.workload.queue not in queues:
            missing = Ref(QUEUE, record.workload.queue)
            return Refusal("conflict", say("conflict.queue", queue=missing, who=workload(record.workload.id)))
    return Configured(at, configuration)


def _overlaps(state: State, configuration: Configuration) -> Refusal | None:
    """A new reservation must not need nodes from work that can neither end before it nor be asked to leave."""
    new = tuple(one for one in configuration.reservations if one not in state.configuration.reservations)
    if not new:
        return None
    with Trial(state) as trial:
        for opens, _, nodes, _, reservation in Windows(trial, configuration.reservations).rows:
            for name in state.holding if reservation in new else ():
                gang = state.gangs[name]
                if is_immovable(reservation, gang, opens) and nodes & nodes_of(trial, gang):
                    on = next(p.node for p in gang.held if nodes >> state.nodes[p.node].slot & 1)
                    message = say(
                        "overlap", reserved=Ref(RESERVATION, reservation.name), who=workload(gang.workload_id),
                        node=Ref(NODE, state.nodes[on].node.name or on),
                    )  # fmt: skip
                    return Refusal("overlap", message)
    return None
