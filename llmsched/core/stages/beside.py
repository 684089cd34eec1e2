"""Places for an elastic gang that may have either of several flavors, beside others that would start.

Sizes are shared by the number: such a gang counts wherever it may go, and then stands on one of its flavors. It must
not take there what others have been counted for, while another size or flavor leaves it to them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import islice

from llmsched.core.amounts import flavors_of
from llmsched.core.exact_fit import fits
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.demand import STARTS_TRIED
from llmsched.core.workload import Placement


class Before:
    """By rank: waiting work of fixed size that comes before an elastic gang, where it would start."""

    def __init__(self, this: Pass) -> None:
        self._trial, gangs = this.trial, this.state.gangs
        rows = [(gangs[name], placement) for name, placement in this.plan.would_start.items()]
        self._rows = deque(sorted(rows, key=lambda row: -row[0].spec.priority))
        self._known: dict[str, tuple[GangState, Placement]] = {}  # those that came before somebody who was asked

    def hold_for(self, gang: GangState) -> None:
        """What comes before it and before those that were asked before. Those that are ranked are in order by that."""
        if self._known.pop(gang.id, None) is not None:  # it is to start itself, wherever there is room
            self._trial.hold(gang, ())
        while gang.spec.is_elastic() and self._rows and self._rows[0][0].spec.priority >= gang.spec.priority:
            other, placement = self._rows.popleft()
            has_place = other.id in self._trial.begun or self._trial.held(other)
            if not has_place and fits(self._trial, other.spec, placement):
                self._trial.hold(other, placement)
                self._known[other.id] = other, placement

    def let_go(self) -> None:
        for gang, _ in self._known.values():
            self._trial.hold(gang, ())

    def hold_again(self) -> None:
        """What they held, where nobody has it meanwhile."""
        for gang, placement in self._known.values():
            if not self._trial.held(gang) and fits(self._trial, gang.spec, placement):
                self._trial.hold(gang, placement)


def beside_others(
    this: Pass, gang: GangState, asked: Collection[int], ask: Callable[[], Placement | None]
) -> Placement | None:
    """What `ask` finds for it beside those that would start and have not been asked yet (`asked`: classes that have):
    work of fixed size where it would, and elastic gangs that have a share with their least. None: nothing."""
    trial, state = this.trial, this.state
    mark, is_any = trial.mark(), False
    for name, placement in this.plan.would_start.items():
        other = state.gangs[name]
        shape = other.shape
        may_start = shape is not None and shape.serial not in asked and _is_free(this, other)
        if may_start and fits(trial, other.spec, placement):
            trial.hold(other, placement)
            is_any = True
    for other in islice(_with_a_share(this, gang, asked), STARTS_TRIED):
        found = place.find(this, other, other.spec.min_size, explain=False)
        if not isinstance(found, place.Refused):
            trial.hold(other, found)
            is_any = True
    mine = ask() if is_any else None
    trial.rollback(mark)
    return mine


def _with_a_share(this: Pass, gang: GangState, asked: Collection[int]) -> Iterator[GangState]:
    mine, state = {*flavors_of(gang.spec)}, this.state
    for shape in state.waiting.elastic.values():
        flavors = flavors_of(shape.sample)
        if shape.serial in asked or not (None in flavors or None in mine or not mine.isdisjoint(flavors)):
            continue
        for _, name in shape.entries:
            other = state.gangs[name]
            if other is not gang and this.plan.sizes.get(name) and _is_free(this, other):
                yield other


def _is_free(this: Pass, gang: GangState) -> bool:
    return gang.nomination is None and not this.trial.is_new(gang) and not this.trial.held(gang)
