"""Places for those who start by rank, and who leaves, or becomes smaller, for it: no more than what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf

from llmsched.core.exact_fit import fits
from llmsched.core.explain import Reason
from llmsched.core.kept_quota import Owners
from llmsched.core.message import say, workload
from llmsched.core.plan import PORTION
from llmsched.core.records import GangState, allowed_sizes, flavor_held, size_of
from llmsched.core.rules import rules_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Key
from llmsched.core.stages import evict, place
from llmsched.core.stages.backfill import Calendar, place_within
from llmsched.core.stages.beside import Before
from llmsched.core.stages.demand import MOVED_IN_VAIN
from llmsched.core.stages.grow import more
from llmsched.core.stages.lesser import Ask, Giver, beside_others, keeps, room, room_elsewhere
from llmsched.core.stages.line import by_due
from llmsched.core.stages.nominate import nominate
from llmsched.core.stages.shrink import give, resize
from llmsched.core.stages.size import choices
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.windows import kept
from llmsched.core.workload import Placement

NOBODY: Key = ((inf,),)  # ranks after everybody
LOOKS = 2  # how often a ranking counts: once more without those that find no places,
FIRST = 16  # and among how many of those that start it looks for them

Row = tuple[Key, GangState]
Again = Callable[[list[GangState]], tuple[list[GangState], list[GangState]]]


def compete(state: State, one: str, other: str) -> bool:
    return all(rules_of(state, queue).reclaim == "any" for queue in (one, other))


@contextmanager
def _where_they_are(trial: Trial, victims: Sequence[GangState], before: Before | None = None) -> Iterator[None]:
    """While it lasts those of the victims are back whose places nobody has taken yet. `before`: who would start, and
    takes no places: it is there beside them."""
    back = []
    if before is not None and victims:
        before.let_go()
    for gang in victims:
        if not trial.held(gang) and fits(trial, gang.spec, gang.held):
            trial.hold(gang, gang.held)
            back.append(gang)
    if before is not None and victims:
        before.hold_again()
    try:
        yield
    finally:
        for gang in back:
            trial.hold(gang, ())
        if before is not None and back:
            before.hold_again()


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
    before = Before(this)
    for gang in starters:
        shape = gang.shape.serial if gang.shape is not None else -1
        if shape in refused:
            continue
        if len(found) >= PORTION:
            plan.is_cut = True
            break
        before.hold_for(gang)
        stay = staying.stay_for(gang)
        fitting, is_kept_out = None, False
        with _where_they_are(trial, stay, before):
            for bundles, option in choices(plan, gang, this.state.history):
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
    before.let_go()
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
    owners, borrowers = Owners(trial), _borrowers(this, running)

    def may_take(gang: GangState) -> bool:
        is_before = gang.id in this.owed or gang.spec.priority > lowest
        return is_before or (bool(borrowers) and owners.allow(gang.spec))

    first = next(filter(may_take, missed), None)
    if first is None or not running:
        return found, victims
    trial.rollback(empty)
    known, waits_long = {gang.id for gang in victims}, first.id in this.owed
    key, owns_enough = by_due(this, first) if waits_long else NOBODY, owners.allow(first.spec)

    def comes_after(row: Key, gang: GangState) -> bool:
        queue, mine, state = gang.spec.queue, first.spec.queue, this.state
        if state.quota.enforced and queue != mine:  # what another queue has may be its own
            may = owns_enough and compete(state, queue, mine)
            return may and (gang.id in borrowers or (waits_long and row > key))
        return row > key if waits_long else gang.spec.priority < first.spec.priority

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


def _borrowers(this: Pass, running: Sequence[Row]) -> dict[str, None]:
    """Those of them, best first, that hold more than what their queue owns is enough for, beside those of it that
    stay."""
    found: dict[str, None] = {}
    state, used = this.state, dict[tuple[str, str], int]()
    if not state.quota.enforced:
        return found
    ranked = {gang.id for _, gang in running}
    gone = {*state.vacating, *this.trial.leaving}
    stay = (state.gangs[name] for name in state.holding if name not in ranked and name not in gone)
    for gang in (*stay, *(gang for _, gang in running)):
        queue, flavor = gang.spec.queue, flavor_held(state.nodes, gang.spec, gang.held)
        branch, key = state.quota.branch(queue, flavor), (queue, state.quota.row_of(queue, flavor))
        used[key] = used.get(key, 0) + gang.gpus_milli()
        if branch is not None and used[key] > branch.subtree and gang.id in ranked:
            found[gang.id] = None
    return found


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


def run(
    this: Pass,
    calendar: Calendar,
    staying: evict.Staying,
    starters: list[GangState],
    victims: list[GangState],
    growers: Sequence[tuple[GangState, int]] = (),
    smaller: Sequence[Giver] = (),
    running: Sequence[Row] = (),
    again: Again | None = None,
) -> dict[str, None]:
    """Find nodes for a portion of the starters, best first, and for who is to grow, on what is free, what victims
    leave, and what those let go of who become smaller; spare the victims that turn out not to matter. Where that is not
    enough for one that is owed a start, or that ranks before a lower priority, as those that may stay are in its way,
    all of the `running` that come after it are victims; of them the elastic ones that may stay as they are, or smaller.
    `again`: who starts and who leaves in their stead if some of the first find none, who stand before others by number
    alone. The next pass, at once, compares those that are left."""
    trial, state = this.trial, this.state
    mark = trial.mark()
    shrinking = {**_become_smaller(state), **trial.shrinking}
    for look in range(LOOKS):
        for gang in victims:
            trial.hold(gang, ())
        for name, placement in shrinking.items():
            trial.hold(state.gangs[name], placement)
        for giver in smaller:
            trial.hold(giver.gang, keeps(*giver))
        trial.let_them_go()
        found, gone = _find_beside(this, calendar, staying, starters, victims, running, smaller)
        there = {gang.id for gang, _ in found}
        missed = [gang for gang in starters[:FIRST] if gang.id not in there]
        if not missed or again is None or this.plan.is_cut or look == LOOKS - 1:
            break
        trial.rollback(mark)
        starters, victims = again(missed)
    victims = gone
    takers = [gang for gang, _ in found]
    if victims or smaller:
        takers += _grow(this, calendar, staying, growers, smaller)
    on_node: dict[str, dict[str, None]] = {}
    for gang in takers:
        for placed in trial.held(gang):
            on_node.setdefault(placed.node, {})[gang.id] = None
    leaving, less = _spare(this, calendar, victims, smaller, staying.stay_for_each(takers), on_node)
    keep = {giver.gang.id: left for giver in smaller if (left := trial.held(giver.gang))}
    keep |= {gang.id: trial.held(gang) for gang in less}
    trial.rollback(mark)
    for giver in smaller:
        if giver.gang.id in keep:
            resize(this, giver.gang, keep[giver.gang.id], say("resize.beyond_share"))
    for gang in less if takers else ():
        give(this, gang, keep[gang.id], takers[0])
    before = [*shrinking, *keep, *state.vacating, *trial.leaving]
    for gang, beneficiary in [(gang, _beneficiary(this, gang, takers, on_node)) for gang in leaving]:
        if beneficiary is None:  # it is not others of ours for whom there is too little: a node was lost, say
            leaving.remove(gang)
            continue
        why = say("taken.in_queue_priority", who=workload(beneficiary.workload_id))
        evict.evict(this, gang, evict.RANK, why, beneficiary)
    _start(this, calendar, found, leaving, before)
    return dict.fromkeys(gang.id for gang, _ in found)


def _grow(
    this: Pass,
    calendar: Calendar,
    staying: evict.Staying,
    growers: Sequence[tuple[GangState, int]],
    smaller: Sequence[Giver],
) -> list[GangState]:
    """Those of them that find something, which they hold from now on in the trial."""
    trial, found = this.trial, list[GangState]()
    for gang, target in growers:
        if not trial.held(gang):
            continue  # it is one of the victims
        extra = None
        with _where_they_are(trial, staying.stay_for(gang)):
            for size in (size for size in reversed(allowed_sizes(gang.spec)) if gang.size < size <= target):
                extra = room(trial, gang, smaller, _more(this, gang, size, calendar))
                if extra is not None:
                    break
        if extra is not None:
            trial.hold(gang, (*trial.held(gang), *extra))
            found.append(gang)
    return found


def _spare(
    this: Pass,
    calendar: Calendar,
    victims: list[GangState],
    smaller: Sequence[Giver],
    beside_all: set[str],
    on_node: dict[str, dict[str, None]],
) -> tuple[list[GangState], list[GangState]]:
    """Who has to leave, and who only to become smaller. `beside_all`: who stays where it is for all that start or grow;
    `on_node`: where these are."""
    trial, leaving, less = this.trial, list[GangState](), list[GangState]()

    def turn(gang: GangState) -> tuple[bool, bool]:
        """Who stays for all, then best first, but for those that may also become smaller."""
        return gang.id not in beside_all, bool(this.plan.sizes.get(gang.id))

    for gang in sorted(victims, key=turn):
        with kept(trial, [] if gang.id in beside_all else calendar.left_beside(gang, on_node)):
            stays = _stays(this, gang, smaller)
        if stays:
            trial.hold(gang, stays)
        else:
            leaving.append(gang)
        if stays and len(stays) < len(gang.held) and all(giver.gang is not gang for giver in smaller):
            less.append(gang)
    return leaving, less


def _is_there_elsewhere(this: Pass, calendar: Calendar, gang: GangState, placement: Placement) -> bool:
    """Whether it can begin at once on what is free, though its places are better: the next pass lets it."""
    size = size_of(gang.spec, placement)
    if not place.may_fit(this.trial, gang, size):
        return False
    with kept(this.trial, calendar.reserved(gang, size)) as reserved:
        return not isinstance(place.find(this, gang, size, ~reserved, explain=False), place.Refused)


def _start(
    this: Pass,
    calendar: Calendar,
    found: list[tuple[GangState, Placement]],
    leaving: list[GangState],
    before: list[str],
) -> None:
    """They begin, or are promised their places while these leave, and those that were told to let go `before`."""
    trial, state = this.trial, this.state
    on: dict[str, dict[str, int]] = {}  # node -> those of them that hold something on it, and their places
    for at, name in enumerate([*(gang.id for gang in leaving), *before]):
        for placed in state.gangs[name].held:
            on.setdefault(placed.node, {})[name] = at
    for gang, placement in found:
        with kept(trial, calendar.reserved(gang, size_of(gang.spec, placement))):
            may_start = fits(trial, gang.spec, placement)
        if may_start:
            this.launch(gang, placement, say("launch.ranked"))
        else:
            beside = {name: at for placed in placement for name, at in on.get(placed.node, {}).items()}
            this.plan.asks_again = this.plan.asks_again or _is_there_elsewhere(this, calendar, gang, placement)
            nominate(this, gang, placement, sorted(beside, key=beside.__getitem__))
            waits = this.plan.nominations[gang.id].why or say("victims_leaving.unnamed")
            this.tell_alone(gang, Reason("victims_leaving", waits, (("victims", len(leaving)),)))
