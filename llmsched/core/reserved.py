"""Which GPUs a reservation of so many takes: decided once, and kept as long as that can be.

What it takes is a fact of the journal (`decisions.Assign`). If it followed from who holds what, whoever starts, leaves
or is moved would move it, onto those for whom others have just made way; and the same one would leave again and again.
It is decided anew where it has become impossible: a node is gone, or something is there that nobody can move; and where
it finds more, or what its holder has elsewhere and nobody has to leave. Shortly before people are told to leave for it,
it goes where fewer would have to, or where it would lie if nobody held anything: each time that is strictly better for
all reservations together. From then on until its window closes it stays: or who starts on what others have just left
would move it, onto those that are to leave next. So a window tells each of its guests once. What is promised to
somebody is no part of it unless there is not enough otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from math import ceil, inf
from typing import NamedTuple

from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Reservation, Taken
from llmsched.core.presence import Presence, There
from llmsched.core.reservation import meet, window
from llmsched.core.resources import MILLI
from llmsched.core.trial import Trial

LOOKED_AT_S = 60.0  # before anybody is told to leave, besides as long as that takes


class Row(NamedTuple):
    """A reservation that matters in this pass, and what it takes: whole nodes, and of others so many GPUs each."""

    opens: float
    closes: float
    nodes: int  # mask of the nodes that are wholly reserved
    parts: tuple[tuple[str, int], ...]  # (node, whole GPUs of it)
    reservation: Reservation


def at_once(rows: list[Row], since: float = -inf) -> list[list[Row]]:
    """Which of these are open at once: for each those that are when it opens, or at `since` if it has by then. Of one
    that comes again every window counts."""

    def is_open(row: Row, other: Row) -> bool:
        if row is other:
            return True
        if row.reservation.repeat is None and other.reservation.repeat is None:
            return row.opens <= max(other.opens, since) < row.closes
        return meet(row.reservation, other.reservation)

    if len(rows) <= 1:
        return [rows] if rows else []
    return [[row for row in rows if is_open(row, other)] for other in rows]


class _Beside(NamedTuple):
    """What others take meanwhile."""

    wholly: int  # mask of nodes
    parts: dict[str, dict[str, int]]  # of nodes: by name of the reservation, of all that have anything there
    most: dict[str, int]  # GPUs of a node that are taken at once


def _beside(
    reservation: Reservation, span: tuple[float, float], rows: list[Row], is_this_time: bool = False
) -> _Beside:
    """`is_this_time`: those that come but once count for the window at hand alone, and not for later ones."""
    wholly, on = 0, dict[str, list[tuple[Row, int]]]()
    for row in rows:
        is_past = is_this_time and row.reservation.repeat is None and not (row.opens < span[1] and span[0] < row.closes)
        if meet(reservation, row.reservation) and not is_past:
            wholly |= row.nodes
            for node, count in row.parts:
                on.setdefault(node, []).append((row, count))
    since = span[0] if reservation.repeat is None else -inf
    most = {}
    for node, each in on.items():
        counts = {row.reservation.name: count for row, count in each}
        together = at_once([row for row, _ in each], since)
        most[node] = max(sum(counts[row.reservation.name] for row in those) for those in together)
    return _Beside(wholly, {node: {row.reservation.name: count for row, count in on[node]} for node in on}, most)


def taken_before(trial: Trial, reservation: Reservation) -> Taken | None:
    """What it takes as the journal, or this pass, has it."""
    taken = trial.taken.get(reservation.name) or trial.state.taken.get(reservation.name)
    return taken if taken is not None and taken.is_for(reservation) else None


def lacks(taken: Taken) -> int:
    """How many GPUs fewer it has found than were asked for."""
    return ceil(taken.gpus_milli / MILLI) - sum(count for _, count in taken.parts)


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
    state, spans = trial.state, spans_of(trial)
    is_fresh = not (
        trial.placements
        or trial.leaving
        or trial.begun
        or trial.promised
        or trial.moving
        or trial.taken
        or trial.shrinking
        or trial.withdrawn
    )
    known = (state.causes, state.places, tuple(spans.values()), _settled(trial, spans))
    memo = state.memo.get("reserved") if is_fresh else None
    if memo is not None and memo[0] == known:
        found: dict[str, Taken] = memo[1]
        return found
    found = _decided(trial, spans)
    if is_fresh:
        state.memo["reserved"] = (known, found)
    return found


Spans = dict[str, tuple[Reservation, tuple[float, float]]]


def spans_of(trial: Trial, reservations: tuple[Reservation, ...] | None = None) -> Spans:
    """The present or next window of each that is not over; of those in force, or of these."""
    those = trial.state.configuration.reservations if reservations is None else reservations
    spans = ((each, window(each, trial.now)) for each in those)
    return {each.name: (each, span) for each, span in spans if span is not None}


def looked_at_ahead_s(trial: Trial) -> float:
    """So many seconds before a window opens its reservation begins to go to where fewer would have to leave. Earlier
    who comes and goes would move it to and fro for nobody's sake; once people are told to leave for it, it stays."""
    return 2 * _grace_s(trial) + LOOKED_AT_S


def _grace_s(trial: Trial) -> float:
    """The longest of those that hold something, or begin."""
    begun = (trial.state.gangs[name].spec.grace_s for name in trial.begun)
    return max((*trial.state.ledgers.graces.values(), *begun), default=0.0)


def _settled(trial: Trial, spans: Spans) -> tuple[str, ...]:
    """Those that go nowhere for the sake of guests: they open much later, or somebody may have been told to leave."""
    if not spans:
        return ()
    is_told, is_far = trial.now + _grace_s(trial), trial.now + looked_at_ahead_s(trial)
    return tuple(name for name, (_, (opens, _)) in spans.items() if opens <= is_told or opens > is_far)


def takes(trial: Trial, spans: Spans) -> dict[str, Taken]:
    """What each of so many GPUs takes by now; of which that is not decided, what it would take."""
    before = {name: taken_before(trial, each) for name, (each, _) in spans.items() if not each.nodes}
    if None in before.values():
        return {name: before[name] or taken for name, taken in _would_take(trial, spans).items()}
    return {name: taken for name, taken in before.items() if taken is not None}


def _would_take(trial: Trial, spans: Spans) -> dict[str, Taken]:
    cases = _Cases(trial, spans)
    return cases.all(cases.kept)


def _decided(trial: Trial, spans: Spans) -> dict[str, Taken]:
    cases = _Cases(trial, spans)
    kept, anew = cases.all(cases.kept), cases.all(cases.chosen)
    if kept == anew:
        return kept

    def trouble(of: dict[str, Taken]) -> tuple[int, ...]:
        """In all; of equal ones what those have that come first."""
        rows, each = cases.fixed(), []
        for name, taken in of.items():
            each.append(_trouble(trial, taken, cases.case(name, rows)))
            rows.append(cases.row(name, taken))
        return (*map(sum, zip(*each, strict=True)), *(amount for row in each for amount in row))

    return anew if trouble(anew) < trouble(kept) else kept


class _Case(NamedTuple):
    """One reservation, what others take meanwhile, and who is there then."""

    reservation: Reservation
    beside: _Beside
    there: There


class _Cases:
    """All reservations of so many GPUs. `rows`: what others take."""

    def __init__(self, trial: Trial, spans: Spans) -> None:
        self.trial, self.spans = trial, spans
        self._settled = _settled(trial, spans)
        self._presence = Presence(trial, {name: (each, span[0]) for name, (each, span) in spans.items()})
        self._offers: dict[tuple[int, int], _Offers] = {}

    def fixed(self) -> list[Row]:
        """Those that name nodes."""
        return [self.row(name, None) for name, (each, _) in self.spans.items() if each.nodes]

    def row(self, name: str, taken: Taken | None) -> Row:
        return row_of(self.trial, *self.spans[name], taken)

    def case(self, name: str, rows: list[Row], is_this_time: bool = False) -> _Case:
        reservation, span = self.spans[name]
        beside = _beside(reservation, span, rows, is_this_time)
        return _Case(reservation, beside, self._presence.at(name, beside.parts))

    def offers(self, case: _Case) -> _Offers:
        """What nodes offer of which others take nothing."""
        key = (_open_to(self.trial, case.reservation), id(case.there))
        if key not in self._offers:
            self._offers[key] = _Offers(self.trial, key[0], case.there)
        return self._offers[key]

    def all(self, choose: Callable[[str, list[Row]], Taken]) -> dict[str, Taken]:
        """Of each in its order, which sees what those take that come before it."""
        rows, found = self.fixed(), dict[str, Taken]()
        for name, (reservation, _) in self.spans.items():
            if not reservation.nodes:
                found[name] = choose(name, rows)
                rows.append(self.row(name, found[name]))
        return found

    def chosen(self, name: str, rows: list[Row]) -> Taken:
        """What would be best for it beside those before it, and those that stay."""
        if name in self._settled:
            return self.kept(name, rows)
        return self._chosen(self.case(name, [*rows, *self._later(name, self._settled)]))

    def _chosen(self, case: _Case) -> Taken:
        return _chosen(self.trial, case, self.offers(case))

    def kept(self, name: str, rows: list[Row]) -> Taken:
        """What it took, or where it cannot have that, or others are better, those; none that others take if there are
        enough beside them. `rows`: what those take that come before it."""
        trial, reservation = self.trial, self.spans[name][0]
        later = self._later(name, self.spans)
        case = self.case(name, [*rows, *later])
        before, found = taken_before(trial, reservation), self._chosen(case)
        if before is not None and _is_possible(trial, self.case(name, rows) if later else case, before):
            if not self._is_better(name, case, found, before):
                found = before
        elif lacks(found) and later:
            found = self._chosen(self.case(name, rows))
        return self._this_time(name, rows, before, found) if lacks(found) and reservation.repeat else found

    def _is_better(self, name: str, case: _Case, found: Taken, before: Taken) -> bool:
        new, old = _trouble(self.trial, found, case), _trouble(self.trial, before, case)
        if name not in self._settled:
            return new < old
        return new.gpus < old.gpus or (new.gpus == old.gpus and not new.leave and new.theirs < old.theirs)

    def _this_time(self, name: str, rows: list[Row], before: Taken | None, found: Taken) -> Taken:
        """More than was found, if what others take once, at another time than this window, counts for nothing."""
        case = self.case(name, rows, is_this_time=True)
        more = self._chosen(case)
        if before is not None and lacks(before) <= lacks(more) and _is_possible(self.trial, case, before):
            more = before
        return more if lacks(more) < lacks(found) else found

    def _later(self, name: str, among: Collection[str]) -> list[Row]:
        """Of those of so many GPUs that come after it, and are among these, what they take already."""
        rows: list[Row] = []
        is_later = False
        for other, (reservation, _) in self.spans.items():
            is_asked = is_later and other in among and not reservation.nodes
            taken = taken_before(self.trial, reservation) if is_asked else None
            if taken is not None:
                rows.append(self.row(other, taken))
            is_later = is_later or other == name
        return rows


class _Offer(NamedTuple):
    gpus: int
    guests: int  # GPUs that these have of what is offered, and of what is not
    is_elsewhere: bool  # whether its holder runs on others

    def order(self, slot: int) -> tuple[int, ...]:
        """Most GPUs first, then those of which fewest have to be taken back, where its holder is, and the last node."""
        return -self.gpus, self.guests, self.is_elsewhere, -slot

    def trouble(self, slot: int, wanted: int) -> tuple[int, ...]:
        """Where so many are enough."""
        return max(wanted - self.gpus + self.guests, 0), self.is_elsewhere, self.gpus, -slot


def _offer(node: NodeState, there: There, others: int) -> _Offer:
    name = node.node.id
    gpus = node.total_gpus - node.foreign_gpus - ceil(there.stays(name) / MILLI) - others
    guests = there.guests.get(name, 0) + there.surplus.get(name, 0)
    return _Offer(gpus, ceil(guests / MILLI), name not in there.holders)


class _Offers:
    """What nodes offer: like ones together, the last ones first."""

    def __init__(self, trial: Trial, mask: int, there: There) -> None:
        self.mask = mask
        self.like: dict[_Offer, list[NodeState]] = {}
        for node in sorted(trial.state.capacity.nodes(mask), key=lambda node: -node.slot):
            offer = _offer(node, there, 0)
            if offer.gpus > 0:
                self.like.setdefault(offer, []).append(node)


def _chosen(trial: Trial, case: _Case, offers: _Offers) -> Taken:
    """Exactly the GPUs that were asked for, on as few nodes as possible, so that a gang of the holder fits: whole
    nodes, then a part of one. Of equal nodes first those from which the fewest GPUs must be taken back, then those
    on which its holder runs, then the last ones (packing starts at the first). What work holds that can be made
    to leave by nobody is no part of it, nor is what is promised to others, as those who leave for them would do so
    in vain: unless there is not enough otherwise. Nor is what others take of a node meanwhile. One that lacks GPUs
    closes nodes of which it could have more; one that somebody was promised only when it was made or changed after
    that, or those would have left in vain as well."""
    reservation, beside, there = case
    nodes, apart = trial.state.nodes, beside.wholly
    ahead: list[tuple[_Offer, Iterator[NodeState]]] = []
    for name, others in beside.most.items():
        node = nodes[name]
        if offers.mask >> node.slot & 1 and not apart >> node.slot & 1:
            ahead.append((_offer(node, there, others), iter((node,))))
        apart |= 1 << node.slot
    ahead += [(offer, (n for n in like if not apart >> n.slot & 1)) for offer, like in offers.like.items()]
    firsts: list[tuple[_Offer, NodeState, Iterator[NodeState]]] = []
    for offer, rest in ahead:
        if offer.gpus > 0 and (first := next(rest, None)) is not None:
            firsts.append((offer, first, rest))
    parts, left = list[tuple[str, int]](), ceil(reservation.gpus_milli / MILLI)
    while left > 0 and firsts:
        enough = [row for row in firsts if row[0].gpus >= left]
        if enough:  # the last one: whichever is least trouble
            taken = min(enough, key=lambda row: row[0].trouble(row[1].slot, left))
        else:
            taken = min(firsts, key=lambda row: row[0].order(row[1].slot))
        firsts.remove(taken)
        offer, node, rest = taken
        if (following := next(rest, None)) is not None:
            firsts.append((offer, following, rest))
        parts.append((node.node.id, min(offer.gpus, left)))
        left -= offer.gpus
    busy: list[str] = []  # nodes of which it could have more
    if left > 0:
        before = taken_before(trial, reservation)
        for node in trial.state.capacity.nodes(offers.mask & ~apart):
            name = node.node.id
            is_new = before is None or name in before.closed or not there.promised.get(name)
            if is_new and there.stays(name):
                busy.append(name)
    return Taken(reservation.gpus_milli, reservation.flavor, tuple(parts), tuple(busy))


def _open_to(trial: Trial, reservation: Reservation) -> int:
    capacity = trial.state.capacity
    of_flavor = capacity.all if reservation.flavor is None else capacity.by_flavor.get(reservation.flavor, 0)
    return of_flavor & capacity.open


def _is_possible(trial: Trial, case: _Case, taken: Taken) -> bool:
    """Whether its holder could have all of it, once all have left who may be made to."""
    reservation, beside, there = case
    nodes, of_it = trial.state.nodes, _open_to(trial, reservation) & ~beside.wholly
    for name, count in taken.parts:
        node = nodes.get(name)
        if node is None or not of_it >> node.slot & 1:
            return False
        most = node.total_gpus - node.foreign_gpus - beside.most.get(name, 0)
        if count > most - ceil(there.fixed.get(name, 0) / MILLI):
            return False
    return all(name in nodes and of_it >> nodes[name].slot & 1 and name not in beside.most for name in taken.closed)


class _Trouble(NamedTuple):
    """The less the better, by the first that differs."""

    gpus: int  # it has, negative
    leave: int  # GPUs that others would have to
    theirs: int  # GPUs of it that its holder has, negative
    nodes: int  # on which it lies,
    rest: int  # GPUs of those that it leaves,
    slots: int  # and how far at the front they are, where packing starts


def _trouble(trial: Trial, taken: Taken, case: _Case) -> _Trouble:
    """What elastic gangs would only give back is nothing: it would move whenever one grows."""
    nodes, beside, there = trial.state.nodes, case.beside, case.there
    leave, theirs, rest, slots = 0, 0, 0, 0
    for name, count in taken.parts:
        node = nodes[name]
        others = ceil((there.stays(name) + there.guests.get(name, 0)) / MILLI) + beside.most.get(name, 0)
        leave += max(0, count + others - (node.total_gpus - node.foreign_gpus))
        theirs += min(count, ceil(there.holders.get(name, 0) / MILLI))
        rest += node.total_gpus - count
        slots += node.slot
    return _Trouble(-sum(count for _, count in taken.parts), leave, -theirs, len(taken.parts), rest, -slots)
