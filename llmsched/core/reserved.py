"""Which GPUs a reservation of so many takes: decided once, and kept as long as that can be.

What it takes is a fact of the journal (`decisions.Assign`). If it followed from who holds what, whoever starts, leaves
or is moved would move it, onto those for whom others have just made way; and the same one would leave again and again.
It is decided anew where it has become impossible: a node is gone, or something is there that nobody can move; and where
fewer would have to leave for it, more of it is what its holder has, or it would lie there if nobody held anything:
each time that is strictly better for all reservations together. What is promised to somebody is no part of it unless
there is not enough otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Reservation, Taken
from llmsched.core.records import GangState, amount_of, expected_end, size_of
from llmsched.core.reservation import is_holder, is_immovable, window
from llmsched.core.resources import MILLI
from llmsched.core.run_times import runtime_s
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement


class Row(NamedTuple):
    """A reservation that matters in this pass, and what it takes: whole nodes, and of others so many GPUs each."""

    opens: float
    closes: float
    nodes: int  # mask of the nodes that are wholly reserved
    parts: tuple[tuple[str, int], ...]  # (node, whole GPUs of it)
    reservation: Reservation


class _There(NamedTuple):
    """Who will be there when it opens: by node, in thousandths."""

    fixed: dict[str, int]  # what stays of others,
    promised: dict[str, int]  # what others go to,
    guests: dict[str, int]  # what would have to leave,
    holders: dict[str, int]  # and what its holder has

    def stays(self, node: str) -> int:
        return self.fixed.get(node, 0) + self.promised.get(node, 0)


def taken_before(trial: Trial, reservation: Reservation) -> Taken | None:
    """What it takes as the journal, or this pass, has it."""
    taken = trial.taken.get(reservation.name) or trial.state.taken.get(reservation.name)
    return taken if taken is not None and taken.is_for(reservation) else None


def row_of(trial: Trial, reservation: Reservation, span: tuple[float, float], taken: Taken | None) -> Row:
    """`taken`: what one of so many GPUs takes."""
    mask, parts, nodes = 0, [], trial.state.nodes
    for node in nodes.values() if reservation.nodes else ():
        if node.node.id in reservation.nodes or node.node.name in reservation.nodes:
            mask |= 1 << node.slot
    for name, count in taken.parts if taken is not None else ():
        if (found := nodes.get(name)) is not None and count == found.total_gpus:
            mask |= 1 << found.slot
        elif found is not None:
            parts.append((name, count))
    for name in taken.closed if taken is not None else ():
        if name in nodes:
            mask |= 1 << nodes[name].slot
    return Row(*span, mask, tuple(parts), reservation)


def decided(trial: Trial) -> dict[str, Taken]:
    """What each of so many GPUs takes from now on: what it took, unless it has to be, or would be better, elsewhere."""
    there: dict[str, _There] = {}
    kept, anew = _all(trial, _kept_by, there), _all(trial, chosen, there)
    if kept == anew:
        return kept

    def trouble(of: dict[str, Taken]) -> tuple[int, ...]:
        """In all; of equal ones what those have that come first."""
        each = [_trouble(trial, taken, there[name]) for name, taken in of.items()]
        return (*map(sum, zip(*each, strict=True)), *(amount for row in each for amount in row))

    return anew if trouble(anew) < trouble(kept) else kept


Choose = Callable[[Trial, Reservation, tuple[float, float], list[Row], _There], Taken]


def _all(trial: Trial, choose: Choose, there: dict[str, _There]) -> dict[str, Taken]:
    """`there`: who is there for each, as far as it is known."""
    rows: list[Row] = []
    found: dict[str, Taken] = {}
    for reservation in trial.state.configuration.reservations:
        span = window(reservation, trial.now)
        if span is not None and not reservation.nodes:
            if reservation.name not in there:
                there[reservation.name] = _there(trial, reservation, span[0])
            found[reservation.name] = choose(trial, reservation, span, rows, there[reservation.name])
        if span is not None:
            rows.append(row_of(trial, reservation, span, found.get(reservation.name)))
    return found


def _kept_by(
    trial: Trial, reservation: Reservation, span: tuple[float, float], rows: list[Row], there: _There
) -> Taken:
    """What it took, or where it cannot have that, or others are better, those; none that others take if there are
    enough beside them. `rows`: what those take that come before it."""
    before = taken_before(trial, reservation)
    later = _of_later_ones(trial, reservation)
    found = chosen(trial, reservation, span, [*rows, *later], there)
    if before is not None and _is_possible(trial, reservation, span, before, rows, there):
        return found if _trouble(trial, found, there) < _trouble(trial, before, there) else before
    is_all = sum(count for _, count in found.parts) * MILLI >= reservation.gpus_milli
    return found if is_all or not later else chosen(trial, reservation, span, rows, there)


def chosen(
    trial: Trial, reservation: Reservation, span: tuple[float, float], rows: list[Row], there: _There | None = None
) -> Taken:
    """Exactly the GPUs that were asked for, on as few nodes as possible, so that a gang of the holder fits: whole
    nodes, then a part of one. Of equal nodes first those from which the fewest GPUs must be taken back, then those
    on which its holder runs, then the last ones (packing starts at the first). What work holds that can be made
    to leave by nobody is no part of it, nor is what is promised to others, as those who leave for them would do so
    in vain: unless there is not enough otherwise. None of it is on nodes of which `rows` take something meanwhile."""
    there, barred = there or _there(trial, reservation, span[0]), _barred(trial, span, rows)
    offers: list[tuple[int, NodeState]] = []
    busy: list[str] = []  # nodes of which it could have more
    for node in trial.state.capacity.nodes(_open_to(trial, reservation) & ~barred):
        stays = there.stays(node.node.id)
        offer = node.total_gpus - node.foreign_gpus - ceil(stays / MILLI)
        if offer > 0:
            offers.append((offer, node))
        if stays:
            busy.append(node.node.id)

    def trouble(row: tuple[int, NodeState], left: int) -> tuple[int, bool, int, int]:
        offer, node = row
        leave = left - offer + ceil(there.guests.get(node.node.id, 0) / MILLI)
        return max(leave, 0), node.node.id not in there.holders, offer, -node.slot

    offers.sort(key=lambda row: (-row[0], trouble(row, row[0])))
    parts, left = [], ceil(reservation.gpus_milli / MILLI)
    for number, row in enumerate(offers):
        if left <= 0:
            break
        if row[0] >= left:  # the last one: whichever is least trouble
            row = min((each for each in offers[number:] if each[0] >= left), key=lambda each: trouble(each, left))
        offer, node = row
        parts.append((node.node.id, min(offer, left)))
        left -= offer
    return Taken(reservation.gpus_milli, reservation.flavor, tuple(parts), tuple(busy) if left > 0 else ())


def _open_to(trial: Trial, reservation: Reservation) -> int:
    capacity = trial.state.capacity
    of_flavor = capacity.all if reservation.flavor is None else capacity.by_flavor.get(reservation.flavor, 0)
    return of_flavor & capacity.open


def _barred(trial: Trial, span: tuple[float, float], rows: list[Row]) -> int:
    """Nodes of which these have anything meanwhile."""
    mask = 0
    for row in rows:
        if span[1] > row.opens and (span[0] < row.closes or row.reservation.repeat is not None):
            mask |= row.nodes
            for name, _ in row.parts:
                mask |= 1 << trial.state.nodes[name].slot
    return mask


def _of_later_ones(trial: Trial, reservation: Reservation) -> list[Row]:
    """Of those of so many GPUs that come after it what they take already."""
    rows: list[Row] = []
    is_later = False
    for other in trial.state.configuration.reservations:
        span = window(other, trial.now) if is_later else None
        if span is not None and (taken := taken_before(trial, other)) is not None:
            rows.append(row_of(trial, other, span, taken))
        is_later = is_later or other is reservation
    return rows


def _is_possible(
    trial: Trial,
    reservation: Reservation,
    span: tuple[float, float],
    taken: Taken,
    rows: list[Row],
    there: _There,
) -> bool:
    """Whether its holder could have all of it, once all have left who may be made to."""
    nodes, of_it = trial.state.nodes, _open_to(trial, reservation) & ~_barred(trial, span, rows)
    for name, count in taken.parts:
        node = nodes.get(name)
        if node is None or not of_it >> node.slot & 1:
            return False
        if count > node.total_gpus - node.foreign_gpus - ceil(there.fixed.get(name, 0) / MILLI):
            return False
    return all(name in nodes and of_it >> nodes[name].slot & 1 for name in taken.closed)


def _trouble(trial: Trial, taken: Taken, there: _There) -> tuple[int, ...]:
    """The less the better: GPUs that it lacks, that others would have to leave, and that its holder has elsewhere; on
    how many nodes it lies, what is left of those, and how far at the front they are, where packing starts."""
    nodes, leave, theirs, rest, slots = trial.state.nodes, 0, 0, 0, 0
    for name, count in taken.parts:
        node = nodes[name]
        others = ceil((there.stays(name) + there.guests.get(name, 0)) / MILLI)
        leave += max(0, count + others - (node.total_gpus - node.foreign_gpus))
        theirs += min(count, ceil(there.holders.get(name, 0) / MILLI))
        rest += node.total_gpus - count
        slots += node.slot
    return -sum(count for _, count in taken.parts), leave, -theirs, len(taken.parts), rest, -slots


def _ends_at(trial: Trial, gang: GangState) -> float:
    placement = trial.begun.get(gang.id)
    if placement is None:
        return expected_end(gang)
    return trial.now + runtime_s(trial.state, gang, size_of(gang.spec, placement), placement)


def _promised(trial: Trial) -> list[tuple[GangState, Placement]]:
    """Where those go who were promised places, and those for whom places are kept while they leave others."""
    state = trial.state
    found = [(state.gangs[name], state.gangs[name].goes_to) for name in state.moved]
    for name in state.nominated:
        gang = state.gangs[name]
        if (nomination := trial.nomination(gang)) is not None:
            found.append((gang, nomination.placement))
    decided = (*trial.moving.items(), *trial.promised.items())
    found += [(state.gangs[name], placement) for name, placement in decided]
    return [(gang, placement) for gang, placement in found if gang.id not in trial.begun]


def _there(trial: Trial, reservation: Reservation, opens: float) -> _There:
    found = _There({}, {}, {}, {})

    def add(of: dict[str, int], gang: GangState, placement: Placement) -> None:
        for placed in placement:
            of[placed.node] = of.get(placed.node, 0) + amount_of(gang.spec, placed).gpus_milli

    for gang, placement in _promised(trial):
        if not is_holder(reservation, gang.spec):
            add(found.promised, gang, placement)
    for name in dict.fromkeys((*trial.state.holding, *trial.begun)):
        gang = trial.state.gangs[name]
        if gang.status is Status.VACATING or name in trial.leaving:
            continue
        if is_holder(reservation, gang.spec):
            add(found.holders, gang, trial.held(gang))
        elif _ends_at(trial, gang) > opens:
            stays = is_immovable(reservation, gang, opens)
            add(found.fixed if stays else found.guests, gang, trial.held(gang))
    return found
