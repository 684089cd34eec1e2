"""Reserved GPUs are cleared: whoever is on them and will not end in time leaves, its grace before the window opens.

Of a node that is reserved in part nobody leaves who fits beside the reservation; the newest go first. An elastic gang
becomes smaller instead, by as little as possible, where it need not leave whole. One that is still being launched
cannot: it begins anew on what it would keep, which is kept for it meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmsched.core.message import RESERVATION, Ref, say
from llmsched.core.records import GangState, allowed_sizes, size_of
from llmsched.core.reservation import is_holder, is_open
from llmsched.core.reserved import Row
from llmsched.core.run_times import ends_by
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict
from llmsched.core.stages.lesser import keeps
from llmsched.core.stages.shrink import resize
from llmsched.core.status import Status
from llmsched.core.windows import Gangs, On, Windows, lacking, on_nodes
from llmsched.core.workload import Placement

Goes = dict[str, Placement]  # who has to let something go, and what it keeps: nothing, if it has to leave


def run(this: Pass) -> None:
    trial, state, plan = this.trial, this.state, this.plan
    if not state.configuration.reservations:
        return
    rows = Windows(trial).rows
    on = on_nodes(rows)
    for row in rows:
        goes = _wholly(this, row) if row.nodes else {}
        for node, _ in row.parts:
            goes.update(_beyond(this, row, node, on[node], goes))
        for name, kept in goes.items():
            gang = state.gangs[name]
            if not gang.is_active() or name in trial.leaving or not gang.spec.preemptible:
                continue
            if plan.has_come(row.opens - gang.spec.grace_s):
                reserved = Ref(RESERVATION, row.reservation.name)
                if kept and gang.status is not Status.LAUNCHING:
                    resize(this, gang, kept, say("resize.reservation", reserved=reserved))
                else:
                    why = say("preempt.reservation", reserved=reserved)
                    evict.evict(this, gang, evict.RESERVATION, why, goes_to=kept)


def _is_guest(this: Pass, row: Row, gang: GangState) -> bool:
    return not (is_holder(row.reservation, gang.spec) or ends_by(gang, row.opens, this.plan))


def _less(this: Pass, gang: GangState, held: Placement, nodes: Iterable[str]) -> Iterator[Placement]:
    """What a gang that can become smaller might keep of what it holds, the most first: what is on these nodes goes
    first."""
    can = gang.is_active() and not gang.lost_members and gang.spec.preemptible
    if not (can and gang.spec.is_elastic() and this.state.configuration.scheduling.elastic):
        return
    for size in reversed(allowed_sizes(gang.spec)):
        if size < size_of(gang.spec, held):
            yield keeps(gang, size, held, nodes)


def _wholly(this: Pass, row: Row) -> Goes:
    """The guests of nodes that it has to itself, the oldest launch first."""
    state, there = this.state, dict[str, None]()
    nodes = {node.node.id for node in state.capacity.nodes(row.nodes)}
    for node in nodes:
        there.update(state.ledgers.present.get(node, {}))
    found: Goes = {}
    guests = {name for name in there if _is_guest(this, row, state.gangs[name])}
    for name in state.holding if guests else ():
        held = _held(this, state.gangs[name]) if name in guests else ()
        if any(placed.node in nodes for placed in held):
            less = _less(this, state.gangs[name], held, nodes)
            found[name] = next((kept for kept in less if not any(placed.node in nodes for placed in kept)), ())
    return found


def _held(this: Pass, gang: GangState) -> Placement:
    """What it has, or will have when it has become as small as it was told."""
    is_told = gang.status is Status.RESIZING or gang.id in this.trial.shrinking
    return this.trial.standing(gang) if is_told else gang.held


def _beyond(this: Pass, row: Row, node: str, on: On, goes: Goes) -> Goes:
    """The guests of a node that must let something go for so many GPUs to be free for the holder, and for those of
    others that are open when it opens: who leaves in any case, then the newest, no more than needed. Counted as in
    `windows.kept`, which says where others may start: who may is not told to leave. `goes`: who lets go of something
    already."""
    state = this.state
    at = state.now if this.plan.has_come(row.opens) else row.opens
    here = [each for each in on if each[0] is row or is_open(each[0].reservation, at)]
    stay: Gangs = []
    going: Gangs = []

    def leaves(gang: GangState) -> bool:
        return not gang.is_active() or gang.id in this.trial.leaving

    for name in state.ledgers.present.get(node, ()):
        gang = state.gangs[name]
        held = goes[name] if name in goes else _held(this, gang)
        is_guest = _is_guest(this, row, gang)
        if held and (is_guest or is_holder(row.reservation, gang.spec)):
            stay.append((gang, held))
        if held and is_guest and (gang.spec.preemptible or leaves(gang)):
            going.append((gang, held))

    def place(each: tuple[GangState, Placement]) -> tuple[object, ...]:
        """Who leaves comes last, and the holders of others first, as these have the right to what they have."""
        gang = each[0]
        is_elses = any(is_holder(other.reservation, gang.spec) for other, _ in here)
        since = state.now if gang.started_at is None else gang.started_at
        return leaves(gang), not is_elses, since, gang.submitted_at, gang.id

    going.sort(key=place)
    chosen: Gangs = []

    def lacks(gangs: Gangs) -> int:
        return lacking(this.trial, here, node, gangs)

    while going and lacks(stay):
        chosen.append(going.pop())
        stay.remove(chosen[-1])
    least = lacks(stay) if chosen else 0  # more than nothing, where those are there who may not be told to leave
    found: Goes = {}
    for gang, held in chosen:
        keeps = (held, *_less(this, gang, held, (node,)))
        found[gang.id] = next((kept for kept in keeps if lacks([*stay, (gang, kept)]) <= least), ())
        if found[gang.id]:
            stay.append((gang, found[gang.id]))
        if found[gang.id] == held:
            del found[gang.id]
    return found
