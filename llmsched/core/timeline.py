"""Who lets go when: the ends of all who hold something, soonest first, and the world as it is after each of them.

One timeline serves everybody whose start is planned while a trial stands as it does. It is read as far as somebody
needs, and the world goes from one moment to another by what lies between them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from heapq import merge
from math import inf
from typing import NamedTuple

from llmsched.core.capacity import Capacity
from llmsched.core.records import GangState, gpus_of, size_of
from llmsched.core.resources import MILLI
from llmsched.core.run_times import LEAST_S, longest_s, presumed_end, presumed_s, runtime_s
from llmsched.core.trial import Trial, Without
from llmsched.core.workload import Placement

MOMENTS_TRIED = (
    64  # at which places are looked for, one after the other: when those were in vain, ever more are left out
)
READ_AT_ONCE = 32  # ends, and then twice as many


class Moment(NamedTuple):
    """A time at which something ends. `gone`: how many have let go by then; `milli`: thousandths of GPUs that are free
    on the nodes in question."""

    at: float
    gone: int
    milli: int
    by_window: bool


class Timeline:
    """`world`: a trial without those that have let go by a moment."""

    def __init__(self, world: Without, presumed: list[tuple[float, str, bool]]) -> None:
        self.world = world
        world.presumed_ends = presumed
        self.ends: list[tuple[float, GangState, bool]] = []  # as `_ends` says, as far as it was read
        self._rest = _ends(world)
        self._following = next(self._rest, None)
        self._times: list[float] = []  # at which somebody lets go,
        self._gone: list[int] = []  # and how many have by then
        self._chunk = READ_AT_ONCE
        self._freed: dict[int, _Freed] = {}
        capacity = world.state.capacity
        self._free = {0: capacity.by_free.copy()}  # nodes by their free GPUs, when so many have let go
        shared = capacity.nodes(capacity.shared)
        self._slack = [(1 << node.slot, sum(MILLI - taken for taken in node.shares.values())) for node in shared]

    def read(self) -> bool:
        """Some more of the ends. False: there are none."""
        if self._following is None:
            return False
        row, read = self.world.row, 0
        while self._following is not None and read < self._chunk:
            at = self._following[0]
            while self._following is not None and self._following[0] <= at:
                self.ends.append(self._following)
                row.append((self._following[1], self.world.held(self._following[1])))
                self._following = next(self._rest, None)
                read += 1
            self._times.append(at)
            self._gone.append(len(row))
        self._chunk *= 2
        return True

    def all_ends(self) -> Iterator[tuple[float, GangState, bool]]:
        number = 0
        while number < len(self.ends) or self.read():
            yield self.ends[number]
            number += 1

    def last(self, gone: int) -> GangState | None:
        """The last one of the first so many."""
        return self.ends[gone - 1][1] if gone else None

    def is_presumed(self, gone: int) -> bool:
        """Whether it is presumed of one of the first so many when they let go."""
        return any(presumed for _, _, presumed in self.ends[:gone])

    def moments(self, mask: int, need: int, others: list[float], is_bounded: bool) -> Iterator[Moment]:
        """From now on those at which so many thousandths of GPUs are free on the nodes of a mask; all, or where the
        number `is_bounded` ever fewer of them. `others`: further times, of promises and windows, soonest first."""
        times, now = self._times, self.world.now
        freed = self._freed.get(mask)
        if freed is None:
            freed = self._freed[mask] = _Freed(self, mask)
        at = freed.first(need)
        if at is None:
            return
        other = bisect_left(others, times[at - 1]) if at else 0
        at = max(at - 1, 0)  # so many of `times`, and of the `others`, are past
        tried = 0
        while (step := self._step(at, other, others)) is not None:
            is_other = step[2] > other
            moment, at, other = step
            yield Moment(moment, self._gone[at - 1] if at else 0, freed.after(at), is_other and moment > now)
            tried += 1
            if is_bounded and tried > MOMENTS_TRIED:
                at, other = self._leave_out(1 << tried - MOMENTS_TRIED, at, other, others)

    def _step(self, at: int, other: int, others: list[float]) -> tuple[float, int, int] | None:
        """The next moment, and where it leads; None: there is none."""
        moment = self._times[at] if at < len(self._times) or self.read() else inf
        if other < len(others) and others[other] <= moment:
            return others[other], at + (others[other] == moment), other + 1
        return (moment, at + 1, other) if moment < inf else None

    def _leave_out(self, number: int, at: int, other: int, others: list[float]) -> tuple[int, int]:
        """Where it goes on behind so many, but for the last one of all."""
        while other < len(others) and number:
            step = self._step(at, other, others)
            if step is None or self._step(*step[1:], others) is None:
                return at, other
            (_, at, other), number = step, number - 1
        while at + number >= len(self._times) and self.read():
            pass
        return max(at, min(at + number, len(self._times) - 1)), other

    def go_to(self, gone: int) -> Without:
        """The world when so many have let go."""
        self.world.stand_at(gone)
        if gone not in self._free:
            self._free[gone] = self.world.state.capacity.by_free.copy()
        return self.world

    def has_room(self, gone: int, mask: int, whole: int, count: int, taken: Mapping[int, int]) -> bool:
        """Whether so many bundles of `whole` GPUs each may find nodes of the mask then, going by free GPUs alone.
        `taken`: how many of them others take by then, by the bit of the node."""
        if gone not in self._free:
            self.go_to(gone)
        free = self._free[gone]
        for gpus in range(len(free) - 1, whole - 1, -1):
            if found := free[gpus] & mask:
                count -= gpus // whole * found.bit_count()
                for bit, less in taken.items():
                    if found & bit:
                        count += gpus // whole - max(gpus - less, 0) // whole
                if count <= 0:
                    return True
        return count <= 0

    def free_now(self, mask: int) -> int:
        """Thousandths of GPUs that are free on nodes of a mask before anybody has let go."""
        whole = sum(gpus * (found & mask).bit_count() for gpus, found in enumerate(self._free[0]))
        return whole * MILLI + sum(milli for bit, milli in self._slack if bit & mask)


class _Freed:
    """How many thousandths of GPUs are free on the nodes of a mask after each time of a timeline."""

    def __init__(self, timeline: Timeline, mask: int) -> None:
        self._timeline, self._mask = timeline, mask
        self._read = 0
        self._milli = [timeline.free_now(mask)]

    def after(self, times: int) -> int:
        """When so many times have passed."""
        while len(self._milli) <= times:
            self._count()
        return self._milli[times]

    def first(self, need: int) -> int | None:
        """How many times must have passed for so much to be free; None: that is never so."""
        while self._milli[-1] < need:
            if len(self._milli) > len(self._timeline._times) and not self._timeline.read():
                return None
            self._count()
        return bisect_left(self._milli, need)

    def _count(self) -> None:
        timeline, milli = self._timeline, self._milli[-1]
        for gang, placement in timeline.world.row[self._read : timeline._gone[len(self._milli) - 1]]:
            milli += gpus_on(timeline.world.state.capacity, gang, placement, self._mask)
        self._read = timeline._gone[len(self._milli) - 1]
        self._milli.append(milli)


def gpus_on(capacity: Capacity, gang: GangState, held: Placement, mask: int) -> int:
    """Thousandths of GPUs that a gang has on the nodes of a mask, what it takes beyond its own among them."""
    if not held:
        return 0
    nodes, beyond = capacity.by_id, 0
    if gang.excess:
        beyond = sum(used.gpus_milli for node, used in gang.excess if mask >> nodes[node].slot & 1)
    if mask == capacity.all:
        return gpus_of(gang.spec, held) + beyond
    inside = tuple(placed for placed in held if mask >> nodes[placed.node].slot & 1)
    return gpus_of(gang.spec, inside) + beyond


def _ends(trial: Trial) -> Iterator[tuple[float, GangState, bool]]:
    """(when it lets go, gang, whether that is presumed) of everybody who ever does, soonest first."""
    state = trial.state
    now = trial.now
    gangs = state.gangs
    started = []
    for name, placement in trial.placements.items():
        if placement and name not in state.holding:
            other = gangs[name]
            is_known = runtime_s(state, other, size_of(other.spec, placement), placement) < inf
            started.append((now + presumed_s(state, other, placement), name, not is_known))
    for name in dict.fromkeys((*state.vacating, *trial.leaving)):
        if trial.held(gangs[name]):
            yield now, gangs[name], False
    known = ((end if end > now else now + 1.0, name, False) for end, name in state.ends.soonest)
    for end, name, presumed in merge(known, sorted(started), presumed_ends(trial)):
        other = gangs[name]
        if end < inf and name not in trial.leaving and name not in state.vacating and trial.held(other):
            yield end, other, presumed


def presumed_ends(trial: Trial) -> list[tuple[float, str, bool]]:
    """Of those who hold something, and of whom no end is known: soonest first. They do not change in a pass."""
    if trial.presumed_ends is None:
        state, known, longest = trial.state, trial.state.ends.of, longest_s(trial.state)
        found, gangs, now, soonest = [], state.gangs, state.now, state.now + LEAST_S
        for name in state.holding:
            if name in known or name in state.vacating:
                continue
            gang = gangs[name]
            begun = gang.launched_at
            if begun is not None and now - begun < longest and gang.spec.kind != "serve":
                end = max(begun + longest, soonest)  # what `presumed_end` says, for thousands
            else:
                end = presumed_end(state, gang)
            found.append((end, name, True))
        found.sort()
        trial.presumed_ends = found
    return trial.presumed_ends
