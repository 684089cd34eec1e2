"""Leftovers: running elastic gangs move towards the size elasticity wants for them, last, when nobody waits for it.
By rank they grow before those of a lower priority start, whose part is in their shares.

Bigger where there is room; where there is none, whoever holds more than its share gives back first. A gang changes
size at most once a quantum. A pass changes a portion of them; the next one, at once, goes on with those left.
"""

from __future__ import annotations

from dataclasses import replace

from llmsched.core.amounts import bundle_milli
from llmsched.core.message import Message, say
from llmsched.core.records import GangState, allowed_sizes, size_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.lesser import keeps
from llmsched.core.stages.shrink import resize
from llmsched.core.status import Status
from llmsched.core.workload import Placement


class HigherFirst:
    """By rank: each priority before who waits with a lower one."""

    def __init__(self, this: Pass, calendar: Calendar) -> None:
        self._this, self._calendar, sizes = this, calendar, this.plan.sizes
        elastic = (this.state.gangs[name] for name in this.state.elastic)
        grows = (gang for gang in elastic if gang.is_active() and sizes.get(gang.id, 0) > gang.size)
        by_priority = this.policies.ordering.by_priority
        self._priorities = sorted({gang.spec.priority for gang in grows}) if by_priority else []

    def start(self, waiting: GangState) -> None:
        while self._priorities and self._priorities[-1] > waiting.spec.priority:
            priority = self._priorities.pop()
            for name in self._this.state.elastic:
                gang = self._this.state.gangs[name]
                if gang.spec.priority == priority and (target := _target(self._this, gang)) > gang.size:
                    _grow(self._this, gang, target, self._calendar)


def _target(this: Pass, gang: GangState) -> int:
    """The size that it is to have and may change to now; what it has, if there is no other."""
    trial, quantum = this.trial, this.state.configuration.scheduling.quantum_s
    if gang.status is not Status.RUNNING or gang.id in trial.leaving or gang.id in trial.shrinking or gang.lost_members:
        return gang.size
    target = gang.wanted_size if gang.wanted_size is not None else this.plan.sizes.get(gang.id, gang.size)
    if target in (gang.size, 0):  # 0: by rank it should hold nothing, which is not a size to resize to
        return gang.size
    return target if gang.wanted_size is not None or this.has_held(gang, quantum) else gang.size


def run(this: Pass, calendar: Calendar) -> None:
    state, plan = this.state, this.plan
    if not state.elastic or not state.configuration.scheduling.elastic:
        return
    since = len(plan.decisions)
    short, lacking = 0, 0  # thousandths of GPUs that gangs lack and found no room for, and where they could be
    asked: list[tuple[GangState, int]] = []
    larger: list[tuple[GangState, int]] = []
    for name in state.elastic:
        gang = state.gangs[name]
        target = _target(this, gang)
        if target == gang.size:
            continue
        if plan.cut(since):
            return  # who is short of what is known only when all have been asked
        if target < gang.size:
            (larger if gang.wanted_size is None else asked).append((gang, target))
            continue
        missing = _grow(this, gang, target, calendar)
        if missing:
            short, lacking = short + missing, lacking | _where(this, gang)[1] & ~calendar.closed(gang, target)

    def becomes(gang: GangState, size: int, why: Message) -> int:
        """It lets go of what others could grow on; returns the thousandths of GPUs of it that they could."""
        held, reserved = gang.held, calendar.closed(gang, size)
        on_lacking, on_reserved = _of(this, held, lacking), _of(this, held, reserved)
        resize(this, gang, keeps(gang, size, held, on_lacking, on_reserved), why)
        given = min(gang.size - size, sum(placed.node in on_lacking for placed in held))
        return given * bundle_milli(gang.spec, gang.option)

    for gang, target in asked:
        if plan.cut(since):
            return
        short -= becomes(gang, target, say("resize.asked", size=target))
    for gang, target in larger:
        if short <= 0 or plan.cut(since):
            break
        bundle = bundle_milli(gang.spec, gang.option)
        most = gang.size - -(-short // bundle)  # no more than others lack
        to = max((size for size in allowed_sizes(gang.spec) if target <= size <= most), default=target)
        becomes(gang, to, say("resize.beyond_share"))
        short -= (gang.size - to) * bundle


def _of(this: Pass, held: Placement, mask: int) -> dict[str, None]:
    """Which of its nodes are of the mask."""
    nodes = this.state.nodes
    return {placed.node: None for placed in held if mask >> nodes[placed.node].slot & 1}


def _grow(this: Pass, gang: GangState, target: int, calendar: Calendar) -> int:
    """Take what fits towards `target`; returns the thousandths of GPUs that are still missing."""
    bundle = bundle_milli(gang.spec, gang.option)
    for size in [s for s in reversed(allowed_sizes(gang.spec)) if gang.size < s <= target]:
        extra = more(this, gang, size - gang.size, ~calendar.closed(gang, size))
        if extra is not None and calendar.allows(gang, extra):
            placement = _joined(gang, extra)
            this.trial.hold(gang, (*gang.held, *extra))
            resize(this, gang, placement, say("resize.grows", before=gang.size, size=size))
            return (target - size) * bundle
    return (target - gang.size) * bundle


def more(this: Pass, gang: GangState, count: int, only: int) -> Placement | None:
    """Places for `count` more bundles of the elastic group, in the same flavor, domain and quota."""
    spec = gang.spec
    placement = gang.placement or ()
    option = placement[0].option if placement else 0
    group = spec.groups[0]
    chosen = group.option(option)
    flavor, mask = _where(this, gang)
    only_group = replace(
        spec, groups=(replace(group, options=(chosen._replace(flavor=flavor),)),), min_size=count, max_size=count
    )
    probe = GangState(gang.id, gang.workload_id, gang.index, only_group, gang.submitted_at)
    found = place.find(this, probe, count, only & mask, explain=False)
    if isinstance(found, place.Refused):
        return None
    return tuple(placed._replace(option=option) for placed in found)


def _where(this: Pass, gang: GangState) -> tuple[str | None, int]:
    """The flavor that it keeps to when it grows, and the mask of the nodes of that flavor and of its domain."""
    spec, placement, state = gang.spec, gang.placement or (), this.state
    group, mask = spec.groups[0], -1
    chosen = group.option(placement[0].option if placement else 0)
    flavor = chosen.flavor
    if flavor is None and chosen.resources.gpus_milli and placement and placement[0].node in state.nodes:
        flavor = state.nodes[placement[0].node].node.flavor
    if flavor is not None:
        mask &= state.capacity.by_flavor.get(flavor, 0)
    for level in spec.levels(group) if placement else ():
        here = state.nodes[placement[0].node].node.domain(level)
        mask &= state.capacity.domains(level).get(here or "", 0)
    return flavor, mask


def _joined(gang: GangState, extra: Placement) -> Placement:
    """Elastic bundles keep their ranks and new ones come after them; other groups follow."""
    placement = gang.placement or ()
    first = size_of(gang.spec, placement)
    return (*placement[:first], *extra, *placement[first:])
