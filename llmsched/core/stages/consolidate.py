"""Move preemptible work together so that a gang fits that only fragmentation keeps out.

Only when every gang that is moved can be placed again at once, on what is then left; as few as possible. Off unless
`scheduling.consolidation`. Each is told where it begins again (`Preempt.goes_to`): those places are its own until it
does, before anybody else is asked, whatever a reservation could take instead. Else others would take them, and those
that were moved might have the right to evict whom they made room for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from llmsched.core.exact_fit import fits
from llmsched.core.message import say, workload
from llmsched.core.records import GangState, size_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict, place
from llmsched.core.stages.backfill import Calendar
from llmsched.core.stages.nominate import nominate
from llmsched.core.status import Status
from llmsched.core.windows import kept
from llmsched.core.workload import Placement

NODES_TRIED = 16
MOVED_AT_MOST = 8


def go_on(
    this: Pass,
    calendar: Calendar,
    settled: Collection[str],
    launch: Callable[[GangState, Placement], None],
    place_anywhere: Callable[[GangState], bool],
) -> None:
    """Whom consolidation moves goes to its new place before anybody else is asked; until then it is kept. Before
    promises are, too: those may be kept on other places than were promised, and would be on these."""
    state = this.state
    for gang in [state.gangs[name] for name in state.moved]:
        if gang.status is Status.VACATING:
            _keep_place(this, calendar, gang)
        elif gang.id in state.waiting and gang.id not in settled and gang.nomination is None:
            there = _told(this, calendar, gang)
            if there:
                launch(gang, there)
            if (there or place_anywhere(gang)) and gang.shape is not None:
                gang.shape.examined = None
                this.tell(gang.shape, None)


def _keep_place(this: Pass, calendar: Calendar, gang: GangState) -> None:
    trial = this.trial
    mark = trial.mark()
    trial.hold(gang, ())
    found = _told(this, calendar, gang) or _beside(this, calendar, gang)
    trial.rollback(mark)
    # perhaps only beside others who leave
    found = found or _told(this.later(), calendar, gang) or _beside(this.later(), calendar, gang)
    if found:
        trial.promise(gang, found)


def _told(this: Pass, calendar: Calendar, gang: GangState) -> Placement:
    """The places that it was told, if they are free and open to it; else ()."""
    placement = gang.goes_to
    with kept(this.trial, calendar.reserved(gang, size_of(gang.spec, placement))) as reserved:
        nodes = [this.state.nodes.get(placed.node) for placed in placement]
        is_open = all(node is not None and not reserved >> node.slot & 1 for node in nodes)
        return placement if is_open and fits(this.trial, gang.spec, placement) else ()


def _beside(this: Pass, calendar: Calendar, gang: GangState) -> Placement:
    """Any places that are free and open to it; () for none."""
    with kept(this.trial, calendar.reserved(gang, gang.size)) as reserved:
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
    for name, placement in goes.items():
        trial.promise(state.gangs[name], placement)
    nominate(this, gang, found, [other.id for other in moved])
    return True
