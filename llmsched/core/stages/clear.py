"""Reserved GPUs are cleared: whoever is on them and will not end in time leaves, its grace before the window opens.

Of a node that is reserved in part nobody leaves who fits beside the reservation; the newest go first.
"""

from __future__ import annotations

from llmsched.core.message import RESERVATION, Ref, say
from llmsched.core.records import GangState
from llmsched.core.reservation import is_holder, is_open
from llmsched.core.reserved import Row
from llmsched.core.run_times import ends_by
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict
from llmsched.core.windows import On, Windows, lacking, on_nodes


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
        for name in goes:
            gang = state.gangs[name]
            if not gang.is_active() or name in trial.leaving or not gang.spec.preemptible:
                continue
            if plan.has_come(row.opens - gang.spec.grace_s):
                why = say("preempt.reservation", reserved=Ref(RESERVATION, row.reservation.name))
                evict.evict(this, gang, evict.RESERVATION, why)


def _is_guest(this: Pass, row: Row, gang: GangState) -> bool:
    return not (is_holder(row.reservation, gang.spec) or ends_by(gang, row.opens, this.plan))


def _wholly(this: Pass, row: Row) -> dict[str, None]:
    """The guests of nodes that it has to itself, the oldest launch first."""
    state, there = this.state, dict[str, None]()
    for node in state.capacity.nodes(row.nodes):
        there.update(state.ledgers.present.get(node.node.id, {}))
    goes = {name for name in there if _is_guest(this, row, state.gangs[name])}
    return {name: None for name in state.holding if name in goes} if goes else {}


def _beyond(this: Pass, row: Row, node: str, on: On, goes: dict[str, None]) -> dict[str, None]:
    """The guests of a node that must leave it for so many GPUs to be free for the holder, and for those of others that
    are open when it opens: the newest, no more than needed. Counted as in `windows.kept`, which says where others may
    start: who may is not told to leave."""
    state = this.state
    at = state.now if this.plan.has_come(row.opens) else row.opens
    here = [each for each in on if each[0] is row or is_open(each[0].reservation, at)]
    stay, going = [], []
    for name in state.ledgers.present.get(node, ()):
        gang = state.gangs[name]
        is_guest = name not in goes and _is_guest(this, row, gang)
        if is_guest or is_holder(row.reservation, gang.spec):
            stay.append(gang)
        if is_guest and gang.spec.preemptible:
            going.append(gang)

    def place(gang: GangState) -> tuple[object, ...]:
        """The holders of others first, as these have the right to what they have."""
        is_elses = any(is_holder(other.reservation, gang.spec) for other, _ in here)
        since = state.now if gang.started_at is None else gang.started_at
        return not is_elses, not gang.is_active(), since, gang.submitted_at, gang.id

    going.sort(key=place)
    chosen: list[GangState] = []

    def lacks(gangs: list[GangState]) -> int:
        return lacking(this.trial, here, node, gangs)

    while going and lacks(stay):
        chosen.append(going.pop())
        stay.remove(chosen[-1])
    least = lacks(stay) if chosen else 0  # more than nothing, where those are there who may not be told to leave
    for gang in list(chosen):
        if lacks([*stay, gang]) <= least:
            stay.append(gang)
            chosen.remove(gang)
    return {gang.id: None for gang in chosen}
