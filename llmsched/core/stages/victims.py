"""Who might be a victim of one gang, and in which order: who holds something, and who would start, or was promised
places, in this pass.

Asks the rules (core/rules.py) about each, and knows no places: which of them leave is for preempt.py to choose.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator

from llmsched.core.amounts import least_milli, need_milli, options_of
from llmsched.core.decisions import Preempt
from llmsched.core.fair import GUARANTEE
from llmsched.core.quota import UNLIMITED
from llmsched.core.records import GangState, total_of
from llmsched.core.resources import MILLI, ZERO
from llmsched.core.rules import IN_QUEUE, WHILE_BORROWING, Rules
from llmsched.core.scheduling_pass import Later, Pass
from llmsched.core.stages import place

LOOKED_AT = 16  # victims of one queue of which one is sought that leaves it with all it owns

Row = tuple[GangState, str]  # who might be a victim, and the reason code


def eligible(later: Later, gang: GangState, rules: Rules) -> tuple[list[Row], dict[str, int]]:
    """Who might be a victim, cheapest first, with the costs: who holds something, and who was to start in this pass."""
    rows, cost_of = _holding(later, gang, rules)
    if stay := later.exchanged_with(gang):
        rows = [row for row in rows if row[0].id not in stay]
    new = _new(later, gang, rules, stay)
    if not new:
        return rows, cost_of
    cost_of = {**cost_of, **{victim.id: 0 for victim, _ in new}}  # of these nothing is lost
    rows = [*rows]
    for row in new:
        insort(rows, row, key=_order(rules, cost_of))
    return rows, cost_of


def are_enough(later: Pass, gang: GangState, rules: Rules) -> bool:
    """Whether those that may be taken as things stand, whatever shields them for a time, may have as many GPUs as the
    gang lacks. Of each kind of those that hold something one is asked about, so a class for which there are too few
    costs as much as there are kinds."""
    state, queue = later.state, gang.spec.queue
    if state.elastic:
        return True
    own = [priority for (name, priority, may), group in state.groups.items() if name == queue and may and group.gangs]
    own += [new.spec.priority for new in later.trial.new() if new.spec.queue == queue and new.spec.preemptible]
    if any(rules.group(queue, priority) for priority in own):
        return True
    kinds = [
        (kind, code)
        for kind in _kinds(later, rules)
        if kind[0].spec.queue != queue and (code := rules.group(kind[0].spec.queue, kind[0].spec.priority))
    ]
    for option in options_of(gang.spec) if kinds else ():
        rules.option = option
        mask = place.eligible_by_any(later.trial, gang.spec, option)
        free = state.capacity.free_gpus(mask) * MILLI + state.capacity.parts_left(mask)
        need = need_milli(gang.spec, gang.spec.min_size, option)
        for _ in rules.each_strategy():
            given: dict[object, int] = {}
            for (victim, row, most), code in kinds:
                if rules.now(victim, code):
                    given[row] = max(given.get(row, 0), most)
                    if free + sum(given.values()) >= need - need % MILLI:
                        return True
    return False


Kind = tuple[
    GangState, object, int
]  # one of it, what it has in common with others of its queue, what they give at most


def _kinds(later: Pass, rules: Rules) -> list[Kind]:
    """Of those that hold something, where only borrowers give back of those whose queues borrow: each of these gives
    until its queue has no more than it owns."""
    state, trial = later.state, later.trial
    if trial.of_each_kind is None:
        kinds: dict[tuple[object, ...], GangState] = {}
        for (_, _, preemptible), group in state.groups.items():
            for name in group.gangs if preemptible else ():
                kinds.setdefault(rules.kind_of(state.gangs[name]), state.gangs[name])
        trial.of_each_kind = [*kinds.values()]

    def every() -> list[GangState]:
        return [*(trial.of_each_kind or ()), *(new for new in trial.new() if new.spec.preemptible)]

    if not state.quota.enforced or (rules.shares is not None and rules.shares.mode == GUARANTEE):
        return [(victim, None, UNLIMITED) for victim in every()]

    def make() -> list[Kind]:
        found = [(one, branch, branch.used - branch.subtree) for one in every() if (branch := rules.branch_of(one))]
        largest: dict[int, int] = {}
        for one, branch, _ in found:
            largest[id(branch)] = max(largest.get(id(branch), 0), rules.gpus_of(one))
        return [(one, branch, beyond + largest[id(branch)]) for one, branch, beyond in found if beyond > 0]

    return trial.beside("kinds of queues that borrow", make)


def _new(later: Later, gang: GangState, rules: Rules, stay: list[str]) -> list[Row]:
    """Those whom this pass would start, or has promised places, although the gang may evict them at once: as asking it
    later cannot give them a better right, they do not start, and nobody leaves for them. Whoever was told to make room
    for them may have to leave for the gang then: none of these is one of those that `stay` where they are for it."""
    rows = []
    left_for = (each.beneficiary for each in later.plan.decisions if isinstance(each, Preempt) and each.gang in stay)
    kept = {*stay, *left_for} if stay else ()
    for victim in later.trial.new():
        code = rules.group(victim.spec.queue, victim.spec.priority) if victim.spec.preemptible else ""
        may = code and victim.id not in kept and later.trial.held(victim) and rules.could(victim, code)
        if may and later.policies.preemption.cost(victim, gang, later.view) is not None:
            rows.append((victim, code))
    return rows


def _holding(later: Later, gang: GangState, rules: Rules) -> tuple[list[Row], dict[str, int]]:
    """Gangs of one class in one pass share the list; those of a queue and a priority where the costs are the same."""
    trial, state = later.trial, later.state
    shared = gang.shape is not None and rules.rules.within_queue != "lower_or_newer_equal_priority"
    who: object = gang.shape.serial if gang.shape is not None else 0
    if later.policies.preemption.by_victim:
        who = (gang.spec.queue, gang.spec.priority)
    known = trial.victims.get(who) if shared else None
    if known is not None:
        rows, cost_of, shielded = known
        for at, basis in shielded:
            later.plan.wake(at, basis)
        rows = [row for row in rows if row[0].id not in trial.leaving and trial.held(row[0])]
        trial.victims[who] = (rows, cost_of, shielded)
        return rows, cost_of
    groups = []
    # Where the size of a victim does not matter to the rules, one gang of a group stands for all of them.
    alike = len(state.capacity.by_flavor) <= 1 and (rules.shares is None or rules.shares.mode == GUARANTEE)
    capacity = state.capacity
    most = capacity.free_gpus(capacity.open) * MILLI + capacity.parts_left(capacity.open)
    most += sum(map(rules.gpus_of, later.trial.new()))
    most += sum(total_of(state.gangs[name].excess).gpus_milli for name in state.exceeding)
    for (queue, priority, preemptible), group in state.groups.items():
        code = rules.group(queue, priority) if group.gangs and preemptible else ""
        if not code:
            continue
        if code != IN_QUEUE and alike and not rules.ever(state.gangs[next(iter(group.gangs))], code):
            continue
        groups.append((group, code))
        most += group.gpus_milli
    if not groups or most < _least_need(gang):
        return [], {}
    cost_of = {}
    rows = []
    for group, code in groups:
        for name in group.gangs:
            victim = state.gangs[name]
            if name in trial.leaving or not trial.held(victim) or not rules.could(victim, code):
                continue
            cost = later.policies.preemption.cost(victim, gang, later.view)
            if cost is not None:
                cost_of[name] = cost
                rows.append((victim, code))
    rows.sort(key=_order(rules, cost_of))
    if shared:
        trial.victims[who] = (rows, cost_of, [*rules.shielded])
    return rows, cost_of


def _order(rules: Rules, cost_of: dict[str, int]) -> Callable[[Row], tuple[object, ...]]:
    """Cheapest first."""

    def order(row: Row) -> tuple[object, ...]:
        victim, code = row
        last, age = rules.is_reluctant(victim), rules.launched_at(victim)
        first = (victim.spec.priority, rules.seniority(victim, code), cost_of[victim.id])
        oldest = -victim.submitted_at if rules.trial.is_new(victim) else victim.submitted_at  # who begins: newest
        return (last, code == IN_QUEUE, *first, -age, oldest, victim.id)

    return order


def allowed(eligible: list[Row], rules: Rules) -> list[list[Row]]:
    """Who may be taken as things stand, in the order in which kinds are: who holds what belongs to the gang's own
    branch, who only has a lower priority, who is in its own queue. Releasing a victim only lowers its queue's share:
    who may not be taken now may not be taken later either."""
    known: dict[tuple[object, ...], str] = {}
    owned: list[Row] = []
    lower: list[Row] = []
    own: list[Row] = []
    for row in eligible:
        victim, code = row
        if code == IN_QUEUE:
            own.append(row)
            continue
        key = rules.kind_of(victim)
        may = known.get(key)
        if may is None:
            may = known[key] = rules.now(victim, code)
        if may:
            (lower if may == WHILE_BORROWING else owned).append(row)
    return [owned, lower, own]


def smallest_first(kinds: list[list[Row]], rules: Rules) -> list[list[Row]]:
    """So the share of a queue stays as high as it can until the last one is taken from it: whether a set may leave does
    not follow from what each costs, which the clock alone changes."""

    def order(row: Row) -> tuple[bool, int]:
        return rules.is_reluctant(row[0]), rules.gpus_of(row[0])

    return [sorted(rows, key=order) for rows in kinds]


def in_turn(kinds: list[list[Row]], rules: Rules, cost_of: dict[str, int]) -> Iterator[Row]:
    """Cheapest first, own ones last, unless the gang cannot end inside its quota without them. With fair sharing each
    is taken from the queue that stands highest at that moment; one that would rather not be evicted comes last."""
    owned, lower, own = kinds
    shares = rules.shares
    if shares is None:
        first: dict[str, None] = {}
        for row in own:
            if rules.holds():
                break
            first[row[0].id] = None
            yield row
        yield from _by_excess(owned, rules, cost_of)
        yield from _by_excess(lower, rules, cost_of)
        yield from (row for row in own if row[0].id not in first)
        return
    queues: dict[str, deque[Row]] = {}
    for row in (*owned, *lower):
        queues.setdefault(row[0].spec.queue, deque()).append(row)

    def standing(queue: str) -> tuple[object, ...]:
        victim = queues[queue][0][0]
        return (not rules.is_reluctant(victim), shares.standing(queue, rules._flavor(victim), ZERO))

    while queues:
        highest = max(queues, key=standing)  # of equals the first: whose cheapest is cheapest
        yield queues[highest].popleft()
        if not queues[highest]:
            del queues[highest]
    yield from own


def _by_excess(rows: list[Row], rules: Rules, cost_of: dict[str, int]) -> Iterator[Row]:
    """First who leaves its queue with all it owns; then the cheapest; of those that lose about the same (within a
    factor of two) the one whose queue has most beyond."""
    queues: dict[str, list[Row]] = {}
    for row in rows:
        queues.setdefault(row[0].spec.queue, []).append(row)
    number = {row[0].id: index for index, row in enumerate(rows)}

    def key(row: Row) -> tuple[object, ...]:
        victim = row[0]
        cost = cost_of[victim.id]
        loss = (cost.bit_length(), -rules.excess(victim), cost, number[victim.id])
        return (rules.shortfall(victim) > 0, rules.is_reluctant(victim), victim.spec.priority, *loss)

    while queues:
        best: Row | None = None
        for waiting in queues.values():
            mine = next((row for row in waiting[:LOOKED_AT] if not rules.shortfall(row[0])), waiting[0])
            if best is None or key(mine) < key(best):
                best = mine
        assert best is not None
        yield best
        queue = best[0].spec.queue
        queues[queue].remove(best)
        if not queues[queue]:
            del queues[queue]


def _least_need(gang: GangState) -> int:
    """Whole GPUs, in thousandths, without which no option of this gang can start."""
    least = least_milli(gang.spec, gang.spec.min_size)
    return least - least % MILLI
