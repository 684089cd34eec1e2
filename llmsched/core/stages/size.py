"""What each elastic gang, waiting or running, should hold: the elasticity policy's share, kept inside the rules."""

from __future__ import annotations

from llmsched.core.fair import GUARANTEE, guarantee_then_weight, nominal_milli
from llmsched.core.plan import Plan
from llmsched.core.policy import Elasticity, View
from llmsched.core.records import GangState, allowed_sizes, gpus_of
from llmsched.core.resources import MILLI
from llmsched.core.stages.place import need_milli
from llmsched.core.trial import Trial

GANGS_SHARED = 4096  # elastic gangs one pass asks the policy about


def run(trial: Trial, plan: Plan, policy: Elasticity, view: View) -> None:
    state = trial.state
    waiting = [
        state.gangs[name]
        for shape in state.waiting.live.values()
        if shape.sample.is_elastic()
        for _, name in shape.entries
    ]
    running = [gang for name in state.elastic if (gang := state.gangs[name]).is_active() and name not in trial.leaving]
    if not (waiting or running) or not state.configuration.scheduling.elastic:
        return
    gangs = sorted(running + waiting, key=lambda g: (g.submitted_at, g.workload_id, g.index))[:GANGS_SHARED]
    by_queue: dict[str, list[GangState]] = {}
    for gang in gangs:
        by_queue.setdefault(gang.spec.queue if state.quota.enforced else "", []).append(gang)
    held = sum(gang.gpus_milli() for gang in running)
    held += sum(  # promised to elastic gangs: theirs to size as well
        gpus_of(gang.spec, gang.nomination.placement)
        for name in state.nominated
        if (gang := state.gangs[name]).spec.is_elastic() and gang.nomination is not None
    )
    capacity = max(0, state.capacity.free_gpus(state.capacity.open) * MILLI + held - _rigid_demand(trial))
    by_rank = state.configuration.scheduling.preemption.within_queue == "by_rank"  # 0 is a size then: nothing for now
    for queue, amount in _entitled(trial, by_queue, capacity).items():
        members = by_queue[queue]
        for name, size in policy.share(members, amount // MILLI, view).items():
            gang = state.gangs[name]
            plan.sizes[name] = 0 if by_rank and not size and gang.wanted_size is None else nearest(gang, size)
        _cut(plan, members, amount)
    if policy.period_s:
        plan.wake(plan.at + policy.period_s)


def _cut(plan: Plan, members: list[GangState], amount: int) -> None:
    """Whatever the policy said, sizes together stay within the amount (or at their minimum): the newest give first."""
    bundle = {gang.id: gang.spec.groups[0].options[0].resources.gpus_milli for gang in members}
    over = sum(plan.sizes.get(gang.id, 0) * bundle[gang.id] for gang in members) - amount
    for gang in reversed(members):
        size = plan.sizes.get(gang.id, 0)
        if over <= 0:
            return
        smaller = [s for s in reversed(allowed_sizes(gang.spec)) if s < size]
        for to in smaller if gang.wanted_size is None else ():
            over -= (plan.sizes[gang.id] - to) * bundle[gang.id]
            plan.sizes[gang.id] = to
            if over <= 0:
                return


def _rigid_demand(trial: Trial) -> int:
    """What waiting gangs of fixed size ask for: elastic ones do not grow into it."""
    total = 0
    for shape in trial.state.waiting.live.values():
        if not shape.sample.is_elastic():
            total += need_milli(shape.sample, shape.sample.min_size, 0) * len(shape.entries)
    return total


def _entitled(trial: Trial, by_queue: dict[str, list[GangState]], capacity: int) -> dict[str, int]:
    """Thousandths of GPUs for the elastic gangs of each queue: its guarantee first, the rest evenly, never above what
    it may borrow."""
    if len(by_queue) == 1 and "" in by_queue:
        return {"": capacity}
    state = trial.state
    queues = {queue.name: queue for queue in state.configuration.queues}
    if state.configuration.scheduling.fair_share == GUARANTEE:
        promised = {name: int(value) for name, value in guarantee_then_weight(state).items()}
    else:
        promised = {name: nominal_milli(queues[name]) if name in queues else 0 for name in by_queue}
    demand: dict[str, int] = {}
    share: dict[str, int] = {}
    most: dict[str, int] = {}
    for name, members in by_queue.items():
        demand[name] = sum(need_milli(gang.spec, gang.spec.max_size, 0) for gang in members)
        elastic_now = sum(gang.gpus_milli() for gang in members if gang.is_active())
        use = state.use.get(name)
        rigid = (use.gpus_milli if use else 0) - elastic_now
        flavor = members[0].spec.groups[0].options[0].flavor
        most[name] = min(demand[name], elastic_now + max(0, state.quota.available(name, flavor)))
        share[name] = min(demand[name], max(0, promised.get(name, 0) - rigid))
    left = capacity - sum(share.values())
    while left < 0:  # rigid work waits or holds a part of it: the largest share gives first
        largest = max(share, key=lambda name: (share[name], name))
        given = min(share[largest], max(MILLI, -left // (2 * len(share))))
        if not given:
            break
        share[largest] -= given
        left += given
    if state.configuration.scheduling.fair_share == GUARANTEE:
        return share
    while left >= MILLI:
        asking = [name for name in by_queue if share[name] + MILLI <= most[name]]
        if not asking:
            break
        for name in asking:
            if left >= MILLI:
                share[name] += MILLI
                left -= MILLI
    return share


def nearest(gang: GangState, size: int) -> int:
    """The largest size the gang may have that is not above `size`; a user's wish wins."""
    if gang.wanted_size is not None:
        size = gang.wanted_size
    sizes = allowed_sizes(gang.spec)
    return max((allowed for allowed in sizes if allowed <= size), default=sizes[0])


def candidates(plan: Plan, gang: GangState) -> list[int]:
    """Sizes to try for a waiting gang, from what it should hold down to its minimum."""
    spec = gang.spec
    if not spec.is_elastic():
        return [spec.min_size]
    target = nearest(gang, plan.sizes.get(gang.id, spec.max_size))
    return [size for size in reversed(allowed_sizes(spec)) if size <= target] or [spec.min_size]
