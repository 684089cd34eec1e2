"""Promises come before anybody else is looked at: who was promised places starts, waits on, or is promised no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from llmsched.core.exact_fit import fits, free_at_last, is_kept
from llmsched.core.message import say
from llmsched.core.records import GangState, size_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.nominate import nominate, stand, withdraw
from llmsched.core.windows import kept
from llmsched.core.workload import Placement


def run(this: Pass, calendar: Calendar, launch: Callable[[GangState, Placement], None]) -> bool:
    """False: the portion of this pass is decided, and some are left."""
    state, since = this.state, len(this.plan.decisions)

    @contextmanager
    def open_to(gang: GangState) -> Iterator[int]:
        """Nodes on which a nominated gang may start; while it lasts what others have reserved of them is taken."""
        placement = gang.nomination.placement if gang.nomination is not None else ()
        with kept(this.trial, calendar.reserved(gang, size_of(gang.spec, placement))) as reserved:
            yield ~reserved

    ready = free_at_last(this.trial, open_to) if state.nominated else {}
    for name in state.nominated:
        if this.plan.cut(since):
            return False
        gang = state.gangs[name]
        _redeem(this, gang, open_to, name in ready, launch)
    return True


def _redeem(
    this: Pass,
    gang: GangState,
    open_to: Callable[[GangState], AbstractContextManager[int]],
    is_ready: bool,
    launch: Callable[[GangState, Placement], None],
) -> None:
    """Launch a nominated gang if it fits now, leave its nomination while its places are still on the way to being
    free, else take it back. `open_to`: nodes on which it may start; `is_ready`: the places promised to it are free."""
    nomination = gang.nomination
    assert nomination is not None
    trial = this.trial
    size = size_of(gang.spec, nomination.placement)

    def is_open() -> bool:
        """Whether none of its nodes has been reserved as a whole since it was promised places there."""
        with open_to(gang) as only:
            nodes = [this.state.nodes.get(placed.node) for placed in nomination.placement]
            return all(node is not None and only >> node.slot & 1 for node in nodes)

    if place.may_fit(trial, gang, size):
        trial.unpromise(gang)
        with open_to(gang) as only:
            found = _faster(this, gang, size, only) if nomination.moves else _any(this, gang, size, only)
        if found:
            launch(gang, found)
            return
    elif not is_ready and is_kept(trial.afterwards(), gang) and is_open():
        stand(this, gang, nomination)
        return
    else:
        trial.unpromise(gang)
    if is_ready:
        launch(gang, nomination.placement)
    elif is_open() and fits(trial.afterwards(), gang.spec, nomination.placement):
        nominate(this, gang, nomination.placement, list(nomination.victims))
    else:
        withdraw(this, gang, say("withdraw.unfit"))
        this.plan.asks_again = True  # who grows was asked before, and this brings no news


def _any(this: Pass, gang: GangState, size: int, only: int, option: int | None = None) -> Placement:
    found = place.find(this, gang, size, only, explain=False, option=option)
    return () if isinstance(found, place.Refused) else found


def _faster(this: Pass, gang: GangState, size: int, only: int) -> Placement:
    """For one that was moved to be faster: places that are faster still than those that were kept for it, as others
    have left them meanwhile; () for none."""
    assert gang.nomination is not None
    kept = gang.nomination.placement[0].option
    faster = [option for _, option in gang.faster]
    for option in faster[: faster.index(kept)] if kept in faster else ():
        if found := _any(this, gang, size, only, option):
            return found
    return ()
