"""What each elastic gang, waiting or running, should hold: the elasticity policy's share, kept inside the rules.

Priorities come before the policy: those of a higher one share first, and leave the rest, but for what others hold at
least. Waiting gangs of fixed size have their part kept free, as far as they could start with it; a waiting gang that
could not start whatever elastic ones gave shares in nothing. Those whose flavors have nothing in common share apart.
"""

from __future__ import annotations

from math import inf

from llmsched.core.amounts import bundle_milli, need_milli
from llmsched.core.fair import GUARANTEE, guarantee_then_weight, nominal_milli
from llmsched.core.lane import is_owed
from llmsched.core.plan import Plan
from llmsched.core.records import GangState, allowed_sizes, amount_of, gpus_of, speed
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.stages.place import Refused, find
from llmsched.core.stages.shrink import without
from llmsched.core.state import State
from llmsched.core.trial import Trial

GANGS_SHARED = 4096  # elastic gangs one pass asks the policy about
STARTS_TRIED = 128  # waiting gangs of fixed size one pass looks for room for; the others are taken to find some


def run(this: Pass) -> None:
    trial, state, plan, policy = this.trial, this.state, this.plan, this.policies.elasticity
    shapes = [*state.waiting.elastic.values()]
    running = [gang for name in state.elastic if (gang := state.gangs[name]).is_active() and name not in trial.leaving]
    if not (shapes or running) or not state.configuration.scheduling.elastic:
        return
    by_rank = state.configuration.scheduling.preemption.within_queue == "by_rank"  # 0 is a size then: nothing for now
    demand = _Demand(this, running, by_rank)
    waiting = [state.gangs[name] for shape in shapes if demand.could_start(shape) for _, name in shape.entries]
    owed = _owed(this, running) if by_rank else {}
    plan.sizes.update((name, nearest(gang, gang.spec.min_size)) for name, gang in owed.items())
    gangs = sorted(running + waiting, key=lambda g: (g.submitted_at, g.workload_id, g.index))[:GANGS_SHARED]
    there = free_at_last(trial)
    for flavors, sharing in _pools(state, gangs):
        free = sum(there.get(flavor, 0) for flavor in flavors)
        held = sum(gang.gpus_milli() for gang in sharing)
        held += sum(  # promised to elastic gangs: theirs to size as well
            gpus_of(gang.spec, gang.nomination.placement)
            for gang in sharing
            if not gang.is_active() and gang.nomination is not None
        )
        capacity = max(0, free * MILLI + held - demand.rigid_of(flavors))
        _share_out(this, sharing, capacity, by_rank, demand, flavors)
        resting = [gang for gang in sharing if gang.id in owed and not plan.sizes.get(gang.id)]
        if resting:
            others = [gang for gang in sharing if gang not in resting]
            _share_out(this, others, max(0, capacity - sum(map(_least_milli, resting))), by_rank, demand, flavors)
            plan.sizes.update((gang.id, nearest(gang, gang.spec.min_size)) for gang in resting)
    if policy.period_s:
        plan.by_clock = True
        plan.wake(plan.at + policy.period_s)


def free_at_last(trial: Trial) -> dict[str | None, int]:
    """GPUs of each flavor that are free and promised to nobody when all who are on the way out have gone."""
    capacity, mark = trial.state.capacity, trial.mark()
    trial.let_them_go()
    found = {flavor: capacity.free_gpus(mask & capacity.open) for flavor, mask in capacity.by_flavor.items()}
    trial.rollback(mark)
    return found


def _share_out(
    this: Pass, sharing: list[GangState], capacity: int, by_rank: bool, demand: _Demand, flavors: list[str | None]
) -> None:
    """By rank a tier also has what those of fixed size and lower priority ask for: they come after it. Nobody of it has
    what others of fixed size would start on."""
    state, plan, policy = this.state, this.plan, this.policies.elasticity
    by_queue: dict[str, list[GangState]] = {}
    for gang in sharing:
        by_queue.setdefault(gang.spec.queue if state.quota.enforced else "", []).append(gang)
    for queue, amount in _entitled(this.trial, by_queue, capacity).items():
        members = by_queue[queue]
        left = amount
        for tier, lower in _tiers(members):
            kept = 0 if by_rank else sum(_least_milli(gang) for gang in lower if gang.is_active())
            theirs = demand.rigid_of(flavors, tier[0].spec.priority) if by_rank else 0
            for name, size in policy.share(tier, max(0, left + theirs - kept) // MILLI, this.view).items():
                gang = state.gangs[name]
                plan.sizes[name] = 0 if by_rank and not size and gang.wanted_size is None else nearest(gang, size)
            if by_rank:
                is_behind = left < amount or demand.rigid_of(flavors) > theirs  # others come before it
                _cut(plan, tier, max(0, left + theirs), may_rest=is_behind)
            left -= sum(plan.sizes.get(gang.id, 0) * bundle_milli(gang.spec) for gang in tier)
        if not by_rank:
            _cut(plan, members, amount)
    if by_rank and state.quota.enforced:
        _fill(plan, sharing, capacity)


def _owed(this: Pass, running: list[GangState]) -> dict[str, GangState]:
    """By rank: those that have waited long, and until they have had their part. They hold their least in any case."""
    waits = (this.state.gangs[name] for name in this.owed)
    found = {gang.id: gang for gang in waits if gang.spec.is_elastic() and gang.nomination is None}
    return found | {gang.id: gang for gang in running if is_owed(gang, this.state.now)}


def _pools(state: State, gangs: list[GangState]) -> list[tuple[list[str | None], list[GangState]]]:
    """Gangs by what they compete for: flavors that one gang accepts are one pool. In the order of the first gang."""
    every = [*state.capacity.by_flavor]
    if len(every) <= 1:
        return [(every, gangs)]
    pools: list[tuple[dict[str | None, None], list[GangState]]] = []
    for gang in gangs:
        flavors = dict.fromkeys(option.flavor for option in gang.spec.groups[0].options)
        if None in flavors:
            flavors = dict.fromkeys(every)
        mine: tuple[dict[str | None, None], list[GangState]] = (flavors, [])
        rest = []
        for pool in pools:
            if pool[0].keys().isdisjoint(flavors):
                rest.append(pool)
            else:
                mine = ({**pool[0], **mine[0]}, [*pool[1], *mine[1]])
        mine[1].append(gang)
        pools = [*rest, mine]
    order = {gang.id: number for number, gang in enumerate(gangs)}
    return [([*flavors], sorted(each, key=lambda gang: order[gang.id])) for flavors, each in pools]


def _cut(plan: Plan, members: list[GangState], amount: int, may_rest: bool = False) -> None:
    """Whatever the policy said, sizes together stay within the amount, or at their minimum: the lowest priority gives
    first, then the newest. Where they `may_rest` that is not enough: then those rest that wait, and last who runs."""
    bundle = {gang.id: bundle_milli(gang.spec) for gang in members}
    over = sum(plan.sizes.get(gang.id, 0) * bundle[gang.id] for gang in members) - amount
    free = [gang for gang in members if gang.wanted_size is None]
    free.sort(key=lambda gang: (-gang.spec.priority, gang.submitted_at, gang.workload_id, gang.index), reverse=True)
    for gang in free:
        size = plan.sizes.get(gang.id, 0)
        for to in [s for s in reversed(allowed_sizes(gang.spec)) if s < size]:
            if over <= 0:
                return
            over -= (plan.sizes[gang.id] - to) * bundle[gang.id]
            plan.sizes[gang.id] = to
    for gang in sorted(free, key=lambda gang: gang.is_active()) if may_rest else ():
        if over <= 0:
            return
        if gang.spec.preemptible or not gang.is_active():
            over -= plan.sizes.get(gang.id, 0) * bundle[gang.id]
            plan.sizes[gang.id] = 0


def _fill(plan: Plan, sharing: list[GangState], capacity: int) -> None:
    """Whoever was to rest because its queue is due less than its least has that least all the same where no queue
    takes the GPUs: a part of the cluster too small for anybody must not stay idle for ever."""
    left = capacity - sum(plan.sizes.get(gang.id, 0) * bundle_milli(gang.spec) for gang in sharing)
    for gang in sorted(
        sharing, key=lambda gang: (-gang.spec.priority, gang.submitted_at, gang.workload_id, gang.index)
    ):
        if plan.sizes.get(gang.id) == 0 and _least_milli(gang) <= left:
            plan.sizes[gang.id] = gang.spec.min_size
            left -= _least_milli(gang)


def _tiers(members: list[GangState]) -> list[tuple[list[GangState], list[GangState]]]:
    """Those of one priority and all of a lower one, highest first."""
    found = []
    for priority in sorted({gang.spec.priority for gang in members}, reverse=True):
        tier = [gang for gang in members if gang.spec.priority == priority]
        found.append((tier, [gang for gang in members if gang.spec.priority < priority]))
    return found


class _Demand:
    """What waiting gangs would start on if elastic ones held no more than they must and who leaves were gone. One for
    which that would not be enough is no reason to stay small."""

    def __init__(self, this: Pass, running: list[GangState], by_rank: bool) -> None:
        self._rigid: dict[tuple[str | None, int], int] = {}  # thousandths of GPUs, by flavor and priority
        self._elastic: dict[int, bool] = {}  # class -> whether one of it could start
        self._this, self._tried = this, 0
        state, trial = this.state, this.trial
        waits = [shape for shape in state.waiting.live.values() if not shape.sample.is_elastic()]
        elastic = [*state.waiting.elastic.values()]
        if not waits and not elastic:
            return
        mark = trial.mark()
        for gang in running:
            if trial.held(gang) and gang.id not in trial.shrinking and not gang.lost_members:
                least = () if by_rank and gang.spec.preemptible else without(gang, gang.spec.min_size, None)
                trial.hold(gang, least)
        trial.let_them_go()
        for shape in elastic:
            self._elastic[shape.serial] = self._would_start(shape)
        for shape in waits:
            self._count(shape)
        trial.rollback(mark)

    def could_start(self, shape: Shape) -> bool:
        return self._elastic[shape.serial]

    def _would_start(self, shape: Shape) -> bool:
        """Whether one of an elastic class finds room, by itself: who else could is for the policy to compare."""
        first = self._this.state.gangs[shape.entries[0][1]]
        if first.nomination is not None or len(self._elastic) >= STARTS_TRIED:
            return True
        return not isinstance(find(self._this, first, shape.sample.min_size, explain=False), Refused)

    def _count(self, shape: Shape) -> None:
        state, trial = self._this.state, self._this.trial
        need = need_milli(shape.sample, shape.sample.min_size, 0)
        for number, (_, name) in enumerate(shape.entries):
            gang = state.gangs[name]
            if gang.nomination is not None:
                continue  # its places are taken in the ledgers already
            if self._tried >= STARTS_TRIED:
                self._add(shape.flavors[0], shape.sample.priority, need * (len(shape.entries) - number))
                return
            self._tried += 1
            found = find(self._this, gang, shape.sample.min_size, explain=False)
            if isinstance(found, Refused):
                return  # nor would the next of its class
            trial.hold(gang, found)
            for placed in found:
                flavor = state.nodes[placed.node].node.flavor
                self._add(flavor, gang.spec.priority, amount_of(gang.spec, placed).gpus_milli)

    def _add(self, flavor: str | None, priority: int, amount: int) -> None:
        self._rigid[flavor, priority] = self._rigid.get((flavor, priority), 0) + amount

    def rigid_of(self, flavors: list[str | None], below: float = inf) -> int:
        """What those of fixed size, and of a priority below that, would start on."""
        rows = self._rigid.items()
        return sum(amount for (flavor, priority), amount in rows if flavor in flavors and priority < below)


def _least_milli(gang: GangState) -> int:
    return gang.spec.min_size * bundle_milli(gang.spec)


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
        more = sum(max(0, state.quota.available(name, flavor)) for flavor in _flavors(state, members))
        most[name] = min(demand[name], elastic_now + more)
        due = min(demand[name], max(0, promised.get(name, 0) - rigid))
        share[name] = (
            due - due % MILLI
        )  # what is left of a GPU beside a part that somebody holds is nobody's to grow by
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


def _flavors(state: State, members: list[GangState]) -> list[str | None]:
    """Those that any of them can use; a gang that names none can use all."""
    named = dict.fromkeys(option.flavor for gang in members for option in gang.spec.groups[0].options)
    return [*state.capacity.by_flavor] if None in named else [*named]


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


def choices(plan: Plan, gang: GangState) -> list[tuple[int, int | None]]:
    """(size, option) to try for a waiting gang; None: whichever option is free. Where every option says how fast it is,
    the fastest pair comes first, of equals the smaller: half as many GPUs of a kind three times as fast are better."""
    sizes, options = candidates(plan, gang), gang.spec.groups[0].options
    if len(sizes) == 1 or not all(option.speedup for option in options):
        return [(size, None) for size in sizes]
    pairs = [(speed(gang.spec, size, option), size, option) for size in sizes for option in range(len(options))]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [(size, option) for rate, size, option in pairs if rate > 0]
