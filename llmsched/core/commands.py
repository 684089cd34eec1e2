"""What users ask of the scheduler. `check(state, command)` turns a command into a fact, or says why not. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from llmsched.core import cron
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Configuration, NodeType, Reservation
from llmsched.core.facts import Cancelled, Configured, Fact, Scaled, Submitted
from llmsched.core.nodes import Node
from llmsched.core.records import allowed_sizes
from llmsched.core.reservation import Windows, is_immovable, nodes_of, window
from llmsched.core.resources import MILLI, Resources
from llmsched.core.stages.provision import accelerator_of, total_of
from llmsched.core.trial import Trial
from llmsched.core.workload import Workload

if TYPE_CHECKING:
    from llmsched.core.state import State


@dataclass(frozen=True, slots=True)
class Submit:
    """New, or changed under a known name. The same workload again is a no-op (`Refusal` code "unchanged")."""

    at: float
    workload: Workload


@dataclass(frozen=True, slots=True)
class Cancel:
    at: float
    workload: str
    by: str = ""


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


Command = Submit | Cancel | ScaleTo | Configure | Reserve | Unreserve


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code`: unchanged | unknown_workload | unknown_queue | impossible | over_limit | cycle | conflict | ended ..."""

    code: str
    message: str
    hint: str = ""


def check(state: State, command: Command) -> Fact | Refusal:
    """The fact that `command` becomes in `state`, or the refusal. Neither is applied."""
    if isinstance(command, Submit):
        return _submit(state, command)
    if isinstance(command, Cancel):
        record = state.workloads.get(command.workload)
        if record is None:
            return _unknown(state, command.workload)
        if record.outcome and command.workload not in state.scheduled:
            return Refusal("ended", f"{command.workload} has {_ended(record.outcome)} already")
        if record.cancelled:
            return Refusal("unchanged", f"{command.workload} is being cancelled already")
        return Cancelled(command.at, command.workload, command.by)
    if isinstance(command, ScaleTo):
        return _scale(state, command)
    if isinstance(command, Reserve):
        return _reserve(state, command)
    if isinstance(command, Unreserve):
        return _unreserve(state, command)
    return _configure(state, command)


def _unknown(state: State, name: str) -> Refusal:
    near = get_close_matches(name, [*state.workloads], 1)
    hint = f'Did you mean "{near[0]}"?' if near else "See: llmsched status"
    return Refusal("unknown_workload", f'no workload is called "{name}"', hint)


def _ended(outcome: str) -> str:
    return "been cancelled" if outcome == "cancelled" else outcome


def _submit(state: State, command: Submit) -> Fact | Refusal:
    workload = command.workload
    known = state.workloads.get(workload.id)
    if known is not None:
        if replace(known.workload, user=workload.user) == workload:
            return Refusal("unchanged", f"{workload.id} is as it was")
        if known.outcome and workload.id not in state.scheduled:
            return Refusal(
                "ended", f"{workload.id} has {_ended(known.outcome)}; what has ended cannot change",
                "To run the changed spec: llmsched apply --again",
            )  # fmt: skip
        if known.cancelled:
            return Refusal("conflict", f"{workload.id} is being cancelled", "Wait until it is gone, then --again.")
        if known.workload.kind != workload.kind:
            return Refusal(
                "conflict", f"{workload.id} is a {known.workload.kind} and cannot become a {workload.kind}",
                "Choose another name.",
            )  # fmt: skip
    queues = {queue.name: queue for queue in state.configuration.queues}
    if workload.queue not in queues:
        near = get_close_matches(workload.queue, [*queues], 1)
        hint = f'Did you mean "{near[0]}"?' if near else f"Known queues: {', '.join(queues)}."
        return Refusal("unknown_queue", f'{workload.id}: no queue is called "{workload.queue}"', hint)
    return (
        _sizes(workload)
        or _dependencies(state, workload)
        or _schedules(workload)
        or (None if known else _crowded(state, workload))
        or _fits_somewhere(state, workload)
        or Submitted(command.at, workload, replaces=known is not None)
    )


def _sizes(workload: Workload) -> Refusal | None:
    if not 1 <= workload.min_size <= workload.max_size or workload.step < 1:
        return Refusal("impossible", f"{workload.id}: workers {workload.min_size}..{workload.max_size} is no range")
    if workload.sizes and not all(workload.min_size <= size <= workload.max_size for size in workload.sizes):
        return Refusal("impossible", f"{workload.id}: a size lies outside {workload.min_size}..{workload.max_size}")
    if not 0 <= workload.min_replicas <= workload.max_replicas:
        return Refusal(
            "impossible", f"{workload.id}: replicas {workload.min_replicas}..{workload.max_replicas} is no range"
        )
    return None


def _dependencies(state: State, workload: Workload) -> Refusal | None:
    for name in workload.after:
        if name == workload.id:
            return Refusal("cycle", f"{workload.id} would wait for itself")
        record = state.workloads.get(name)
        if record is None:
            return unknown_dependency(workload, name)
        if record.workload.kind == "serve":
            return Refusal(
                "impossible",
                f"{workload.id} would wait for {name}, which serves and never ends",
                "Leave it out of after:.",
            )
        if record.outcome in ("failed", "cancelled"):
            return Refusal(
                "impossible", f"{workload.id} comes after {name}, which has {_ended(record.outcome)}",
                f"Run {name} again first: llmsched apply --again",
            )  # fmt: skip
    path = _path_back(state, workload)
    if path:
        return Refusal(
            "cycle", f"{workload.id} would wait for itself: {' -> '.join(path)}", "Break the circle in after:."
        )
    return None


def unknown_dependency(workload: Workload, name: str) -> Refusal:
    return Refusal(
        "unknown_workload", f'{workload.id} comes after {name}, and no workload is called "{name}"',
        f"Apply {name} first, or in the same file before it.",
    )  # fmt: skip


def _path_back(state: State, workload: Workload) -> list[str]:
    """A chain of `after` from this workload back to itself, if there is one."""
    stack: list[tuple[str, list[str]]] = [(name, [workload.id, name]) for name in workload.after]
    seen: dict[str, None] = {}
    while stack:
        name, path = stack.pop()
        if name == workload.id:
            return path
        if name in seen or name not in state.workloads:
            continue
        seen[name] = None
        stack += [(following, [*path, following]) for following in state.workloads[name].workload.after]
    return []


def _schedules(workload: Workload) -> Refusal | None:
    if workload.schedule and workload.deadline is not None:
        return Refusal(
            "impossible",
            f"{workload.id}: every run of its schedule would have the same deadline",
            "Bound each run by max_runtime: instead.",
        )
    bounds = workload.autoscaling.bounds if workload.autoscaling else ()
    for text in (*((workload.schedule,) if workload.schedule else ()), *(bound[0] for bound in bounds)):
        try:
            if cron.next_due(text, 0.0) is None:
                return Refusal("impossible", f"{workload.id}: schedule {text!r} is never due")
        except ValueError as wrong:
            return Refusal("impossible", f"{workload.id}: {wrong}")
    return None


def _crowded(state: State, workload: Workload) -> Refusal | None:
    limit = state.configuration.max_pending_per_queue
    if state.waiting.by_queue.get(workload.queue, 0) >= limit:
        return Refusal(
            "queue_full", f'queue "{workload.queue}" has {limit} gangs waiting, which is its limit',
            "Wait, or raise limits.max_pending_per_queue.",
        )  # fmt: skip
    return None


def _fits_somewhere(state: State, workload: Workload) -> Refusal | None:
    """Refuse what could not start even if everybody else left. Without any node nothing is known to be impossible."""
    types = state.configuration.node_types
    if not state.nodes:
        return None
    refusal: Refusal | None = None
    for option in range(max(len(group.options) for group in workload.groups)):
        refusal = _option_fits(state, workload, option, types)
        if refusal is None:
            return None
    return refusal


def _option_fits(state: State, workload: Workload, option: int, types: tuple[NodeType, ...]) -> Refusal | None:
    need_milli = 0
    first_flavor = workload.groups[0].options[min(option, len(workload.groups[0].options) - 1)].flavor
    for number, group in enumerate(workload.groups):
        flavor, need = group.options[min(option, len(group.options) - 1)]
        count = workload.min_size if number == 0 else group.count
        need_milli += count * need.gpus_milli
        of_flavor = [node for node in state.nodes.values() if flavor is None or node.node.flavor == flavor]
        to_come = [t for t in types if t.max and (flavor is None or accelerator_of(state.configuration, t) == flavor)]
        if not of_flavor and not to_come:
            wanted = " or ".join(dict.fromkeys(str(o.flavor) for g in workload.groups for o in g.options))
            return Refusal(
                "impossible", f"{workload.id}: no such accelerator: {wanted}; the cluster has: {_inventory(state)}",
                "Ask for one of these, or leave resources.accelerators out.",
            )  # fmt: skip
        labelled = [n for n in of_flavor if all(n.node.label(k) == v for k, v in workload.node_labels)]
        if of_flavor and not labelled and not to_come:
            wish = ", ".join(f"{key}={value}" for key, value in workload.node_labels)
            return Refusal("impossible", f"{workload.id}: no node is labelled {wish}", "See: llmsched nodes")
        rooms = [_room_when_empty(node.node.total, need, count) for node in labelled]
        coming = [_room_when_empty(total_of(t), need, count) * t.max for t in to_come]
        if not any(rooms) and not any(coming):
            largest = max((n.node.total for n in labelled), default=Resources())
            return Refusal(
                "impossible",
                f"{workload.id}: one {'replica' if workload.kind == 'serve' else 'worker'} asks for {_amounts(need)}; "
                f"the largest node{' with ' + flavor if flavor else ''} has {_amounts(largest)}",
                "Ask for less per worker and for more workers.",
            )  # fmt: skip
        if sum(rooms) + sum(coming) < count:
            return Refusal(
                "impossible",
                f"{workload.id} needs {count} bundles of {_amounts(need)}; the whole cluster holds {sum(rooms)}",
                f"Ask for at most {sum(rooms) + sum(coming)} workers.",
            )
    if workload.topology.required and not types:
        refusal = _domain_fits(state, workload, option)
        if refusal is not None:
            return refusal
    return _quota_fits(state, workload, first_flavor, need_milli)


def _domain_fits(state: State, workload: Workload, option: int) -> Refusal | None:
    level = workload.topology.required or ""
    flavor, need = workload.groups[0].options[min(option, len(workload.groups[0].options) - 1)]
    rooms: dict[str, int] = {}
    for node in state.nodes.values():
        domain = node.node.domain(level)
        if domain is not None and (flavor is None or node.node.flavor == flavor):
            rooms[domain] = rooms.get(domain, 0) + _room_when_empty(node.node.total, need, workload.min_size)
    if not rooms:
        return Refusal("impossible", f"{workload.id}: no node has a {level}", "Leave topology.required out.")
    if max(rooms.values()) < workload.min_size:
        return Refusal(
            "impossible",
            f"{workload.id} needs {workload.min_size} bundles in one {level}; the largest holds {max(rooms.values())}",
            f"Ask for fewer workers, or topology.preferred: {level}.",
        )
    return None


def _quota_fits(state: State, workload: Workload, flavor: str | None, need_milli: int) -> Refusal | None:
    if not state.quota.enforced or not need_milli:
        return None
    flavors = [flavor] if flavor is not None else [*state.capacity.by_flavor]
    most = max((state.quota.most(workload.queue, name) for name in flavors), default=0)
    if not workload.preemptible:
        branches = [state.quota.branch(workload.queue, name) for name in flavors]
        most = min(most, max((b.quota.nominal_milli for b in branches if b), default=0))
    if need_milli <= most:
        return None
    what = f" of {flavor}" if flavor else ""
    return Refusal(
        "over_limit",
        f"{workload.id} needs {need_milli / 1000:g} GPUs{what}; "
        f'queue "{workload.queue}" may use at most {most / 1000:g}'
        + ("" if workload.preemptible else " for work that may not be preempted"),
        "Ask for less, choose another queue, or have its quota raised.",
    )


def _room_when_empty(total: Resources, need: Resources, enough: int) -> int:
    return NodeState(Node("", total), 0).room(need, enough)


def _inventory(state: State) -> str:
    counts: dict[str, int] = {}
    for node in state.nodes.values():
        if node.node.flavor:
            counts[node.node.flavor] = counts.get(node.node.flavor, 0) + node.total_gpus
        elif node.total_gpus:
            counts["GPU"] = counts.get("GPU", 0) + node.total_gpus
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no accelerator"


def _amounts(need: Resources) -> str:
    parts = []
    if need.gpus_milli:
        parts.append(f"{need.gpus_milli / 1000:g} GPUs")
    if need.cpus_milli:
        parts.append(f"{need.cpus_milli / 1000:g} CPUs")
    if need.memory_bytes:
        parts.append(f"{need.memory_bytes / 1e9:.3g} GB")
    parts += [f"{amount / 1000:g} {name}" for name, amount in need.custom]
    return ", ".join(parts) or "nothing"


def _scale(state: State, command: ScaleTo) -> Fact | Refusal:
    record = state.workloads.get(command.workload)
    if record is None:
        return _unknown(state, command.workload)
    if record.outcome or record.cancelled:
        return Refusal("ended", f"{command.workload} has {_ended(record.outcome or 'cancelled')}")
    spec = record.workload
    low, high, what = (
        (spec.min_replicas, spec.max_replicas, "replicas")
        if spec.kind == "serve"
        else (spec.min_size, spec.max_size, "workers")
    )
    if not low <= command.size <= high:
        return Refusal(
            "over_limit", f"{command.workload} has {what} {low}..{high}; {command.size} is outside",
            f"Change {what}: in the spec, or choose {low}..{high}.",
        )  # fmt: skip
    sizes = allowed_sizes(spec)
    if spec.kind != "serve" and command.size not in sizes:
        return Refusal("over_limit", f"{command.workload} cannot have {command.size} {what}", f"Possible: {sizes}")
    return Scaled(command.at, command.workload, command.size)


def _configure(state: State, command: Configure) -> Fact | Refusal:
    """Configurations are checked by spec/cluster.py; what depends on the state is checked here."""
    made = _made(state, command.at)
    in_file = [one.name for one in command.configuration.reservations]
    for one in made:
        if one.name in in_file:
            return Refusal(
                "conflict", f'reservation "{one.name}" was made by {one.by} with llmsched reserve',
                f"Choose another name in the file, or cancel that one: llmsched reserve {one.name} --cancel",
            )  # fmt: skip
    reservations = (*command.configuration.reservations, *made)
    return _put_in_force(state, command.at, replace(command.configuration, reservations=reservations))


def _made(state: State, at: float) -> tuple[Reservation, ...]:
    """Reservations made by command whose window is not over."""
    return tuple(one for one in state.configuration.reservations if one.by and window(one, at) is not None)


def _reserve(state: State, command: Reserve) -> Fact | Refusal:
    new, configuration = command.reservation, state.configuration
    from_file = tuple(one for one in configuration.reservations if not one.by)
    made = _made(state, command.at)
    if any(one.name == new.name for one in (*from_file, *made)):
        return Refusal(
            "conflict", f'there is a reservation "{new.name}" already', "Choose another name, or cancel that one first."
        )
    if window(new, command.at) is None:
        return Refusal("impossible", f'reservation "{new.name}" would be over before now', "Choose a later start.")
    queues = [queue.name for queue in configuration.queues]
    if new.queue is not None and new.queue not in queues:
        return Refusal("unknown_queue", f'no queue is called "{new.queue}"', f"Known queues: {', '.join(queues)}.")
    there = _gpus_milli(state, new.flavor)
    if new.gpus_milli > there:
        what = new.flavor or "GPUs"
        return Refusal(
            "impossible", f'reservation "{new.name}" asks for {new.gpus_milli / MILLI:g} {what}; there are at most '
            f"{there / MILLI:g}", "llmsched nodes shows what there is.",
        )  # fmt: skip
    reservations = (*from_file, *made, new)
    version = configuration.version + 1
    return _put_in_force(state, command.at, replace(configuration, version=version, reservations=reservations))


def _unreserve(state: State, command: Unreserve) -> Fact | Refusal:
    configuration = state.configuration
    found = next((one for one in configuration.reservations if one.name == command.name), None)
    if found is None:
        return Refusal(
            "unknown_reservation", f'no reservation is called "{command.name}"', "See: llmsched reservations"
        )
    if not found.by:
        return Refusal(
            "conflict", f'reservation "{command.name}" stands in the cluster file',
            "Take it out there: llmsched config FILE",
        )  # fmt: skip
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
        return Refusal("unchanged", "the configuration is as it was")
    parents = {cohort.name: cohort.parent for cohort in configuration.cohorts}
    for name in parents:
        seen: list[str] = []
        above: str | None = name
        while above is not None and above not in seen:
            seen.append(above)
            above = parents.get(above)
        if above is not None:
            return Refusal(
                "cycle", f"cohorts form a circle: {' -> '.join([*seen, above])}", "Give one of them parent: null."
            )
    overlapping = _overlaps(state, configuration)
    if overlapping is not None:
        return overlapping
    queues = [queue.name for queue in configuration.queues]
    for record in state.workloads.values():
        if not record.outcome and record.workload.queue not in queues:
            return Refusal(
                "conflict",
                f'queue "{record.workload.queue}" is missing and {record.workload.id} is still in it',
                "Keep the queue until its work has ended, or cancel the work first.",
            )
    return Configured(at, configuration)


def _overlaps(state: State, configuration: Configuration) -> Refusal | None:
    """A new reservation must not need nodes from work that can neither end before it nor be asked to leave."""
    new = tuple(one for one in configuration.reservations if one not in state.configuration.reservations)
    if not new:
        return None
    with Trial(state) as trial:
        for opens, _, nodes, _, reservation in Windows(trial, new).rows:
            for name in state.holding:
                gang = state.gangs[name]
                if is_immovable(reservation, gang, opens) and nodes & nodes_of(trial, gang):
                    on = next(p.node for p in gang.held if nodes >> state.nodes[p.node].slot & 1)
                    return Refusal(
                        "overlap",
                        f'reservation "{reservation.name}" overlaps {gang.workload_id}, which runs on '
                        f"{state.nodes[on].node.name or on}, may not be preempted and is not known to end before",
                        "Choose other nodes or a later start, or cancel that work first.",
                    )
    return None
