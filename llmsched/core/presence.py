"""Who is there when reservations open: of each node what stays there of others, what would have to leave, and what the
holder has. Looked for once, for all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from llmsched.core.configuration import Reservation
from llmsched.core.records import GangState, expected_end, size_of, weigh
from llmsched.core.reservation import is_holder
from llmsched.core.resources import MILLI
from llmsched.core.run_times import runtime_s
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.workload import Placed, Placement

FIXED, PROMISED, GUEST, SURPLUS = range(4)


class There(NamedTuple):
    """By node, in thousandths. What holders of others have of what is theirs is no part of it."""

    fixed: dict[str, int]  # what stays of others,
    promised: dict[str, int]  # what others go to,
    guests: dict[str, int]  # what would have to leave,
    surplus: dict[str, int]  # what elastic gangs would only give back,
    holders: dict[str, int]  # and what its holder has

    def stays(self, node: str) -> int:
        return self.fixed.get(node, 0) + self.promised.get(node, 0)


class _Bunch(NamedTuple):
    """Gangs that are the same to all reservations."""

    holds: int  # mask of the reservations of which they are the holder
    outlast: int  # how many of the moments at which reservations open they outlast, the soonest first
    kind: int  # FIXED, PROMISED, GUEST or SURPLUS
    by_node: dict[str, int]


class Presence:
    def __init__(self, trial: Trial, opens: Mapping[str, tuple[Reservation, float]]) -> None:
        """`opens`: by name of the reservation."""
        self._numbers = {name: number for number, name in enumerate(opens)}
        self._reservations = [reservation for reservation, _ in opens.values()]
        self._moments = sorted({at for _, at in opens.values()})
        self._opens = {name: at for name, (_, at) in opens.items()}
        self._masks: dict[tuple[str, str], int] = {}  # by queue and user,
        self._holders = 0  # and all of them
        self._bunches: dict[tuple[int, int, int], _Bunch] = {}
        self._found: dict[tuple[object, ...], There] = {}
        for gang, placement in _promised(trial):
            self._add(trial, gang, placement, len(self._moments), PROMISED)
        for name in dict.fromkeys((*trial.state.holding, *trial.begun)):
            gang = trial.state.gangs[name]
            if gang.status is not Status.VACATING and name not in trial.leaving:
                outlast = bisect_left(self._moments, _ends_at(trial, gang))
                is_told = gang.status is Status.RESIZING or name in trial.shrinking  # what it gives back is not there
                held = trial.standing(gang) if is_told else trial.held(gang)
                if not gang.spec.preemptible:
                    self._add(trial, gang, held, outlast, FIXED)
                    continue
                least, surplus = _parted(gang, held)
                self._add(trial, gang, least, outlast, GUEST)
                if surplus:
                    self._add(trial, gang, surplus, outlast, SURPLUS)

    def _add(self, trial: Trial, gang: GangState, placement: Placement, outlast: int, kind: int) -> None:
        whose = (gang.spec.queue, gang.spec.user)
        holds = self._masks.get(whose)
        if holds is None:
            holds = 0
            for number, reservation in enumerate(self._reservations):
                holds |= is_holder(reservation, gang.spec) << number
            self._masks[whose] = holds
            self._holders |= holds
        bunch = self._bunches.get((holds, outlast, kind))
        if bunch is None:
            bunch = self._bunches[holds, outlast, kind] = _Bunch(holds, outlast, kind, {})
        weighed, by_node = gang.weighed, bunch.by_node
        if weighed is None or weighed.placement is not placement or weighed.spec is not gang.spec:
            weighed = weigh(gang.spec, placement)
        for node, amount, _ in weighed.amounts:
            by_node[node] = by_node.get(node, 0) + amount.gpus_milli

    def at(self, name: str, beside: Mapping[str, Mapping[str, int]]) -> There:
        """When that reservation opens. `beside`: the GPUs that others take, by node and name. Of those to whom all who
        are there are the same it is the same object."""
        mine, when = 1 << self._numbers[name] & self._holders, bisect_left(self._moments, self._opens[name])
        those = ((node, *parts.items()) for node, parts in beside.items()) if self._holders else ()
        key = (mine, when, *those)
        if key not in self._found:
            self._found[key] = self._look(mine, when, beside)
        return self._found[key]

    def _look(self, mine: int, when: int, beside: Mapping[str, Mapping[str, int]]) -> There:
        found = There({}, {}, {}, {}, {})
        rest = {node: {other: count * MILLI for other, count in row.items()} for node, row in beside.items()}
        for bunch in sorted(self._bunches.values(), key=lambda each: (each.kind, each.holds.bit_count())):
            if bunch.holds & mine:
                if bunch.kind != PROMISED:
                    _put(found.holders, bunch.by_node)
            elif bunch.outlast > when:
                of = (found.fixed, found.promised, found.guests, found.surplus)[bunch.kind]
                _put(of, self._beyond(bunch, rest) if bunch.holds and rest else bunch.by_node)
        return found

    def _beyond(self, bunch: _Bunch, rest: dict[str, dict[str, int]]) -> dict[str, int]:
        """What these have that is not theirs by the reservations of which there is a rest."""
        by_node = bunch.by_node.copy()
        for node in by_node.keys() & rest.keys():
            for other, left in rest[node].items():
                if bunch.holds >> self._numbers[other] & 1:
                    theirs = min(left, by_node[node])
                    by_node[node] -= theirs
                    rest[node][other] -= theirs
        return by_node


def _parted(gang: GangState, held: Placement) -> tuple[Placement, Placement]:
    """(its least, what it has beyond that), by rank."""
    spec = gang.spec
    if not spec.is_elastic() or size_of(spec, held) <= spec.min_size:
        return held, ()
    elastic, count = spec.groups[0].name, 0
    least: list[Placed] = []
    surplus: list[Placed] = []
    for placed in held:
        count += placed.group == elastic
        (surplus if placed.group == elastic and count > spec.min_size else least).append(placed)
    return tuple(least), tuple(surplus)


def _put(into: dict[str, int], by_node: dict[str, int]) -> None:
    if not into:
        into.update(by_node)
        return
    for node, amount in by_node.items():
        into[node] = into.get(node, 0) + amount


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
