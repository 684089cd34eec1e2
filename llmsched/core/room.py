"""How many GPUs may be taken, by number: what others have reserved is there only for whom no reservation keeps out.

Asked by all that count before places are looked for: who is among the best by rank, what elastic gangs share, and of
what there is too little. A reservation that begins later keeps those out that would still run by then, so it is known
of a gang, not of its class, which ones keep it out (`Calendar.closed_to`). All of them together are looked at, and
each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmsched.core.records import GangState, amount_of
from llmsched.core.reservation import is_holder
from llmsched.core.reserved import Row, at_once
from llmsched.core.resources import MILLI
from llmsched.core.trial import Trial
from llmsched.core.windows import held_there, holds
from llmsched.core.workload import Placement, Workload

Closed = tuple[int, ...]  # numbers of the reservations that keep somebody out; (): none does
OPEN: Closed = ()


class Left:
    """Thousandths of GPUs, by flavor and in all. What is taken of any flavor counts in all alone."""

    __slots__ = ("by_flavor", "total")

    def __init__(self, by_flavor: dict[str | None, int], total: int | None = None) -> None:
        self.by_flavor = by_flavor
        self.total = sum(by_flavor.values()) if total is None else total

    def of(self, flavor: str | None) -> int:
        """Of a flavor; None: of any."""
        return self.total if flavor is None else min(self.total, self.by_flavor.get(flavor, 0))

    def add(self, flavor: str | None, amount: int) -> None:
        self.total += amount
        self.by_flavor[flavor] = self.by_flavor.get(flavor, 0) + amount


class Room:
    """What is free, and promised to nobody, when it is made; from then on as gangs take and leave it."""

    def __init__(self, trial: Trial, rows: list[Row], *, with_parts: bool = False) -> None:
        """`rows`: the reservations that matter, in the order of their numbers. `with_parts`: what is left of devices of
        which somebody has a part counts as well, as those may leave."""
        capacity = trial.state.capacity

        def free(mask: int) -> int:
            return capacity.free_gpus(mask) * MILLI + (capacity.parts_left(mask) if with_parts else 0)

        self.all = Left({flavor: free(mask & capacity.open) for flavor, mask in capacity.by_flavor.items()})
        self._nodes, self._rows = trial.state.nodes, rows
        self._wholly: dict[str, list[int]] = {}  # the reservations that have a node to themselves
        self._parts: dict[str, dict[int, int]] = {}  # of nodes, by number: thousandths that are reserved of it,
        self._held: dict[str, dict[tuple[int, ...], int]] = {}  # what those have there whose holders somebody is,
        self._at_once: dict[str, list[tuple[int, ...]]] = {}  # and which are open at once
        self._there: dict[str, int] = {}  # on the nodes of both
        self._taken: dict[Closed, Left] = {}  # by whom these keep out, wherever it is
        self._left: dict[Closed, Left] = {}  # cache
        for number, row in enumerate(rows):
            for node in capacity.nodes(row.nodes & capacity.open):
                self._wholly.setdefault(node.node.id, []).append(number)
            for name, count in row.parts:
                if not capacity.by_id[name].draining:
                    self._parts.setdefault(name, {})[number] = count * MILLI
        for name, parts in self._parts.items():
            self._held[name] = held_there(trial, rows, name)
            those = at_once([rows[number] for number in parts])
            self._at_once[name] = [tuple(n for n in parts if any(rows[n] is row for row in each)) for each in those]
        for name in (*self._wholly, *self._parts):
            node = capacity.by_id[name]
            self._there[name] = max(node.free_whole, 0) * MILLI + (
                capacity.parts_left(1 << node.slot) if with_parts else 0
            )

    def has(self, flavor: str | None, amount: int, closed: Closed = OPEN) -> bool:
        """Whether those that these keep out could take so much of a flavor; None: of any."""
        if amount > self.all.of(flavor):
            return False
        return not closed or all(amount <= left.of(flavor) for left in self._lefts(closed))

    def most(self, flavor: str | None, closed: Closed = OPEN) -> int:
        """How much of a flavor they could take; None: of nodes that have none."""
        return min(left.by_flavor.get(flavor, 0) for left in (self.all, *self._lefts(closed)))

    def most_in_all(self, closed: Closed = OPEN) -> int:
        return min(left.total for left in (self.all, *self._lefts(closed)))

    def take(self, flavor: str | None, amount: int, closed: Closed = OPEN) -> None:
        """One that these keep out takes it, wherever that is."""
        self.all.add(flavor, -amount)
        if not self._rows:
            return
        self._taken.setdefault(closed, Left({})).add(flavor, amount)
        for those, left in self._left.items():
            if _includes(closed, those):
                left.add(flavor, -amount)

    def leave(self, gang: GangState, placement: Placement, flavor: str | None, amount: int, sign: int = 1) -> None:
        """It leaves these places: so much of that flavor, unless they are of several. With sign -1 it takes them."""
        parts = self.by_flavor(gang.spec, placement, flavor, amount)
        for each, part in parts.items():
            self.all.add(each, sign * part)
        if not self._rows:
            return
        if self._change(gang.spec, placement, sign):
            self._left.clear()
        for left in self._left.values():
            for each, part in parts.items():
                left.add(each, sign * part)

    def stays(
        self,
        gang: GangState,
        placement: Placement,
        flavor: str | None,
        amount: int,
        parts: Sequence[tuple[str | None, int]],
    ) -> bool:
        """It takes these places again, if nobody before it has what it takes; else nothing is taken. `parts`: how much
        of each flavor that is."""
        if amount > self.all.total:
            return False
        for each, part in parts:
            if part > self.all.of(each):
                return False
        if not self._rows:
            for each, part in parts:
                self.all.add(each, -part)
            return True
        alone = [(number,) for number in range(len(self._rows))]
        before = [self.left(closed).of(flavor) for closed in alone]
        self.leave(gang, placement, flavor, amount, -1)
        for closed, were in zip(alone, before, strict=True):
            are = self.left(closed).of(flavor)
            if are < 0 and are < were:
                self.leave(gang, placement, flavor, amount)
                return False
        return True

    def by_flavor(self, spec: Workload, placement: Placement, flavor: str | None, amount: int) -> dict[str | None, int]:
        """How much of each a placement has; `flavor`: of its first bundle."""
        nodes = self._nodes
        if len(self.all.by_flavor) <= 1 or all(nodes[each.node].node.flavor == flavor for each in placement):
            return {flavor: amount}
        found: dict[str | None, int] = {}
        for placed in placement:
            here = nodes[placed.node].node.flavor
            found[here] = found.get(here, 0) + amount_of(spec, placed).gpus_milli
        return found

    def left(self, closed: Closed) -> Left:
        """What is left outside of these reservations by all those that each of them keeps out."""
        if not closed:
            return self.all
        left = self._left.get(closed)
        if left is None:
            left = self._left[closed] = Left(self.all.by_flavor.copy(), self.all.total)
            for name, there in self._there.items():
                left.add(self._nodes[name].node.flavor, -self._reserved(name, there, closed))
            for others, taken in self._taken.items():
                for flavor, amount in taken.by_flavor.items() if not _includes(others, closed) else ():
                    left.add(flavor, amount)
        return left

    def inside(self, spec: Workload, placement: Placement, closed: Closed) -> int:
        """Thousandths of GPUs of a placement that lie on nodes that one of these has to itself, or a part of, if it is
        of its holder."""
        total = 0
        for placed in placement:
            parts = (number for number in self._parts.get(placed.node, ()) if number in closed)
            holds = any(is_holder(self._rows[number].reservation, spec) for number in parts)
            if holds or _includes_one(self._wholly.get(placed.node, ()), closed):
                total += amount_of(spec, placed).gpus_milli
        return total

    def _lefts(self, closed: Closed) -> list[Left]:
        if len(closed) <= 1:
            return [self.left(closed)] if closed else []
        return [self.left(closed), *(self.left((number,)) for number in closed)]

    def _change(self, spec: Workload, placement: Placement, sign: int) -> bool:
        """Note what is there on nodes of which something is reserved; False: it touches none of them."""
        touched = False
        for placed in placement:
            if placed.node in self._there:
                touched = True
                amount = sign * amount_of(spec, placed).gpus_milli
                self._there[placed.node] += amount
                if placed.node in self._parts and (numbers := holds(self._rows, spec)):
                    held = self._held[placed.node]
                    held[numbers] = held.get(numbers, 0) - amount
        return touched

    def _reserved(self, name: str, there: int, closed: Closed) -> int:
        """Of what is there on a node."""
        if _includes_one(self._wholly.get(name, ()), closed):
            return there
        unused = [self._unused(name, [n for n in each if n in closed]) for each in self._at_once.get(name, ())]
        return min(there, max(unused, default=0))

    def _unused(self, name: str, numbers: list[int]) -> int:
        """What is reserved for these, and their holders have not taken; who is the holder of several has it once."""
        rests = {number: self._parts[name][number] for number in numbers}
        for holders, held in sorted(self._held[name].items(), key=lambda row: (len(row[0]), row[0])):
            left = held
            for number in holders:
                theirs = min(left, rests.get(number, 0))
                left -= theirs
                if number in rests:
                    rests[number] -= theirs
        return sum(rests.values())


def _includes(closed: Closed, others: Closed) -> bool:
    return all(number in closed for number in others)


def _includes_one(numbers: Iterable[int], closed: Closed) -> bool:
    return any(number in closed for number in numbers)
