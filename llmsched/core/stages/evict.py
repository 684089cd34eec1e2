"""The one door through which gangs are evicted. Nothing else makes a `Preempt`; a test reads the source for it.

For somebody else, never itself, a gang leaves only if the two have not exchanged a place before: exchanges.py has the
proof that evictions end so. Whoever looks for victims leaves those out (`may`); the door refuses them all the same. A
new reason for evictions is a row of one of the two tables, and so on one of the two sides of the proof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llmsched.core.decisions import Preempt
from llmsched.core.message import Message
from llmsched.core.records import GangState
from llmsched.core.rules import FAIR, IN_QUEUE, RECLAIM, WHILE_BORROWING
from llmsched.core.scheduling_pass import Pass
from llmsched.core.workload import Placement
from llmsched.errors import Bug

RANK = "in_queue_rank"
CONSOLIDATION = "consolidation"
FASTER = "faster_flavor"
RESERVATION = "reservation"

FOR_SOMEBODY = frozenset({IN_QUEUE, RECLAIM, WHILE_BORROWING, FAIR, RANK, CONSOLIDATION})
FOR_NOBODY = frozenset({FASTER, RESERVATION, "node_lost", "stale_gang", "superseded", "spot_notice", "node_drain"})


def may(this: Pass, gang: GangState, beneficiary: GangState) -> bool:
    """Whether it may be evicted for that one, as far as the places count that gangs have exchanged: not for itself."""
    return gang is not beneficiary and gang.id not in this.exchanged_with(beneficiary)


def evict(
    this: Pass,
    gang: GangState,
    reason: str,
    why: Message | None,
    beneficiary: GangState | None = None,
    grace_s: float | None = None,
    goes_to: Placement = (),
) -> None:
    """Tell it to leave. `grace_s`: seconds that it has for that, if not as many as its spec says. `goes_to`: the places
    that are kept for it meanwhile.

    Raises Bug for an eviction for somebody else with whom it has exchanged a place, and for a reason without a row."""
    if beneficiary is None:
        is_known = reason in FOR_NOBODY
    else:
        is_known = reason in FOR_SOMEBODY and may(this, gang, beneficiary)
    if not is_known:
        raise Bug(f"{gang.id} may not be evicted: {reason}, for {beneficiary.id if beneficiary else 'nobody'}")
    name = beneficiary.id if beneficiary is not None else ""
    grace = gang.spec.grace_s if grace_s is None else grace_s
    this.plan.decisions.append(Preempt(gang.id, gang.attempt, grace, reason, name, why, goes_to))
    this.trial.leave(gang, goes_to)


def instead(this: Pass, told: Preempt, beneficiary: GangState, why: Message | None) -> None:
    """It leaves for another one than it was told. Raises Bug as `evict` does."""
    plan, gang = this.plan, this.state.gangs[told.gang]
    if not may(this, gang, beneficiary):
        raise Bug(f"{gang.id} may not be evicted for {beneficiary.id}")
    at = plan.decisions.index(told)
    plan.decisions[at] = replace(told, beneficiary=beneficiary.id, why=why)


class Staying:
    """Of gangs that hold something: which of them stay where they are, as far as somebody else is concerned."""

    def __init__(self, this: Pass, holding: Iterable[GangState]) -> None:
        self._this = this
        self._holding = {gang.id: gang for gang in holding}

    def stay_for(self, gang: GangState) -> list[GangState]:
        """Those that have exchanged a place with it."""
        return [self._holding[name] for name in self._this.exchanged_with(gang) if name in self._holding]

    def stay_for_each(self, gangs: Iterable[GangState]) -> set[str]:
        """Those that have exchanged a place with every one of them: nobody of them may have its place."""
        each = iter(gangs)
        stay = {one.id for one in self.stay_for(first)} if (first := next(each, None)) is not None else set()
        while stay and (gang := next(each, None)) is not None:
            stay &= {one.id for one in self.stay_for(gang)}
        return stay
