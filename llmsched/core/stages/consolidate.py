"""Move preemptible work together so that a gang fits that only fragmentation keeps out.

Only when every gang that is moved can be placed again at once, on what is then left; as few as possible. Off unless
`scheduling.consolidation`. While they leave their new places are kept (`keep_place`), and they begin there before
anybody else is asked (`Admission`): else others would take the places, and those that were moved might have the right
to evict whom they made room for.
"""

from __future__ import annotations

from llmsched.core.decisions import Preempt
from llmsched.core.message import say, workload
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.nominate import nominate
from llmsched.core.status import Status
from llmsched.core.workload import Placement

REASON = "consolidation"
NODES_TRIED = 16
MOVED_AT_MOST = 8


def keep_place(this: Pass, gang: GangState) -> None:
    """For somebody who is leaving in order to be moved."""
    trial = this.trial
    mark = trial.mark()
    trial.hold(gang, ())
    found = place.find(this, gang, gang.size, explain=False)
    trial.rollback(mark)
    if isinstance(found, place.Refused):  # perhaps only beside others who leave
        found = place.find(this.later(), gang, gang.size, explain=False)
    if not isinstance(found, place.Refused):
        trial.promise(gang, found)


def run(this: Pass, gang: GangState, only: int) -> bool:
    trial, state = this.trial, this.state
    if not state.configuration.scheduling.consolidation:
        return False
    size = gang.spec.min_size
    on_node: dict[str, list[GangState]] = {}
    for name in state.holding:
        other = state.gangs[name]
        movable = other.status is Status.RUNNING and other.spec.preemptible and name not in trial.leaving
        if movable and trial.held(other) and this.policies.preemption.cost(other, gang, this.view) is not None:
            for node in dict.fromkeys(placed.node for placed in other.held):
                on_node.setdefault(node, []).append(other)
    mask = place.eligible_by_any(trial, gang.spec, 0) & only
    order = sorted(
        (name for name in on_node if mask >> state.nodes[name].slot & 1),
        key=lambda name: (len(on_node[name]), -state.nodes[name].free_whole, state.nodes[name].slot),
    )
    mark = trial.mark()
    moved: list[GangState] = []
    goes: list[tuple[GangState, Placement]] = []
    found = None
    try:
        for name in order[:NODES_TRIED]:  # clear one node after another until the gang fits
            for other in sorted(on_node[name], key=lambda g: (len(g.held), g.id)):
                if other in moved:
                    continue
                trial.hold(other, ())
                moved.append(other)
                fits = place.find(this, gang, size, only, explain=False)
                if not isinstance(fits, place.Refused):
                    found = fits
                    break
            if found is not None or len(moved) >= MOVED_AT_MOST:
                break
        if found is None:
            return False
        trial.hold(gang, found)
        for other in sorted(moved, key=lambda g: -len(g.held)):
            again = place.find(this, other, other.size, explain=False)
            if isinstance(again, place.Refused):
                return False
            trial.hold(other, again)
            goes.append((other, again))
    finally:
        trial.rollback(mark)
    for other in moved:
        why = say("preempt.consolidation", who=workload(gang.workload_id))
        this.plan.decisions.append(Preempt(other.id, other.attempt, other.spec.grace_s, REASON, gang.id, why))
        trial.leaving[other.id] = None
    for other, placement in goes:
        trial.promise(other, placement)
    nominate(this, gang, found, [other.id for other in moved])
    return True
