"""Move preemptible work together so that a gang fits that only fragmentation keeps out.

Only when every gang that is moved can be placed again at once, on what is then left; as few as possible. Off unless
`scheduling.consolidation`. Each is told where it begins again (`Preempt.goes_to`): those places are kept for it while
it leaves, and then promised to it. Else others would take them, and those that were moved might have the right to evict
whom they made room for.
"""

from __future__ import annotations

from llmsched.core.message import say, workload
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict, place
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.nominate import nominate
from llmsched.core.status import Status
from llmsched.core.windows import kept
from llmsched.core.workload import Placement

NODES_TRIED = 16
MOVED_AT_MOST = 8


def _beside(this: Pass, calendar: Calendar, gang: GangState) -> Placement:
    """Any places that are free and open to it; () for none."""
    rows = calendar.reserved(gang, gang.size, gang.spec.grace_s, moves=True)
    with kept(this.trial, rows) as reserved:
        found = place.find(this, gang, gang.size, ~reserved, explain=False)
    return () if isinstance(found, place.Refused) else found


def _movable(this: Pass, gang: GangState) -> dict[str, list[GangState]]:
    """Who may be moved for it, by node."""
    trial, stay = this.trial, this.exchanged_with(gang)
    on_node: dict[str, list[GangState]] = {}
    for name in this.state.holding:
        other = this.state.gangs[name]
        movable = other.status is Status.RUNNING and other.spec.preemptible and name not in trial.leaving
        movable = movable and name not in stay
        if movable and trial.held(other) and this.policies.preemption.cost(other, gang, this.view) is not None:
            for node in dict.fromkeys(placed.node for placed in other.held):
                on_node.setdefault(node, []).append(other)
    return on_node


def run(this: Pass, calendar: Calendar, gang: GangState, only: int) -> bool:
    trial, state = this.trial, this.state
    if not state.configuration.scheduling.consolidation:
        return False
    size = gang.spec.min_size
    on_node = _movable(this, gang)
    mask = place.eligible_by_any(trial, gang.spec, 0) & only
    order = sorted(
        (name for name in on_node if mask >> state.nodes[name].slot & 1),
        key=lambda name: (len(on_node[name]), -state.nodes[name].free_whole, state.nodes[name].slot),
    )
    mark = trial.mark()
    moved: list[GangState] = []
    goes: dict[str, Placement] = {}
    found = None
    try:
        for name in order[:NODES_TRIED]:  # clear one node after another until the gang fits
            for other in sorted(on_node[name], key=lambda g: (len(g.held), g.id)):
                if other in moved:
                    continue
                trial.hold(other, ())
                moved.append(other)
                fits_now = place.find(this, gang, size, only, explain=False)
                if not isinstance(fits_now, place.Refused):
                    found = fits_now
                    break
            if found is not None or len(moved) >= MOVED_AT_MOST:
                break
        if found is None:
            return False
        trial.hold(gang, found)
        for other in sorted(moved, key=lambda g: -len(g.held)):
            again = _beside(this, calendar, other)
            if not again:
                return False
            trial.hold(other, again)
            goes[other.id] = again
        if not calendar.stays_open(trial, [(gang, found), *((other, goes[other.id]) for other in moved)], {}):
            return False
    finally:
        trial.rollback(mark)
    for other in moved:
        why = say("preempt.consolidation", who=workload(gang.workload_id))
        evict.evict(this, other, evict.CONSOLIDATION, why, gang, goes_to=goes[other.id])
    nominate(this, gang, found, [other.id for other in moved])
    return True
