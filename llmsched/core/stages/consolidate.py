"""Move preemptible work together so that a gang fits that only fragmentation keeps out.

Only when every gang that is moved can be placed again at once, on what is then left; as few as possible. Off unless
`scheduling.consolidation`.
"""

from __future__ import annotations

from llmsched.core.decisions import Preempt
from llmsched.core.message import say, workload
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.nominate import nominate
from llmsched.core.status import Status

NODES_TRIED = 16
MOVED_AT_MOST = 8


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
    mask = place.eligible(trial, gang.spec, 0) & only
    order = sorted(
        (name for name in on_node if mask >> state.nodes[name].slot & 1),
        key=lambda name: (len(on_node[name]), -state.nodes[name].free_whole, state.nodes[name].slot),
    )
    mark = trial.mark()
    moved: list[GangState] = []
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
    finally:
        trial.rollback(mark)
    for other in moved:
        why = say("preempt.consolidation", who=workload(gang.workload_id))
        this.plan.decisions.append(Preempt(other.id, other.attempt, other.spec.grace_s, "consolidation", gang.id, why))
        trial.leaving[other.id] = None
    nominate(this, gang, found, [other.id for other in moved])
    return True
