"""Whether a workload could start if everybody else left: asked when it is submitted, and before anything is kept for it
while it waits. Nodes and quota as they are now; a node that is still to come may change the answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from llmsched.core.amounts import flavor_of, options_of
from llmsched.core.capacity import room_when_empty
from llmsched.core.configuration import NodeType
from llmsched.core.message import FLAVOR, LABEL, LEVEL, QUEUE, Arg, Message, Quote, Ref, say
from llmsched.core.node_types import node_of, resources_of
from llmsched.core.resources import MILLI, Resources
from llmsched.core.suitable import Wish, wish_of
from llmsched.core.workload import Option, Workload

if TYPE_CHECKING:
    from llmsched.core.records import GangState
    from llmsched.core.shapes import Shape
    from llmsched.core.state import State


class Never(NamedTuple):
    """Why not. The code is "impossible" or "over_limit"."""

    code: str
    message: Message


def why_never(state: State, spec: Workload) -> Never | None:
    """Why not even the empty cluster could hold it; None when it could, or there is no node yet."""
    if not state.nodes:
        return None
    refusal: Never | None = None
    for option in options_of(spec):
        refusal = why_never_with(state, spec, option)
        if refusal is None:
            return None
    return refusal


def why_never_with(state: State, spec: Workload, option: int) -> Never | None:
    """The same with one of its options."""
    types = state.configuration.node_types
    who, need_milli = Quote(spec.id), 0
    of_gpus = flavor_of(spec, option)
    for number, group in enumerate(spec.groups):
        flavor, need, _ = group.option(option)
        count = spec.min_size if number == 0 else group.count
        need_milli += count * need.gpus_milli
        wish = wish_of(spec, option, number)
        suited, to_come = _that_suit(state, wish)
        if not any(_that_suit(state, Wish(flavor))):
            flavors = [*dict.fromkeys(o.flavor for g in spec.groups for o in g.options if o.flavor)]
            wanted = tuple(Ref(FLAVOR, name) for name in flavors)
            there = _inventory(state)
            message = say("impossible.no_accelerator", who=who, wanted=wanted)
            if there:
                message = say("impossible.accelerator", who=who, wanted=wanted, there=there)
            return Never("impossible", message)
        if not suited and not to_come:
            labels = tuple(Ref(LABEL, f"{key}={value}") for key, value in spec.node_labels)
            if not any(_that_suit(state, wish._replace(use_spot=None))):
                return Never("impossible", say("impossible.labels", who=who, wish=labels))
            return Never("impossible", say("impossible.no_spot" if spec.use_spot else "impossible.only_spot", who=who))
        rooms = [room_when_empty(total, need, count) * nodes for total, nodes in suited.items()]
        coming = [room_when_empty(resources_of(t), need, count) * t.max for t in to_come]
        if not any(rooms) and not any(coming):
            largest = max(suited, default=Resources())
            sentence = "impossible.one_replica" if spec.kind == "serve" else "impossible.one_worker"
            message = say(sentence, who=who, need=need, largest=largest)
            if flavor:
                message = say(f"{sentence}_of", who=who, need=need, flavor=Ref(FLAVOR, flavor), largest=largest)
            return Never("impossible", message)
        if sum(rooms) + sum(coming) < count:
            most = sum(rooms) + sum(coming)
            message = say("impossible.in_all", who=who, count=count, need=need, there=sum(rooms), most=most)
            return Never("impossible", message)
    if len(spec.groups) > 1 and not types and not _fit_together(state, spec, option):
        return Never("impossible", say("impossible.together", who=who))
    if spec.topology.required and not types:
        refusal = _domain_fits(state, spec, option)
        if refusal is not None:
            return refusal
    return _quota_fits(state, spec, of_gpus, need_milli) or _rows_fit(state, spec, option)


def able_options(state: State, shape: Shape) -> tuple[int, ...]:
    """The options with which one of a class could start if everybody else left."""
    stamp = (state.capacity.version, state.quota)
    if shape.possible is None or shape.possible[:2] != stamp:
        options = options_of(shape.sample)
        able = tuple(option for option in options if why_never_with(state, shape.sample, option) is None)
        shape.possible = (*stamp, able)
    return shape.possible[2]


def option_of(state: State, gang: GangState) -> int:
    """The option by which a gang is counted: of what it holds or is promised; while it waits, the first it would try of
    those with which it could start."""
    groups = gang.spec.groups
    if len(groups) == 1 and len(groups[0].options) == 1:
        return 0
    if gang.held:
        return gang.option
    count = len(options_of(gang.spec))
    if count == 1:
        return 0
    if gang.nomination is not None:
        return gang.nomination.placement[0].option
    able = able_options(state, gang.shape) if gang.shape is not None else ()
    tried = state.history.fastest_first(gang.spec, gang.spec.min_size, count)
    return next((option for option in tried if option in able), 0)


def _that_suit(state: State, wish: Wish) -> tuple[dict[Resources, int], list[NodeType]]:
    """(what nodes that are there have in all -> how many, types of which nodes may come)."""
    configuration = state.configuration
    to_come = [t for t in configuration.node_types if t.max and wish.suits(node_of(configuration, t))]
    return state.capacity.kinds_suiting(wish), to_come


def hardest_first(spec: Workload, option: int) -> list[int]:
    """Its groups, those first that ask for most on one node."""
    return sorted(
        range(len(spec.groups)), key=lambda number: spec.groups[number].option(option).resources, reverse=True
    )


def _fit_together(state: State, spec: Workload, option: int, among: int = -1) -> bool:
    """Whether the groups of a gang fit beside one another on nodes of a mask that are empty: one after the other, each
    on one node if there is one, the fullest of those, else on the emptiest ones: the last that placement tries."""
    capacity = state.capacity
    masks = [capacity.suiting(wish_of(spec, option, number)) for number in range(len(spec.groups))]
    rooms: Counter[tuple[Resources, tuple[bool, ...]]] = Counter()  # (what is left, whom it suits) -> nodes
    for node in capacity.nodes(capacity.all & among):
        suits = tuple(bool(mask >> node.slot & 1) for mask in masks)
        rooms[node.node.total, suits] += 1
    for number in hardest_first(spec, option):
        group = spec.groups[number]
        left, need = spec.min_size if number == 0 else group.count, group.option(option).resources
        while left:
            able = {room: room_when_empty(room[0], need, left) for room in rooms if room[1][number]}
            if not any(able.values()):
                return False
            whole = [room for room, count in able.items() if count == left]
            room = min(whole) if whole else max(able, key=lambda each: (able[each], each))
            rooms[room] -= 1
            if not rooms[room]:
                del rooms[room]
            rooms[room[0].minus(need.times(able[room])), room[1]] += 1
            left -= able[room]
    return True


def _domain_fits(state: State, spec: Workload, option: int) -> Never | None:
    level = spec.topology.required or ""
    rooms: dict[str, int] = {}  # for bundles of all groups, each group by itself
    for number, group in enumerate(spec.groups):
        need, count = group.option(option).resources, spec.min_size if number == 0 else group.count
        mine: dict[str, int] = {}
        for node in state.capacity.nodes(state.capacity.suiting(wish_of(spec, option, number))):
            domain = node.node.domain(level)
            if domain is not None:
                mine[domain] = min(count, mine.get(domain, 0) + room_when_empty(node.node.total, need, count))
        rooms = {name: rooms.get(name, 0) + room for name, room in mine.items()} if mine or not number else {}
    wanted = spec.min_size + sum(group.count for group in spec.groups[1:])
    who, named = Quote(spec.id), Ref(LEVEL, level)
    if not rooms:
        return Never("impossible", say("impossible.no_level", who=who, level=named))
    there = max(rooms.values())
    if there < wanted:
        message = say("impossible.level", who=who, count=wanted, level=named, there=there)
        return Never("impossible", message)
    domains = state.capacity.domains(level).values()
    if len(spec.groups) > 1 and not any(_fit_together(state, spec, option, members) for members in domains):
        return Never("impossible", say("impossible.together", who=who))
    return None


def _quota_fits(state: State, spec: Workload, flavor: str | None, need_milli: int) -> Never | None:
    if not state.quota.enforced or not need_milli:
        return None
    flavors = [flavor] if flavor is not None else [*state.capacity.by_flavor]
    most = max((state.quota.most(spec.queue, name) for name in flavors), default=0)
    if not spec.preemptible:
        branches = [state.quota.branch(spec.queue, name) for name in flavors]
        most = min(most, max((b.quota.nominal_milli for b in branches if b), default=0))
    if need_milli <= most:
        return None
    return _over_limit(spec, flavor, need_milli, most)


def _rows_fit(state: State, spec: Workload, option: int) -> Never | None:
    """Of a gang whose groups ask for GPUs of several flavors: quota counts each by its own."""
    if not state.quota.enforced or len(spec.groups) == 1:
        return None
    need: dict[str, tuple[str | None, int]] = {}
    for number, group in enumerate(spec.groups):
        flavor, amount, _ = group.option(option)
        if flavor is not None and amount.gpus_milli:
            row = state.quota.row_of(spec.queue, flavor)
            count = spec.min_size if number == 0 else group.count
            need[row] = (flavor, need.get(row, (flavor, 0))[1] + count * amount.gpus_milli)
    for flavor, milli in need.values():
        most = state.quota.most(spec.queue, flavor)
        if milli > most:
            return _over_limit(spec, flavor, milli, most)
    return None


def _over_limit(spec: Workload, flavor: str | None, need_milli: int, most: int) -> Never:
    message = say(
        "over_limit.quota" if spec.preemptible else "over_limit.fixed",
        who=Quote(spec.id), need=need_milli, flavor=Ref(FLAVOR, flavor or ""), queue=Ref(QUEUE, spec.queue), most=most,
    )  # fmt: skip
    return Never("over_limit", message)


def _inventory(state: State) -> tuple[Arg, ...]:
    counts: dict[str, int] = {}
    for node in state.nodes.values():
        if node.node.flavor:
            counts[node.node.flavor] = counts.get(node.node.flavor, 0) + node.total_gpus
        elif node.total_gpus:
            counts["GPU"] = counts.get("GPU", 0) + node.total_gpus
    return tuple(Option(name, Resources(count * MILLI)) for name, count in sorted(counts.items()))
