"""Which of its GPUs an elastic gang lets go of, and for whom: the one place that says so.

For a gang that waits or grows (`room`, `give_up`, `give_back`) each lets go of its highest ranks at first. Where that
leaves no room, a place is looked for as if those that have a choice held nothing, and each of them keeps what it must
beside that place. So who counts what could start (demand.py), who makes the room (shrink.py, preempt.py) and who gives
by rank (rank.py) find the same, nobody waits for room that was never looked for, and nobody leaves who need not.

For nodes (`keeps`), and for nobody that is known yet: what lies on those goes first, then what others have reserved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from llmsched.core.exact_fit import fits, fits_exactly
from llmsched.core.records import GangState, allowed_sizes, amount_of, size_of
from llmsched.core.stages.place import Refused
from llmsched.core.trial import Trial
from llmsched.core.workload import Placed, Placement

PLACES = 8  # looked at beside which those that have a choice might keep what they must

Ask = Callable[[int], Placement | Refused]  # where somebody would be, on nodes of a mask


class Giver(NamedTuple):
    """An elastic gang, the size that it may be brought to, and what it keeps of."""

    gang: GangState
    size: int
    standing: Placement

    def has_choice(self) -> bool:
        """Whether what it lets go of may lie on several nodes, or on several devices of which it has parts."""
        gang, elastic = self.gang, self.gang.spec.groups[0].name
        if self.size >= size_of(gang.spec, self.standing):
            return False
        return len({(each.node, each.gpu_index) for each in self.standing if each.group == elastic}) > 1


def keeps(gang: GangState, size: int, placement: Placement, *off: Iterable[str]) -> Placement:
    """What it keeps of a placement at a smaller size. `off`: what lies on nodes of the first goes first, then on those
    of the second; of equals the highest ranks."""
    turn = {node: number for number, nodes in reversed([*enumerate(off)]) for node in nodes}
    return _without(gang, size, placement, [turn.get(placed.node, len(off)) for placed in placement] if turn else ())


def _without(gang: GangState, size: int, placement: Placement, order: Sequence[int]) -> Placement:
    """The bundles with the smallest number of `order` (one for each rank) go first, of equals those of the highest
    ranks. Of a Ray program the first bundle goes last: the program runs there, and would have to begin again."""
    elastic = gang.spec.groups[0].name
    ranks = [rank for rank, placed in enumerate(placement) if placed.group == elastic]
    head = ranks[0] if ranks and gang.spec.kind == "ray" else None
    ranks.sort(key=lambda rank: (rank == head, order[rank] if order else 0, -rank))
    gone = dict.fromkeys(ranks[: size_of(gang.spec, placement) - size])
    return tuple(placed for rank, placed in enumerate(placement) if rank not in gone)


def give_up(trial: Trial, gang: GangState, giver: Giver, ask: Ask) -> Placement | None:
    """Make one giver as much smaller as it takes for a gang, and leave it at its smallest if that is not
    enough yet."""
    spec, mark = giver.gang.spec, trial.mark()
    now = size_of(spec, giver.standing)

    def at(size: int) -> Placement | None:
        trial.hold(giver.gang, keeps(giver.gang, size, giver.standing))
        return room(trial, gang, [giver._replace(size=size)], ask)

    found = at(giver.size)
    for size in reversed(allowed_sizes(spec)) if found is not None else ():
        if giver.size <= size < now:
            trial.rollback(mark)
            found = at(size)
            if found is not None:
                break
    return found


def give_back(trial: Trial, gang: GangState, giver: Giver, ask: Ask) -> Placement | None:
    """Let one giver keep as much as the others leave to it; None: it keeps what it has."""
    spec, now = giver.gang.spec, size_of(giver.gang.spec, trial.held(giver.gang))
    most = size_of(spec, giver.standing)
    for size in (most, *(each for each in reversed(allowed_sizes(spec)) if now < each < most)):
        mark = trial.mark()
        trial.hold(giver.gang, keeps(giver.gang, size, giver.standing))
        found = room(trial, gang, [giver._replace(size=size)], ask)
        if found is not None:
            return found
        trial.rollback(mark)
    return None


def beside_others(trial: Trial, giver: Giver) -> Placement:
    """The most that one who holds nothing as yet, and may be brought to that size, could keep of what is its own beside
    all others; () if that is less than its least."""
    gang, order = giver.gang, _order(trial, giver, ())
    for size in reversed(allowed_sizes(gang.spec)):
        if size <= giver.size:
            kept = _without(gang, size, giver.standing, order)
            if fits(trial, gang.spec, kept):
                return kept
    return ()


def room(trial: Trial, gang: GangState, givers: Iterable[Giver], ask: Ask) -> Placement | None:
    """Where a gang would be when these, who hold what they keep at first, have become smaller. They hold what they
    keep for that then; if there is no such place, the same as before."""
    found = ask(-1)
    if not isinstance(found, Refused):
        return found
    free = [giver for giver in givers if giver.has_choice()]
    return room_elsewhere(trial, gang, free, ask) if free else None


def room_elsewhere(trial: Trial, gang: GangState, free: list[Giver], ask: Ask) -> Placement | None:
    """The same of those that have a choice, where what each would let go of first is not enough."""
    there: dict[str, dict[str, Giver]] = {}
    for giver in free:
        for placed in trial.held(giver.gang):
            there.setdefault(placed.node, {})[giver.gang.id] = giver
    mark = trial.mark()
    for giver in free:
        trial.hold(giver.gang, ())
    wanted, keeps = _wanted(trial, gang, there, ask)
    trial.rollback(mark)
    if not wanted:
        return None
    for giver, kept in keeps:
        trial.hold(giver.gang, kept)
    found = ask(-1)
    if isinstance(found, Refused) and found.code == "quota":
        flavors = {_flavor(trial, placed) for placed in wanted}
        rest = [giver for giver in free if any(_flavor(trial, placed) in flavors for placed in trial.held(giver.gang))]
        for giver, kept in _keep_beside(trial, gang, wanted, rest)[0]:
            trial.hold(giver.gang, kept)
        found = ask(-1)
    if not isinstance(found, Refused):
        return found
    trial.rollback(mark)
    return None


def _wanted(
    trial: Trial, gang: GangState, there: dict[str, dict[str, Giver]], ask: Ask
) -> tuple[Placement, list[tuple[Giver, Placement]]]:
    """A place beside which those that have something there, and hold nothing meanwhile, can keep what they must, and
    what they keep; () where none is found. `there`: who has something, by node."""

    def keep_beside(place: Placement) -> tuple[list[tuple[Giver, Placement]], dict[str, None]]:
        concerned = {name: giver for placed in place for name, giver in there.get(placed.node, {}).items()}
        return _keep_beside(trial, gang, place, [*concerned.values()])

    only = -1
    for _ in range(PLACES):
        wanted = ask(only)
        if isinstance(wanted, Refused):
            break
        keeps, tight = keep_beside(wanted)
        if not tight:
            return wanted, keeps
        mark = trial.mark()
        for giver, kept in keeps:  # a part of the gang may have to be elsewhere
            trial.hold(giver.gang, kept)
        other = ask(only)
        trial.rollback(mark)
        if not isinstance(other, Refused):
            keeps, others = keep_beside(other)
            if not others:
                return other, keeps
        here = {placed.node for placed in wanted}
        for name in here & tight.keys() or here:
            only &= ~(1 << trial.state.nodes[name].slot)
    return (), []


def _keep_beside(
    trial: Trial, gang: GangState, wanted: Placement, givers: list[Giver]
) -> tuple[list[tuple[Giver, Placement]], dict[str, None]]:
    """What these keep beside a gang on a wanted place, and the nodes on which that is too much."""
    keeps, tight, mark = [], dict[str, None](), trial.mark()
    for giver in givers:
        trial.hold(giver.gang, ())
    trial.state.ledgers.charge(gang, wanted, 1, promise=True)
    for giver in givers:
        order = _order(trial, giver, wanted)
        kept = _without(giver.gang, giver.size, giver.standing, order)
        fit = Counter(placed.node for placed, number in zip(giver.standing, order, strict=True) if number)
        tight.update((name, None) for name, count in Counter(each.node for each in kept).items() if count > fit[name])
        trial.hold(giver.gang, kept)
        keeps.append((giver, kept))
    trial.state.ledgers.charge(gang, wanted, -1, promise=True)
    trial.rollback(mark)
    return keeps, tight


def _order(trial: Trial, giver: Giver, wanted: Placement) -> list[int]:
    """For `_without`, of one that holds nothing as yet: 0 for what does not fit beside the wanted place, 1 for what
    does on its nodes, 2 for what is of its flavors, else 3."""
    spec, elastic, capacity = giver.gang.spec, giver.gang.spec.groups[0].name, trial.state.capacity
    nodes, flavors = {placed.node for placed in wanted}, {_flavor(trial, placed) for placed in wanted}

    def turn(rank: int) -> tuple[bool, bool, int, int]:
        """Who must stay comes first, then what lies on devices of which others have parts, device by device."""
        placed = giver.standing[rank]
        is_untouched = placed.gpu_index not in trial.state.nodes[placed.node].shares
        return placed.group == elastic, is_untouched, placed.gpu_index, rank

    order = [3] * len(giver.standing)
    taken = []
    for rank in sorted(range(len(giver.standing)), key=turn):
        placed = giver.standing[rank]
        if placed.group == elastic and not fits_exactly(trial, spec, (placed,)):
            order[rank] = 0
            continue
        if placed.node in nodes:
            order[rank] = 1
        elif _flavor(trial, placed) in flavors:
            order[rank] = 2
        taken.append((placed.node, amount_of(spec, placed), placed.gpu_index))
        capacity.change(*taken[-1], 1)
    for each in reversed(taken):
        capacity.change(*each, -1)
    return order


def _flavor(trial: Trial, placed: Placed) -> str | None:
    return trial.state.nodes[placed.node].node.flavor
