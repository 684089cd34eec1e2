"""Who runs, by rank: once a quantum everybody, waiting and running, is ranked and the best that fit run.

Only with `preemption.within_queue: by_rank`. Between two rankings nobody is evicted; free GPUs are filled in rank
order. Inside its own quota a queue comes before those that would borrow. Queues compete with one another when they
have no quota or `reclaim` is `any`; otherwise each ranks its own. A running gang that was not among the best keeps its
GPUs all the same when, in the end, nobody better fits on them: nobody is evicted in vain.

Nobody starves, whatever the policy: who has waited long and is owed a start (lane.py) comes before everybody else of
its priority, the one that is due first before the others, and stays so until it has run for as long as it is owed.

Elastic gangs that wait are not ranked: the elasticity policy has said what each should hold, and 0 means nothing for
now. Three come before that: who is owed a start, who has a higher priority than work of fixed size that runs, and whose
queue owns what another one borrows is ranked with its least, after those of fixed size and its own priority. One that
runs and has a share is ranked with that, or as much of it as there is, behind who is owed a start and before all others
of its priority.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf

from llmsched.core.explain import Reason
from llmsched.core.kept_quota import Owners
from llmsched.core.lane import due, is_owed
from llmsched.core.message import say
from llmsched.core.plan import PORTION
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Key
from llmsched.core.stages import evict, make_way
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.count import Count, Wish, lacking_flavors
from llmsched.core.stages.lesser import Giver
from llmsched.core.stages.line import Bunch, alone, bound_of, by_due, in_order, keep_order, key_with_age, kins
from llmsched.core.stages.make_way import NOBODY, Row, compete
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Workload

NOBODY_STAYS = nullcontext()
RESTS = Reason("order", say("order.outranked"))  # whom elasticity has given nothing


def is_on(state: State) -> bool:
    return state.configuration.scheduling.preemption.within_queue == "by_rank"


def is_due(this: Pass) -> bool:
    """Whether everybody is ranked in this pass."""
    state, quantum = this.state, this.state.configuration.scheduling.quantum_s
    if quantum > 0 and state.ranked_at and int(state.ranked_at // quantum) == int(this.plan.at // quantum):
        return state.may_have_been_cut() and state.is_to_be_ranked()
    return state.is_to_be_ranked()


def run(this: Pass, calendar: Calendar) -> dict[str, None]:
    """Returns the waiting gangs about which nothing is left to decide: launched, nominated, or to hold nothing now."""
    state, trial, plan = this.state, this.trial, this.plan
    settled: dict[str, None] = {}
    if not is_on(state):
        return settled
    if plan.sizes:
        settled |= _share(this, calendar)
    if plan.is_cut:
        return settled
    quantum = state.configuration.scheduling.quantum_s
    if not state.waiting.count:
        return settled
    if quantum > 0:
        plan.look_again((int(plan.at // quantum) + 1) * quantum, say("eta.ranking"))
    if not is_due(this):
        return settled
    for running, classes in _lines(this, calendar):
        staying = evict.Staying(this, [gang for _, gang in running])
        pick = partial(_pick, this, calendar, running, classes, staying, without={})
        starters, victims = pick(())
        if starters:
            again = pick if _has_rights(this) else None
            settled |= make_way.run(this, calendar, staying, starters, victims, running=running, again=again)
        if plan.is_cut:
            break
    if trial.leaving and state.waiting.elastic:
        plan.asks_again = True  # what those leave, elastic ones have not been given a share of
    return settled


def _has_rights(this: Pass) -> bool:
    """Whether one that waits may have a right to what another one has, be it by priority or by quota, whoever stands
    before it. Otherwise who finds no place leaves it to those who run."""
    return this.policies.ordering.by_priority or this.state.quota.enforced


class _Class:
    """Gangs of which each is refused what one before it was refused, best first; read as far as anybody has asked."""

    def __init__(self, rows: Iterable[Row], sample: Workload | None = None, bound: Key = ()) -> None:
        self.sample = sample  # what each of them asks for, so that what one is refused all later ones are
        self.bound = bound  # no key is below it
        self.read: list[Row] = []
        self._rows = iter(rows)

    def at(self, place: int) -> Row | None:
        if place == len(self.read) and (row := next(self._rows, None)) is not None:
            self.read.append(row)
        return self.read[place] if place < len(self.read) else None


def _waiting(this: Pass, bunch: Bunch, without: Collection[str], borrowing: Collection[str]) -> Iterator[Row]:
    sample = bunch.classes[0].sample
    is_sized = sample.is_elastic() and this.state.configuration.scheduling.elastic
    if is_sized and not _is_above_somebody(this, sample) and not _is_owner(this, sample, borrowing):
        return  # it has a size, or could not start
    for key, name in in_order(this, bunch):
        gang = this.state.gangs[name]
        is_settled = gang.nomination is not None or name in this.plan.nominations or name in this.trial.begun
        if not is_settled and name not in without:
            yield ((-gang.spec.priority, inf), *key[1:]) if is_sized else key, gang


def _is_above_somebody(this: Pass, spec: Workload) -> bool:
    """Whether somebody of fixed size runs who has a lower priority: he comes after it, whatever share it has."""
    if not this.policies.ordering.by_priority:
        return False
    groups = this.state.groups.items()
    return any(
        group.gpus_milli and preemptible and priority < spec.priority for (_, priority, preemptible), group in groups
    )


def _is_owner(this: Pass, spec: Workload, borrowing: Collection[str]) -> bool:
    """Whether its queue owns what it asks for, and one of these, that competes with it, holds more than its own."""
    competes = (queue != spec.queue and compete(this.state, queue, spec.queue) for queue in borrowing)
    return any(competes) and Owners(this.trial).allow(spec)


def _borrowing(state: State) -> dict[str, None]:
    """Queues that hold more than they own of something."""
    found: dict[str, None] = {}
    for queue, _, _ in state.groups if state.quota.enforced else ():
        branches = (state.quota.branch(queue, flavor) for flavor in state.capacity.by_flavor)
        if any(branch is not None and branch.used > branch.subtree for branch in branches):
            found[queue] = None
    return found


def _owed(this: Pass) -> dict[str, Row]:
    """Those that wait and come before all others of their priority, who is due first before the others."""
    gangs, plan = this.state.gangs, this.plan
    waits = [gangs[name] for name in this.owed if name not in this.trial.begun and name not in plan.nominations]
    return {gang.id: (by_due(this, gang), gang) for gang in waits}


def _of_running(this: Pass, gang: GangState) -> Key:
    """Who was owed its start goes on to come first until it has had its part: before all of its priority but those that
    are owed one and were due before it. Elastic gangs that have a share come after those, and before all others of
    their priority. () for who is not ranked: it changes its size."""
    share = this.plan.sizes.get(gang.id)
    if share and (gang.status is not Status.RUNNING or gang.id in this.trial.shrinking):
        return ()
    if is_owed(gang, this.plan.has_come):
        return by_due(this, gang)
    if not share:
        return key_with_age(this, gang)
    first = (-gang.spec.priority,) if this.policies.ordering.by_priority else ()
    return (first, -inf, inf, gang.id)


def _lines(this: Pass, calendar: Calendar) -> list[tuple[list[Row], list[_Class]]]:
    """Those who compete with one another, all or each queue by itself: who runs and may be evicted, best first, and the
    classes of those that wait."""
    state, trial = this.state, this.trial
    keep_order(this)
    lines: dict[str, tuple[list[Row], list[_Class]]] = {}
    line_of: dict[str, str] = {}

    def line(queue: str) -> tuple[list[Row], list[_Class]]:
        if queue not in line_of:
            alone = state.quota.enforced and not compete(state, queue, queue)
            line_of[queue] = queue if alone else ""
        return lines.setdefault(line_of[queue], ([], []))

    rows: list[Row] = []
    for name in state.holding:
        gang = state.gangs[name]
        stays = not gang.spec.preemptible or gang.lost_members or gang.status is Status.VACATING
        if not (stays or name in trial.leaving) and (key := _of_running(this, gang)):
            rows.append((key, gang))
    rows.sort(key=lambda row: row[0])
    for row in rows:
        line(row[1].spec.queue)[0].append(row)
    long = _owed(this)
    first: dict[int, list[Row]] = {}
    for row in sorted(long.values(), key=lambda row: row[0]):
        classes = line(row[1].spec.queue)[1]
        if id(classes) not in first:
            first[id(classes)] = []
            classes.append(_Class(first[id(classes)]))
        first[id(classes)].append(row)
    borrowing = _borrowing(state)
    is_reserved = bool(calendar.windows.rows)  # then it is known of a class how many a reservation has kept out
    for bunch in alone(state.waiting.live.values()) if is_reserved else kins(state.waiting):
        sample = bunch.classes[0].sample
        line(sample.queue)[1].append(_Class(_waiting(this, bunch, long, borrowing), sample, bound_of(this, bunch)))
    return [*lines.values()] if len(lines) <= 1 else sorted(lines.values(), key=_best)  # whose best ranks first


def _best(line: tuple[list[Row], list[_Class]]) -> Key:
    """The key of the first one, waiting or running."""
    firsts = [first for each in line[1] if (first := each.at(0)) is not None]
    return min((row[0] for row in (*line[0][:1], *firsts)), default=NOBODY)


def _best_first(
    classes: list[_Class], is_refused: Callable[[Key, GangState], bool], is_hopeless: Callable[[Key, Workload], bool]
) -> None:
    """Ask about each gang of all classes, best first, but for those that are refused what one of their class was. A
    class is read when its turn may have come; `is_hopeless`: nobody whose key is no lower, and who asks for that, finds
    it any more."""
    heap = [(each.bound, number, -1) for number, each in enumerate(classes)]
    heapify(heap)
    while heap:
        key, number, place = heappop(heap)
        each = classes[number]
        if place < 0 and each.sample is not None and is_hopeless(key, each.sample):
            continue
        while place < 0 or not is_refused(*each.read[place]) or each.sample is None:
            place += 1
            following = each.at(place)
            if following is None:
                break
            entry = (following[0], number, place)
            if heap and heap[0] < entry:
                heappush(heap, entry)
                break


def _pick(
    this: Pass,
    calendar: Calendar,
    running: list[Row],
    waiting: list[_Class],
    staying: evict.Staying,
    missed: Collection[GangState],
    without: dict[str, None],
) -> tuple[list[GangState], list[GangState]]:
    """By counting GPUs and quota only: who of the waiting should start, and who of the running is not among the best.

    First those inside their queue's own quota, then those that borrow, each in order of rank: no queue borrows what its
    owner asks for. In one queue rank alone decides: one that borrows has what those of its queue have that come after
    it. Who waits takes the first of its options that counts out, beside those that it has exchanged a place with; who
    runs counts where it is. `missed`: those that were picked and found no places, who are counted out from then on.
    """
    without.update((gang.id, None) for gang in missed)
    count = Count(this, calendar)
    classes = [_Class(running), *waiting]
    picked: dict[str, None] = {}
    inside: dict[str, list[Row]] = {}  # of each queue those that are picked inside its own quota, best first
    with count.everybody_gone([gang for _, gang in running]):

        def staying_for(gang: GangState) -> list[GangState]:
            return [] if gang.is_holding() else staying.stay_for(gang)

        def behind(key: Key, queue: str) -> list[Row]:
            rows = inside.get(queue)
            return rows[bisect_right(rows, key, key=_key) :] if rows and rows[-1][0] > key else []

        def owns_too_little(key: Key, gang: GangState) -> bool:
            wishes = [] if count.is_used_up() or gang.id in without else count.wishes(gang)
            stay = [one for one in staying_for(gang) if one.id not in picked]
            with count.kept(stay, gang, wishes) if stay else NOBODY_STAYS:
                if any(count.takes_own(gang, *wish) for wish in wishes):
                    picked[gang.id] = None
                    inside.setdefault(gang.spec.queue, []).append((key, gang))
                    return False
            return not stay and count.refuses_its_like(gang, wishes)  # else others may take what those have

        def finds_too_little(key: Key, gang: GangState) -> bool:
            if gang.id in picked:
                return False
            is_sized = gang.spec.is_elastic() and not gang.is_holding() and gang.id not in this.owed
            if is_sized and not _is_above_somebody(this, gang.spec):
                return True  # beyond what its queue owns it has what elasticity gives it
            after = behind(key, gang.spec.queue) if inside else []
            is_out = gang.id in without or (count.is_used_up() and not after)
            wishes = [] if is_out else count.wishes(gang)
            if stay := staying_for(gang):
                after = [row for row in after if row[1] not in stay]
                stay = [one for one in stay if one.id not in picked]
            with count.kept(stay, gang, wishes) if stay else NOBODY_STAYS:
                if count.takes(gang, wishes) or takes_from(after, gang, wishes):
                    picked[gang.id] = None
                    return False
            return not stay and count.refuses_its_like(gang, wishes)

        def takes_from(after: list[Row], gang: GangState, wishes: list[Wish]) -> bool:
            """What those of its queue have that come after it, the last one first: they are asked again."""
            given: list[GangState] = []
            if not after or not count.could_take(gang, [one for _, one in after]):
                return False
            for _, one in reversed(after):
                count.gives_up(one)
                given.append(one)
                if count.takes(gang, wishes):
                    gone = {one.id for one in given}
                    inside[gang.spec.queue] = [row for row in inside[gang.spec.queue] if row[1].id not in gone]
                    for name in gone:
                        del picked[name]
                    return True
            for one in reversed(given):
                count.takes_again(one)
            return False

        def is_hopeless(key: Key, spec: Workload) -> bool:
            return count.has_no_room(spec) and not behind(key, spec.queue)

        if count.quota.enforced:
            _best_first(classes, owns_too_little, is_hopeless)
            count.charge_own()
        _best_first(classes, finds_too_little, is_hopeless)
    rows = [row for each in waiting for row in each.read if row[1].id in picked]
    starters = [gang for _, gang in sorted(rows, key=lambda row: row[0])]
    return starters, [gang for _, gang in running if gang.id not in picked]


def _key(row: Row) -> Key:
    return row[0]


def _share(this: Pass, calendar: Calendar) -> dict[str, None]:
    """Bring elastic gangs to their shares: who should hold less gives back what others should hold more of."""
    trial, state, plan, view = this.trial, this.state, this.plan, this.view
    quantum = state.configuration.scheduling.quantum_s
    starters: list[GangState] = []
    resting: dict[str, None] = {}
    givers: list[tuple[int, float, str, GangState]] = []
    growers: list[tuple[GangState, int]] = []
    wanted: list[tuple[GangState, float]] = []
    if any(target and name in this.owed for name, target in plan.sizes.items()):
        quantum = 0.0  # for its sake nobody is spared for having changed a moment ago
    for name, target in plan.sizes.items():
        gang = state.gangs[name]
        if gang.status is Status.QUEUED:
            if not target:
                resting[name] = None
                this.tell_alone(gang, RESTS)
            elif gang.nomination is None:
                starters.append(gang)
                wanted.append((gang, target * view.gpus_per_bundle(gang)))
        elif gang.status is Status.RUNNING and name not in trial.leaving and not gang.lost_members:
            if target > gang.size:
                wanted.append((gang, (target - gang.size) * view.gpus_per_bundle(gang)))
                if this.has_held(gang, quantum):
                    growers.append((gang, target))
            elif name in trial.shrinking:
                continue  # it gives already
            elif target < gang.size and (target or gang.spec.preemptible) and this.has_held(gang, quantum):
                givers.append((target > 0, -(gang.size - target) * view.gpus_per_bundle(gang), name, gang))
    lacking = lacking_flavors(this, calendar, wanted)
    victims: list[GangState] = []
    smaller: list[Giver] = []
    givers.sort(key=lambda row: row[:3])
    for shrinks, _, name, gang in givers if lacking else ():
        if not any(state.nodes[placed.node].node.flavor in lacking for placed in gang.held):
            continue
        if len(smaller) >= PORTION:
            plan.is_cut = True  # nobody starts before all have given
            starters, growers = [], []
            break
        if shrinks:
            smaller.append(Giver(gang, plan.sizes[name], gang.held))
        else:
            victims.append(gang)
    starters.sort(key=lambda gang: _turn(this, gang))
    if starters or victims or smaller:
        sized = _sized(this)
        staying = evict.Staying(this, [*victims, *(gang for _, gang in sized)])
        resting |= make_way.run(this, calendar, staying, starters, victims, growers, smaller, sized)
    return resting


def _sized(this: Pass) -> list[Row]:
    """Elastic gangs that run, as they come after others: brought to their shares, they are not ranked."""
    state, found = this.state, list[Row]()
    for name in state.elastic:
        gang = state.gangs[name]
        may_leave = gang.status is Status.RUNNING and gang.spec.preemptible and not gang.lost_members
        may_leave = may_leave and name not in this.trial.leaving and name not in this.trial.shrinking
        if not may_leave or not this.plan.sizes.get(name) or gang.size <= gang.spec.min_size:
            continue
        found.append((by_due(this, gang) if is_owed(gang, this.plan.has_come) else _turn(this, gang), gang))
    return found


def _turn(this: Pass, gang: GangState) -> Key:
    """Of those that elasticity has given a share: priorities before one another, then who is owed a start, and the
    others as they were asked."""
    first = (-gang.spec.priority,) if this.policies.ordering.by_priority else ()
    return (first, -inf, due(gang), gang.id) if gang.id in this.owed else (first, inf)
