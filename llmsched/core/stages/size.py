"""What each elastic gang, waiting or running, should hold: the elasticity policy's share, kept inside the rules.

Priorities come before the policy: those of a higher one share first, and leave the rest, but for what others hold at
least. Waiting gangs of fixed size have their part kept free, as far as they could start with it; a waiting gang that
could not start whatever elastic ones gave shares in nothing. By rank an elastic one that comes before some of them in
the order has its least before their part is kept (`Demand._come_first`). Those whose flavors have nothing in common
share apart.
Those that a reservation keeps out share what is outside of it, and those of one flavor what there is of it (`Limit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, inf

from llmsched.core.amounts import bundle_milli, flavors_of, need_milli
from llmsched.core.estimate import History
from llmsched.core.fair import GUARANTEE, guarantee_then_weight
from llmsched.core.kept_quota import Owners
from llmsched.core.lane import due, is_owed
from llmsched.core.plan import Plan
from llmsched.core.possible import option_of
from llmsched.core.records import GangState, allowed_sizes, amount_of, gpus_of
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.demand import Demand, Limit
from llmsched.core.state import State
from llmsched.core.trial import Trial

GANGS_SHARED = 4096  # elastic gangs one pass asks the policy about
ROUNDING = 1e-9  # GPUs: sums of parts of a GPU, as a policy makes them, are no more than what it is given


def run(this: Pass, calendar: Calendar) -> None:
    trial, state, plan, policy = this.trial, this.state, this.plan, this.policies.elasticity
    shapes = [*state.waiting.elastic.values()]
    running = [gang for name in state.elastic if (gang := state.gangs[name]).is_active() and name not in trial.leaving]
    if not (shapes or running) or not state.configuration.scheduling.elastic:
        return
    by_rank = state.configuration.scheduling.preemption.within_queue == "by_rank"  # 0 is a size then: nothing for now
    demand = Demand(this, calendar, running, by_rank)
    waiting = [gang for shape in shapes for gang in demand.able(shape)]
    owed = _owed(this, running) if by_rank else {}
    gangs = sorted(running + waiting, key=lambda g: (g.submitted_at, g.workload_id, g.index))[:GANGS_SHARED]
    _share(this, demand, gangs, owed, by_rank)
    none, first = demand.forget_who_finds_none(waiting)
    if none:
        plan.sizes.update(dict.fromkeys((gang.id for gang in gangs if gang.id in none), 0))
        _share(this, demand, [gang for gang in gangs if gang.id not in none], owed | first, by_rank)
    plan.kept_free = {flavor: demand.rigid_of([flavor]) for flavor in state.capacity.by_flavor}
    if policy.period_s:
        plan.by_clock = True
        plan.wake(plan.at + policy.period_s)


def _share(this: Pass, demand: Demand, gangs: list[GangState], owed: dict[str, GangState], by_rank: bool) -> None:
    trial, state, plan = this.trial, this.state, this.plan
    plan.sizes.update((name, nearest(gang, gang.spec.min_size)) for name, gang in owed.items())
    for flavors, sharing in _pools(state, gangs):
        there = free_at_last(trial, _smallest_milli(state, sharing))
        free = sum(there.get(flavor, 0) for flavor in flavors)
        held = sum(gang.gpus_milli() for gang in sharing if gang.held)
        held += sum(  # promised to elastic gangs: theirs to size as well
            gpus_of(gang.spec, gang.nomination.placement)
            for gang in sharing
            if not gang.is_active() and gang.nomination is not None
        )
        capacity = max(0, free + held - demand.rigid_of(flavors))
        _share_out(this, sharing, capacity, by_rank, demand, flavors, demand.limits(flavors, sharing))
        _give_the_owed(this, sharing, capacity, owed, demand, flavors)


def free_at_last(trial: Trial, smallest: int = MILLI) -> dict[str | None, int]:
    """Thousandths of GPUs of each flavor that are free and promised to nobody when all who are on the way out have
    gone, in whole ones and in parts of this size of those of which others have a part."""
    capacity, mark = trial.state.capacity, trial.mark()
    trial.let_them_go()
    found: dict[str | None, int] = {}
    for flavor, mask in capacity.by_flavor.items():
        found[flavor] = capacity.free_gpus(mask & capacity.open) * MILLI
        if smallest < MILLI:
            found[flavor] += capacity.parts_left(mask & capacity.open, smallest)
    trial.rollback(mark)
    return found


def _smallest_milli(state: State, gangs: list[GangState]) -> int:
    """Thousandths of GPUs of the smallest bundle."""
    return min((each for gang in gangs if (each := _bundle_milli(state, gang))), default=MILLI)


def _step_milli(state: State, gangs: list[GangState]) -> int:
    """What all bundles are multiples of: whole GPUs, or parts of one."""
    return gcd(MILLI, *(_bundle_milli(state, gang) for gang in gangs))


def _in_gpus(state: State, gangs: list[GangState], amount: int) -> float:
    """Whole ones, unless one of them asks for parts."""
    return max(0, amount) // MILLI if _step_milli(state, gangs) == MILLI else max(0, amount) / MILLI + ROUNDING


def _share_out(
    this: Pass,
    sharing: list[GangState],
    capacity: int,
    by_rank: bool,
    demand: Demand,
    flavors: list[str | None],
    limits: list[Limit],
) -> None:
    """By rank a tier also has what those of fixed size and lower priority ask for: they come after it. Nobody of it has
    what others of fixed size would start on."""
    state, plan = this.state, this.plan
    by_queue: dict[str, list[GangState]] = {}
    for gang in sharing:
        by_queue.setdefault(gang.spec.queue if state.quota.enforced else "", []).append(gang)
    for queue, amount in _entitled_within(this.trial, by_queue, capacity, limits).items():
        members = by_queue[queue]
        if not by_rank and (least := _least_of_all(state, members, amount)) is not None:
            plan.sizes.update(least)
            continue
        ids = {gang.id for gang in members}
        mine = [limit for limit in limits if not ids.isdisjoint(limit.names)]
        left, bounds = amount, [(limit.of(members), limit.most(-inf)) for limit in mine]
        for tier, lower in _tiers(members):
            below = tier[0].spec.priority if by_rank else -inf
            kept = [gang for gang in lower if gang.is_active() and not (by_rank and gang.spec.preemptible)]
            theirs = demand.rigid_of(flavors, below)
            most = [(limit.of(tier), limit.most(below)) for limit in mine]
            asked = [
                (bound, most - _all_least_milli(state, limit.of(kept)))
                for limit, (bound, most) in zip(mine, most, strict=True)
            ]
            stays = False  # whether one has its least, though the policy gives it nothing
            for name, size in _shares(this, tier, left + theirs - _all_least_milli(state, kept), asked).items():
                gang = state.gangs[name]
                may_be_none = by_rank and gang.wanted_size is None and (gang.spec.preemptible or not gang.is_active())
                plan.sizes[name] = 0 if may_be_none and not size else nearest(gang, size)
                stays = stays or (by_rank and not size and plan.sizes[name] > 0)
            if by_rank:
                # Others, or other queues, come first.
                is_behind = stays or left < capacity or demand.rigid_of(flavors) > theirs
                for those, amount_there in [*most, (tier, max(0, left + theirs))]:
                    _cut(this, those, amount_there, may_rest=is_behind)
            left -= _given_milli(this, tier)
            for limit in mine:
                limit.left -= _given_milli(this, limit.of(tier))
        if not by_rank:
            for those, amount_there in [*bounds, (members, amount)]:
                _cut(this, those, amount_there)
    if by_rank:
        _fill(this, sharing, capacity, limits)


def _least_of_all(state: State, members: list[GangState], amount: int) -> dict[str, int] | None:
    """Their smallest sizes, when the amount is not enough for more: then the policy has nothing to give; else None."""
    known: dict[int, tuple[int, int]] = {}  # by class, of those that wait: a size, and the thousandths of GPUs of that
    sizes, total = dict[str, int](), 0
    for gang in members:
        shape = gang.shape if not gang.held and gang.nomination is None else None
        row = known.get(shape.serial) if shape is not None else None
        if row is None:
            size = nearest(gang, gang.spec.min_size)
            row = size, size * _bundle_milli(state, gang)
            if shape is not None:
                known[shape.serial] = row
        sizes[gang.id] = row[0]
        total += row[1]
    return sizes if total >= amount else None


def _shares(
    this: Pass, gangs: list[GangState], capacity: int, bounds: Sequence[tuple[list[GangState], int]]
) -> dict[str, int]:
    """What the policy gives them of the capacity, in sizes. Of those that cannot have all of it, no more than there is
    for them: they share that, and the others all the rest."""
    policy = this.policies.elasticity
    capacity = min((capacity, *(most for bound, most in bounds if len(bound) == len(gangs))))
    sizes = dict(policy.share(gangs, _in_gpus(this.state, gangs, capacity), this.view))
    for bound, most in bounds:
        if len(bound) == len(gangs):
            continue
        if sum(sizes.get(gang.id, 0) * _bundle_milli(this.state, gang) for gang in bound) > most:
            names = {gang.id for gang in bound}
            others = [gang for gang in gangs if gang.id not in names]
            sizes |= policy.share(bound, _in_gpus(this.state, bound, most), this.view)
            if others:
                sizes |= policy.share(others, _in_gpus(this.state, others, capacity - most), this.view)
    return sizes


def _given_milli(this: Pass, gangs: list[GangState]) -> int:
    sizes = this.plan.sizes
    return sum(size * _bundle_milli(this.state, gang) for gang in gangs if (size := sizes.get(gang.id)))


def _owed(this: Pass, running: list[GangState]) -> dict[str, GangState]:
    """By rank: those that have waited long, and until they have had their part. They hold their least in any case, but
    for those that could not have it whoever made way."""
    waits = (this.state.gangs[name] for name in this.owed if name not in this.owed_later)
    found = {gang.id: gang for gang in waits if gang.spec.is_elastic() and gang.nomination is None}
    return found | {gang.id: gang for gang in running if is_owed(gang, this.plan.has_come)}


def _give_the_owed(
    this: Pass,
    sharing: list[GangState],
    capacity: int,
    owed: dict[str, GangState],
    demand: Demand,
    flavors: list[str | None],
) -> None:
    """Those that were to rest have their least all the same: out of what others of their priority and lower ones would
    have, who is due first before the others, and none what one that is due before it has. Like work of fixed size, none
    takes anything from a higher priority for having waited long."""
    plan, by_priority, owners = this.plan, this.policies.ordering.by_priority, Owners(this.trial)
    first = sorted((gang for gang in sharing if gang.id in owed), key=lambda gang: (due(gang), gang.id))
    for tier in [tier for tier, _ in _tiers(first)] if by_priority else [first]:
        if all(plan.sizes.get(gang.id) for gang in tier):
            continue
        priority = tier[0].spec.priority if by_priority else inf
        higher = [gang for gang in sharing if gang.spec.priority > priority]
        left = capacity - _given_milli(this, higher)
        theirs = demand.rigid_of(flavors, priority + 1)
        most = left + theirs + _fixed_milli(this.state, sharing, priority)
        is_first = not higher and demand.rigid_of(flavors) == theirs
        kept: list[GangState] = []
        for gang in tier:
            least = _least_milli(this.state, gang)
            if not owners.allow(gang.spec) and least > _in_own_queue(this, gang, sharing, capacity):
                continue  # who borrows takes nothing from another queue
            if (is_first and not kept) or least <= most:
                kept.append(gang)
                most -= _least_milli(this.state, gang)
        given: list[GangState] = []
        while resting := [gang for gang in kept if gang not in given and not plan.sizes.get(gang.id)]:
            given += resting
            bounds, taken = demand.limits(flavors, sharing), _all_least_milli(this.state, given)
            for limit in bounds:
                limit.left -= _given_milli(this, limit.of(higher)) + _all_least_milli(this.state, limit.of(given))
            known = {gang.id for gang in (*given, *higher)}
            others = [gang for gang in sharing if gang.id not in known]
            _share_out(this, others, max(0, left - taken), True, demand, flavors, bounds)
        plan.sizes.update((gang.id, nearest(gang, gang.spec.min_size)) for gang in given)


def _in_own_queue(this: Pass, gang: GangState, sharing: list[GangState], capacity: int) -> int:
    """What those of its queue and no higher priority have been given, and what nobody has."""
    queue, priority = gang.spec.queue, gang.spec.priority
    mine = [one for one in sharing if one.spec.queue == queue and one.spec.priority <= priority]
    return _given_milli(this, mine) + max(0, capacity - _given_milli(this, sharing))


def _fixed_milli(state: State, sharing: list[GangState], most: float) -> int:
    """Thousandths of GPUs of running work of fixed size, and no higher priority than that, that may be evicted."""
    rows = state.groups.items()
    held = sum(group.gpus_milli for (_, priority, preemptible), group in rows if preemptible and priority <= most)
    return held - sum(g.gpus_milli() for g in sharing if g.spec.preemptible and g.spec.priority <= most)


def _pools(state: State, gangs: list[GangState]) -> list[tuple[list[str | None], list[GangState]]]:
    """Gangs by what they compete for: flavors that one gang accepts are one pool. In the order of the first gang."""
    every = [*state.capacity.by_flavor]
    if len(every) <= 1:
        return [(every, gangs)]
    pools: list[tuple[dict[str | None, None], list[GangState]]] = []
    for gang in gangs:
        flavors = dict.fromkeys(flavors_of(gang.spec))
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


def _cut(this: Pass, members: list[GangState], amount: int, may_rest: bool = False) -> None:
    """Whatever the policy said, sizes together stay within the amount, or at their minimum: the lowest priority gives
    first, then the newest. Where they `may_rest` that is not enough: then those rest that wait, and last who runs."""
    plan, over = this.plan, _given_milli(this, members) - amount
    if over <= 0:
        return
    bundle = {gang.id: _bundle_milli(this.state, gang) for gang in members}
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


def _fill(this: Pass, sharing: list[GangState], capacity: int, limits: list[Limit]) -> None:
    """Whoever was to rest, because its queue is due less than its least or one before it asks for more than is there,
    has that least all the same where nobody takes the GPUs: a part of the cluster must not stay idle for ever."""
    plan, left = this.plan, capacity - _given_milli(this, sharing)
    for gang in sorted(
        sharing, key=lambda gang: (-gang.spec.priority, gang.submitted_at, gang.workload_id, gang.index)
    ):
        need, mine = _least_milli(this.state, gang), [limit for limit in limits if gang.id in limit.names]
        if plan.sizes.get(gang.id) == 0 and need <= min((limit.left for limit in mine), default=left) and need <= left:
            plan.sizes[gang.id] = gang.spec.min_size
            left -= need
            for limit in mine:
                limit.left -= need


def _tiers(members: list[GangState]) -> list[tuple[list[GangState], list[GangState]]]:
    """Those of one priority and all of a lower one, highest first."""
    found = []
    for priority in sorted({gang.spec.priority for gang in members}, reverse=True):
        tier = [gang for gang in members if gang.spec.priority == priority]
        found.append((tier, [gang for gang in members if gang.spec.priority < priority]))
    return found


def _bundle_milli(state: State, gang: GangState) -> int:
    return bundle_milli(gang.spec, option_of(state, gang))


def _least_milli(state: State, gang: GangState) -> int:
    return need_milli(gang.spec, gang.spec.min_size, option_of(state, gang))


def _all_least_milli(state: State, gangs: list[GangState]) -> int:
    return sum(_least_milli(state, gang) for gang in gangs)


def _entitled(trial: Trial, by_queue: dict[str, list[GangState]], capacity: int) -> dict[str, int]:
    """Thousandths of GPUs for the elastic gangs of each queue: its guarantee first, the rest evenly, never above what
    it may borrow."""
    if len(by_queue) == 1 and "" in by_queue:
        return {"": capacity}
    state = trial.state
    is_weighted = state.configuration.scheduling.fair_share == GUARANTEE
    promised = guarantee_then_weight(state) if is_weighted else {}
    step = _step_milli(state, [gang for members in by_queue.values() for gang in members])
    demand: dict[str, int] = {}
    share: dict[str, int] = {}
    most: dict[str, int] = {}
    for name, members in by_queue.items():
        demand[name] = sum(need_milli(gang.spec, gang.spec.max_size, option_of(state, gang)) for gang in members)
        elastic_now = sum(gang.gpus_milli() for gang in members if gang.is_active())
        rows = {state.quota.row_of(name, flavor): flavor for flavor in _flavors(state, members)}
        more = sum(max(0, state.quota.available(name, flavor)) for flavor in rows.values())
        most[name] = min(demand[name], elastic_now + more)
        if is_weighted:
            rigid = (state.use[name].gpus_milli if name in state.use else 0) - elastic_now
            due = min(demand[name], max(0, int(promised.get(name, 0)) - rigid))
        else:
            due = min(demand[name], _left_of_own(state, name, members, rows))
        share[name] = due - due % step  # what is left of a GPU beside a part that somebody holds is nobody's to grow by
    left = capacity - sum(share.values())
    while left < 0:  # rigid work waits or holds a part of it: the largest share gives first
        largest = max(share, key=lambda name: (share[name], name))
        given = min(share[largest], max(MILLI, -left // (2 * len(share))))
        if not given:
            break
        share[largest] -= given
        left += given
    if is_weighted:
        return share
    for part in dict.fromkeys((MILLI, step)):
        while left >= part and (asking := [name for name in by_queue if share[name] + part <= most[name]]):
            for name in asking:
                if left >= part:
                    share[name] += part
                    left -= part
    return share


def _left_of_own(state: State, queue: str, gangs: list[GangState], rows: dict[str, str | None]) -> int:
    """What a queue owns of these rows of quota and others of it than these gangs do not hold. What it borrows of one
    takes nothing of what it owns of another."""
    held: dict[str, int] = {}
    for gang in gangs:
        for placed in gang.held or (gang.nomination.placement if gang.nomination is not None else ()):
            row = state.quota.row_of(queue, state.nodes[placed.node].node.flavor)
            held[row] = held.get(row, 0) + amount_of(gang.spec, placed).gpus_milli
    branches = ((row, state.quota.branch(queue, flavor)) for row, flavor in rows.items())
    return sum(max(0, b.subtree - b.used + held.get(row, 0)) for row, b in branches if b is not None)


def _entitled_within(
    trial: Trial, by_queue: dict[str, list[GangState]], capacity: int, limits: list[Limit]
) -> dict[str, int]:
    """The same, where those queues of which a reservation keeps everybody out have no more in all than is there for
    them."""
    found = _entitled(trial, by_queue, capacity)
    for limit in limits:
        bound = {queue: gangs for queue, gangs in by_queue.items() if len(limit.of(gangs)) == len(gangs)}
        most = max(0, limit.left)
        if bound and sum(found[queue] for queue in bound) > most:
            others = {queue: gangs for queue, gangs in by_queue.items() if queue not in bound}
            found |= _entitled(trial, bound, most)
            if others:
                found |= _entitled(trial, others, max(0, capacity - most))
    return found


def _flavors(state: State, members: list[GangState]) -> list[str | None]:
    """Those that any of them can use; a gang that names none can use all."""
    named = dict.fromkeys(flavor for gang in members for flavor in flavors_of(gang.spec))
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


def choices(plan: Plan, gang: GangState, history: History) -> list[tuple[int, int | None]]:
    """(size, option) to try for a waiting gang; None: whichever option is free. Where it is known of every option how
    fast it is, the fastest pair comes first, of equals the smaller: half as many GPUs of a kind three times as fast are
    better."""
    sizes, options = candidates(plan, gang), gang.spec.groups[0].options
    if len(sizes) == 1 or len(options) == 1:
        return [(size, None) for size in sizes]
    pairs = []
    for size in sizes:
        speeds = history.speeds(gang.spec, size)
        if speeds is None:
            return [(size, None) for size in sizes]
        pairs += [(rate, size, option) for option, rate in enumerate(speeds)]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [(size, option) for rate, size, option in pairs if rate > 0]
