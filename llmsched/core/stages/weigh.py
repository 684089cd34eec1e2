"""How many of the replicas that an endpoint asks for it is to have, where elastic work of its queue wants the GPUs too.

Who comes first is said by priorities, and what a queue owns by its quota: so only elastic gangs that run in the
endpoint's own queue, at its own priority, are weighed against it, and only where both cannot be had. The policy says
what is worth most (`Elasticity.replicas`); here the bounds of the endpoint are kept, and what it does not get is told.
"""

from __future__ import annotations

from typing import NamedTuple

from llmsched.core import scaling
from llmsched.core.amounts import bundle_milli, flavors_of
from llmsched.core.message import Message, say, workload
from llmsched.core.records import GangState, WorkloadState, gpus_of
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.size import free_at_last


class Weighed(NamedTuple):
    """So many replicas; `why` there are no more, where more were asked for."""

    replicas: int
    why: Message | None = None


def run(this: Pass, record: WorkloadState, asked: int, memory: str) -> Weighed:
    """What comes of `asked` replicas. It keeps those that it has while its load asks for them: only more are weighed,
    or those would be asked for and weighed again. With a `memory` its autoscaler may ask for more yet."""
    if asked <= record.wanted_replicas:
        waits = asked == record.wanted_replicas and memory
        return Weighed(asked, record.held_back if waits else None)
    policy, spec = this.policies.elasticity, record.workload
    low = max(scaling.bounds(spec, this.state.now)[0], record.wanted_replicas)
    if spec.slo is None or asked <= low or not policy.weighs() or not (gangs := _others(this, record)):
        return Weighed(asked)
    within = scaling.within(record, scaling.load_ahead(record, this.state.now))
    if within is None:
        return Weighed(asked)
    capacity = _capacity(this, record, gangs)
    replicas, other = policy.replicas(record, low, asked, gangs, capacity, this.view)
    if replicas >= asked or not other:
        return Weighed(asked)
    who = workload(this.state.gangs[other].workload_id)
    why = say(
        "scale.weighed",
        replicas=replicas,
        asked=asked,
        who=who,
        within=100 * within(replicas),
        full=100 * within(asked),
    )
    return Weighed(replicas, why)


def _others(this: Pass, record: WorkloadState) -> list[GangState]:
    """Elastic gangs that could use the same GPUs, out of the same quota, and come neither first nor last."""
    state, spec = this.state, record.workload
    if not state.configuration.scheduling.elastic:
        return []
    mine = {*flavors_of(spec)}
    gangs = (state.gangs[name] for name in state.elastic if name not in this.trial.leaving)
    return [
        gang
        for gang in gangs
        if gang.is_active()
        and gang.spec.queue == spec.queue
        and gang.spec.priority == spec.priority
        and gang.wanted_size is None
        and _meet(mine, {*flavors_of(gang.spec)})
    ]


def _meet(some: set[str | None], others: set[str | None]) -> bool:
    """None: any flavor."""
    return None in some or None in others or not some.isdisjoint(others)


def _capacity(this: Pass, record: WorkloadState, gangs: list[GangState]) -> int:
    """GPUs that they and the endpoint may have in all: what they hold, and what is free for them."""
    state, queue = this.state, record.workload.queue
    there = free_at_last(this.trial)
    named = {flavor for spec in (record.workload, *(gang.spec for gang in gangs)) for flavor in flavors_of(spec)}
    flavors = [*there] if None in named else [flavor for flavor in there if flavor in named]
    free = sum(there[flavor] for flavor in flavors)
    if state.quota.enforced:
        rows = {state.quota.row_of(queue, flavor): flavor for flavor in flavors}
        free = min(free, sum(max(0, state.quota.available(queue, flavor)) for flavor in rows.values()))
    held = sum(len(this.trial.standing(gang)) * bundle_milli(gang.spec, gang.option) for gang in gangs)
    for gang in (state.gangs[name] for name in record.gangs if name not in this.trial.leaving):
        if gang.is_active():
            held += gang.gpus_milli()
        elif gang.nomination is not None:
            held += gpus_of(gang.spec, gang.nomination.placement)
    return (free + held) // MILLI
