"""Who runs, by rank: once a quantum everybody, waiting and running, is ranked and the best that fit run.

Only with `preemption.within_queue: by_rank`. Between two rankings nobody is evicted; free GPUs are filled in rank
order. Inside its own quota a queue comes before those that would borrow. Queues compete with one another when they
have no quota or `reclaim` is `any`; otherwise each ranks its own. A running gang that was not among the best keeps its
GPUs all the same when, in the end, nobody better fits on them: nobody is evicted in vain.

Nobody starves, whatever the policy: who has waited long and is owed a start (lane.py) comes before everybody else of
its priority, the one that is due first before the others, and stays so until it has run for as long as it is owed.

Elastic gangs are not ranked: the elasticity policy has said what each should hold, and 0 means nothing for now. Two
things come before that: who is owed a start, and who has a higher priority than work of fixed size that runs, is ranked
with its least, after those of fixed size and its own priority.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from math import inf

from llmsched.core.exact_fit import fits
from llmsched.core.explain import Reason
from llmsched.core.lane import due, is_owed
from llmsched.core.message import say, workload
from llmsched.core.plan import PORTION
from llmsched.core.records import GangState, allowed_sizes, size_of
from llmsched.core.rules import rules_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Key
from llmsched.core.stages import evict, place
from llmsched.core.stages.backfill import Calendar, place_within
from llmsched.core.stages.count import Count, lacking_flavors
from llmsched.core.stages.demand import MOVED_IN_VAIN
from llmsched.core.stages.grow import more
from llmsched.core.stages.lesser import Ask, Giver, beside_others, keeps, room, room_elsewhere
from llmsched.core.stages.line import Bunch, alone, bound_of, in_order, keep_order, key_with_age, kins
from llmsched.core.stages.nominate import nominate
from llmsched.core.stages.shrink import give, resize
from llmsched.core.stages.size import choices
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.windows import kept
from llmsched.core.workload import Placement, Workload

NOBODY: Key = ((inf,),)  # ranks after everybody

Row = tuple[Key, GangState]


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
        starters, victims = _pick(this, calendar, running, classes, staying)
        if starters:
            sized = _sized(this)
            staying = evict.Staying(this, [gang for _, gang in (*running, *sized)])
            settled |= _carry_out(this, calendar, staying, starters, victims, running=[*running, *sized])
        if plan.is_cut:
            break
    if trial.leaving and state.waiting.elastic:
        plan.asks_again = True  # what those leave, elastic ones have not been given a share of
    return settled


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


def _waiting(this: Pass, bunch: Bunch, without: Collection[str]) -> Iterator[Row]:
    sample = bunch.classes[0].sample
    is_sized = sample.is_elastic() and this.state.configuration.scheduling.elastic
    if is_sized and not _is_above_somebody(this, sample):
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


def _owed(this: Pass) -> dict[str, Row]:
    """Those that wait and come before all others of their priority, who is due first before the others."""
    gangs, plan = this.state.gangs, this.plan
    waits = [gangs[name] for name in this.owed if name not in this.trial.begun and name not in plan.nominations]
    return {gang.id: (_by_due(this, gang), gang) for gang in waits}


def _of_running(this: Pass, gang: GangState) -> Key:
    """Who was owed its start goes on to come first until it has had its part: before all of its priority but those that
    are owed one and were due before it. Elastic gangs come before all of their priority where they hold their least:
    then nothing is left but to stop them for a higher one. () for who is not ranked: it is brought to its share."""
    if this.plan.sizes.get(gang.id):
        is_least = gang.status is Status.RUNNING and gang.size <= gang.spec.min_size
        return ((-gang.spec.priority,), -inf, -inf, gang.id) if this.policies.ordering.by_priority and is_least else ()
    return _by_due(this, gang) if is_owed(gang, this.plan.has_come) else key_with_age(this, gang)


def _by_due(this: Pass, gang: GangState) -> Key:
    first = (-gang.spec.priority,) if this.policies.ordering.by_priority else ()
    return (first, -inf, due(gang), gang.id)


def _lines(this: Pass, calendar: Calendar) -> list[tuple[list[Row], list[_Class]]]:
    """Those who compete with one another, all or each queue by itself: who runs and may be evicted, best first, and the
    classes of those that wait."""
    state, trial = this.state, this.trial
    keep_order(this)
    lines: dict[str, tuple[list[Row], list[_Class]]] = {}
    line_of: dict[str, str] = {}

    def line(queue: str) -> tuple[list[Row], list[_Class]]:
        if queue not in line_of:
            alone = state.quota.enforced and not _compete(state, queue, queue)
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
    is_reserved = bool(calendar.windows.rows)  # then it is known of a class how many a reservation has kept out
    for bunch in alone(state.waiting.live.values()) if is_reserved else kins(state.waiting):
        sample = bunch.classes[0].sample
        line(sample.queue)[1].append(_Class(_waiting(this, bunch, long), sample, bound_of(this, bunch)))
    return [*lines.values()] if len(lines) <= 1 else sorted(lines.values(), key=_best)  # whose best ranks first


def _best(line: tuple[list[Row], list[_Class]]) -> Key:
    """The key of the first one, waiting or running."""
    firsts = [first for each in line[1] if (first := each.at(0)) is not None]
    return min((row[0] for row in (*line[0][:1], *firsts)), default=NOBODY)


def _best_first(
    classes: list[_Class], is_refused: Callable[[GangState], bool], is_hopeless: Callable[[Workload], bool]
) -> None:
    """Ask about each gang of all classes, best first, but for those that are refused what one of their class was. A
    class is read when its turn may have come; `is_hopeless`: nobody who asks for that finds it any more."""
    heap = [(each.bound, number, -1) for number, each in enumerate(classes)]
    heapify(heap)
    while heap:
        _, number, place = heappop(heap)
        each = classes[number]
        if place < 0 and each.sample is not None and is_hopeless(each.sample):
            continue
        while place < 0 or not is_refused(each.read[place][1]) or each.sample is None:
            place += 1
            following = each.at(place)
            if following is None:
                break
            entry = (following[0], number, place)
            if heap and heap[0] < entry:
                heappush(heap, entry)
                break


def _pick(
    this: Pass, calendar: Calendar, running: list[Row], waiting: list[_Class], staying: evict.Staying
) -> tuple[list[GangState], list[GangState]]:
    """By counting GPUs and quota only: who of the waiting should start, and who of the running is not among the best.

    First those inside their queue's own quota, then those that borrow, each in order of rank. Who waits takes the first
    of its options that counts out, beside those that it has exchanged a place with; who runs counts where it is.
    """
    count = Count(this, calendar)
    classes = [_Class(running), *waiting]
    picked: dict[str, None] = {}
    with count.everybody_gone([gang for _, gang in running]):

        def is_refused(gang: GangState, takes: Callable[[GangState, str | None, int], bool]) -> bool:
            if gang.id in picked:
                return False
            wishes = [] if count.is_used_up() else count.wishes(gang)
            stay = () if gang.is_holding() else [one for one in staying.stay_for(gang) if one.id not in picked]
            with count.kept(stay, gang, wishes):
                for wish in wishes:
                    if takes(gang, *wish):
                        picked[gang.id] = None
                        return False
            return not stay and count.refuses_its_like(gang, wishes)  # else others may take what those have

        def owns_too_little(gang: GangState) -> bool:
            return is_refused(gang, count.takes_own)

        def finds_too_little(gang: GangState) -> bool:
            return is_refused(gang, count.takes)

        if count.quota.enforced:
            _best_first(classes, owns_too_little, count.has_no_room)
            count.charge_own()
        _best_first(classes, finds_too_little, count.has_no_room)
    rows = [row for each in waiting for row in each.read if row[1].id in picked]
    starters = [gang for _, gang in sorted(rows, key=lambda row: row[0])]
    return starters, [gang for _, gang in running if gang.id not in picked]


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
        per_bundle = view.gpus_per_bundle(gang)
        if gang.status is Status.QUEUED:
            if not target:
                resting[name] = None
                this.tell_alone(gang, Reason("order", say("order.outranked")))
            elif gang.nomination is None:
                starters.append(gang)
                wanted.append((gang, target * per_bundle))
        elif gang.status is Status.RUNNING and name not in trial.leaving and not gang.lost_members:
            if target > gang.size:
                wanted.append((gang, (target - gang.size) * per_bundle))
                if this.has_held(gang, quantum):
                    growers.append((gang, target))
            elif name in trial.shrinking:
                continue  # it gives already
            elif target < gang.size and (target or gang.spec.preemptible) and this.has_held(gang, quantum):
                givers.append((target > 0, -(gang.size - target) * per_bundle, name, gang))
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
        resting |= _carry_out(this, calendar, staying, starters, victims, growers, smaller, sized)
    return resting


def _sized(this: Pass) -> list[Row]:
    """Elastic gangs that run, as they come after others: brought to their shares, they are not ranked."""
    state, found = this.state, list[Row]()
    for name in state.elastic:
        gang = state.gangs[name]
        may_leave = gang.status is Status.RUNNING and gang.spec.preemptible and not gang.lost_members
        may_leave = may_leave and name not in this.trial.leaving and name not in this.trial.shrinking
        if not may_leave or not this.plan.sizes.get(name) or _of_running(this, gang):
            continue
        found.append((_by_due(this, gang) if is_owed(gang, this.plan.has_come) else _turn(this, gang), gang))
    return found


def _compete(state: State, one: str, other: str) -> bool:
    return all(rules_of(state, queue).reclaim == "any" for queue in (one, other))


def _turn(this: Pass, gang: GangState) -> Key:
    """Of those that elasticity has given a share: priorities before one another, then who is owed a start, and the
    others as they were asked."""
    first = (-gang.spec.priority,) if this.policies.ordering.by_priority else ()
    return (first, -inf, due(gang), gang.id) if gang.id in this.owed else (first, inf)


@contextmanager
def _where_they_are(trial: Trial, victims: Sequence[GangState]) -> Iterator[None]:
    """While it lasts those of the victims are back whose places nobody has taken yet."""
    back = []
    for gang in victims:
        if not trial.held(gang) and fits(trial, gang.spec, gang.held):
            trial.hold(gang, gang.held)
            back.append(gang)
    try:
        yield
    finally:
        for gang in back:
            trial.hold(gang, ())


def _beneficiary(
    this: Pass, victim: GangState, takers: list[GangState], on_node: dict[str, dict[str, None]]
) -> GangState | None:
    """For whom it leaves: on its nodes, or for the sake of quota. Never who has exchanged a place with it: that one
    was placed while it was there, so it is not why it does not fit."""
    by_name = {gang.id: gang for gang in takers}
    beside = (name for placed in victim.held for name in on_node.get(placed.node, ()))
    names = dict.fromkeys((*beside, *by_name))
    return next((by_name[name] for name in names if evict.may(this, victim, by_name[name])), None)


def _ask(this: Pass, gang: GangState, size: int, calendar: Calendar, option: int | None) -> Ask:
    return lambda only: place_within(this, gang, size, calendar, option, only)


def _more(this: Pass, gang: GangState, size: int, calendar: Calendar) -> Ask:
    only = ~calendar.closed(gang, size)
    return lambda nodes: more(this, gang, size - gang.size, only & nodes) or place.NO_ROOM


def _find(
    this: Pass,
    calendar: Calendar,
    staying: evict.Staying,
    starters: list[GangState],
    smaller: Sequence[Giver] = (),
) -> list[tuple[GangState, Placement]]:
    """Nodes for a portion of the starters, which hold them from now on in the trial, beside what those keep that become
    smaller."""
    trial, plan = this.trial, this.plan
    free, in_vain = [giver for giver in smaller if giver.has_choice()], 0
    found: list[tuple[GangState, Placement]] = []
    refused: set[int] = set()  # shapes that did not fit: their like will not either
    for gang in starters:
        shape = gang.shape.serial if gang.shape is not None else -1
        if shape in refused:
            continue
        if len(found) >= PORTION:
            plan.is_cut = True
            break
        stay = staying.stay_for(gang)
        fitting, is_kept_out = None, False
        with _where_they_are(trial, stay):
            for bundles, option in choices(plan, gang):
                placed = place_within(this, gang, bundles, calendar, option)
                if not isinstance(placed, place.Refused):
                    fitting = placed
                    break
                is_kept_out = is_kept_out or placed.code == "reservation"  # who runs for less may not be
                if free and in_vain < MOVED_IN_VAIN:
                    fitting = room_elsewhere(trial, gang, free, _ask(this, gang, bundles, calendar, option))
                if fitting is not None:
                    break
            in_vain += fitting is None and bool(free)
        if fitting is not None:
            trial.hold(gang, fitting)
            found.append((gang, fitting))
        elif not stay and not is_kept_out:
            refused.add(shape)
    return found


def _find_beside(
    this: Pass,
    calendar: Calendar,
    staying: evict.Staying,
    starters: list[GangState],
    victims: list[GangState],
    running: Sequence[Row],
    smaller: Sequence[Giver],
) -> tuple[list[tuple[GangState, Placement]], list[GangState]]:
    """Nodes for the starters when the victims have gone, and who those are. Where one that is owed a start finds none,
    or one of a higher priority than some that run, all that come after it are, if that is of use."""
    trial, empty = this.trial, this.trial.mark()
    found = _find(this, calendar, staying, starters, smaller)
    lowest: float = inf
    if this.policies.ordering.by_priority and not this.plan.is_cut:
        lowest = min((gang.spec.priority for _, gang in running), default=inf)
    there = {gang.id for gang, _ in found}
    missed = [gang for gang in starters if gang.id not in there]
    first = next((gang for gang in missed if gang.id in this.owed or gang.spec.priority > lowest), None)
    if first is None or not running:
        return found, victims
    trial.rollback(empty)
    known, waits_long = {gang.id for gang in victims}, first.id in this.owed
    key = _by_due(this, first) if waits_long else NOBODY

    def comes_after(row: Key, gang: GangState) -> bool:
        queue, mine, state = gang.spec.queue, first.spec.queue, this.state
        is_one = not state.quota.enforced or queue == mine  # what another queue has may be its own
        if waits_long:
            return row > key and (is_one or _compete(state, queue, mine))
        return gang.spec.priority < first.spec.priority and is_one

    gone = [gang for row, gang in running if gang.id in known or comes_after(row, gang)]
    ranked = {gang.id for gang in gone}
    gone += [gang for gang in victims if gang.id not in ranked]
    for gang in gone:
        if trial.held(gang):
            trial.hold(gang, ())
    asked = [gang for gang in starters if waits_long or gang.spec.priority >= first.spec.priority]
    rest = [giver for giver in smaller if trial.held(giver.gang)]
    again = _find(this, calendar, staying, asked, rest)
    is_found = any(gang is first for gang, _ in again)
    if is_found or (waits_long and not any(this.plan.sizes.get(gang.id) for gang in gone)):
        return again, gone
    trial.rollback(empty)
    return _find(this, calendar, staying, starters, smaller), victims


def _stays(this: Pass, gang: GangState, smaller: Sequence[Giver]) -> Placement:
    """What a victim may hold beside those who start: all of it, or as much as there is if it has a share; () for
    none. `smaller`: who has no more than that in any case."""
    trial = this.trial
    most = next((giver.size for giver in smaller if giver.gang is gang), None)
    if most is None and fits(trial, gang.spec, gang.held):
        return gang.held
    if not this.plan.sizes.get(gang.id):
        return ()
    return beside_others(trial, Giver(gang, size_of(gang.spec, gang.held) if most is None else most, gang.held))


def _become_smaller(state: State) -> dict[str, Placement]:
    """Those that were told to in an earlier pass, and to what: until they say so they hold all that they had."""
    elastic = (state.gangs[name] for name in state.elastic)
    return {
        gang.id: gang.placement
        for gang in elastic
        if gang.status is Status.RESIZING and gang.placement is not None and len(gang.held) > len(gang.placement)
    }


def _carry_out(
    this: Pass,
    calendar: Calendar,
    staying: evict.Staying,
    starters: list[GangState],
    victims: list[GangState],
    growers: Sequence[tuple[GangState, int]] = (),
    smaller: Sequence[Giver] = (),
    running: Sequence[Row] = (),
) -> dict[str, None]:
    """Find nodes for a portion of the starters, best first, and for who is to grow, on what is free, what victims
    leave, and what those let go of who become smaller; spare the victims that turn out not to matter. Where that is not
    enough for one that is owed a start, or that ranks before a lower priority, as those that may stay are in its way,
    all of the `running` that come after it are victims; of them the elastic ones that may stay as they are, or smaller.
    The next pass, at once, compares those that are left."""
    trial, state, plan = this.trial, this.state, this.plan
    mark = trial.mark()
    for gang in victims:
        trial.hold(gang, ())
    shrinking = {**_become_smaller(state), **trial.shrinking}
    for name, placement in shrinking.items():
        trial.hold(state.gangs[name], placement)
    for giver in smaller:
        trial.hold(giver.gang, keeps(*giver))
    trial.let_them_go()
    found, victims = _find_beside(this, calendar, staying, starters, victims, running, smaller)
    takers = [gang for gang, _ in found]  # and who grows
    leaving, less = list[GangState](), list[GangState]()
    for gang, target in growers if victims or smaller else ():
        with _where_they_are(trial, staying.stay_for(gang)):
            extra = None
            for size in (size for size in reversed(allowed_sizes(gang.spec)) if gang.size < size <= target):
                extra = room(trial, gang, smaller, _more(this, gang, size, calendar))
                if extra is not None:
                    break
        if extra is not None:
            trial.hold(gang, (*trial.held(gang), *extra))
            takers.append(gang)
    beside_all = staying.stay_for_each(takers)
    on_node: dict[str, dict[str, None]] = {}
    for gang in takers:
        for placed in trial.held(gang):
            on_node.setdefault(placed.node, {})[gang.id] = None
    for gang in sorted(victims, key=lambda gang: gang.id not in beside_all):  # who stays for all, then best first
        with kept(trial, [] if gang.id in beside_all else calendar.left_beside(gang, on_node)):
            stays = _stays(this, gang, smaller)
        if stays:
            trial.hold(gang, stays)
        else:
            leaving.append(gang)
        if stays and len(stays) < len(gang.held) and all(giver.gang is not gang for giver in smaller):
            less.append(gang)
    keep = {giver.gang.id: left for giver in smaller if (left := trial.held(giver.gang))}
    keep |= {gang.id: trial.held(gang) for gang in less}
    trial.rollback(mark)
    for giver in smaller:
        if giver.gang.id in keep:
            resize(this, giver.gang, keep[giver.gang.id], say("resize.beyond_share"))
    for gang in less:
        give(this, gang, keep[gang.id], next(taker for taker in takers if taker is not gang))
    before = [*shrinking, *keep, *state.vacating, *trial.leaving]
    for gang, beneficiary in [(gang, _beneficiary(this, gang, takers, on_node)) for gang in leaving]:
        if beneficiary is None:  # it is not others of ours for whom there is too little: a node was lost, say
            leaving.remove(gang)
            continue
        why = say("taken.in_queue_priority", who=workload(beneficiary.workload_id))
        evict.evict(this, gang, evict.RANK, why, beneficiary)
    names = [*(gang.id for gang in leaving), *before]
    on: dict[str, dict[str, int]] = {}  # node -> those of them that hold something on it, and their places
    for at, name in enumerate(names):
        for placed in state.gangs[name].held:
            on.setdefault(placed.node, {})[name] = at
    for gang, placement in found:
        with kept(trial, calendar.reserved(gang, size_of(gang.spec, placement))):
            may_start = fits(trial, gang.spec, placement)
        if may_start:
            this.launch(gang, placement, say("launch.ranked"))
        else:
            beside = {name: at for placed in placement for name, at in on.get(placed.node, {}).items()}
            nominate(this, gang, placement, sorted(beside, key=beside.__getitem__))
            waits = plan.nominations[gang.id].why or say("victims_leaving.unnamed")
            this.tell_alone(gang, Reason("victims_leaving", waits, (("victims", len(leaving)),)))
    return dict.fromkeys(gang.id for gang, _ in found)
