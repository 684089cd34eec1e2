"""Reserved GPUs are cleared: whoever is on them and will not end in time leaves, its grace before the window opens.

Of a node that is reserved in part nobody leaves who fits beside the reservation; the newest go first.
"""

from __future__ import annotations

from llmsched.core.configuration import Reservation
from llmsched.core.message import RESERVATION, Ref, say
from llmsched.core.records import GangState
from llmsched.core.reservation import is_holder
from llmsched.core.run_times import ends_by
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict
from llmsched.core.windows import Windows, lacking


def run(this: Pass) -> None:
    trial, state, plan = this.trial, this.state, this.plan
    if not state.configuration.reservations:
        return
    for row in Windows(trial).rows:
        guests = []
        for name in state.holding:
            gang = state.gangs[name]
            if not (is_holder(row.reservation, gang.spec) or ends_by(gang, row.opens, plan)):
                guests.append(gang)
        goes = {g.id: None for g in guests if any(row.nodes >> state.nodes[p.node].slot & 1 for p in g.held)}
        for node, count in row.parts:
            others = [gang for gang in guests if gang.id not in goes]
            goes.update(_beyond(this, row.reservation, node, count, others))
        for name in goes:
            gang = state.gangs[name]
            if not gang.is_active() or name in trial.leaving or not gang.spec.preemptible:
                continue
            if plan.has_come(row.opens - gang.spec.grace_s):
                why = say("preempt.reservation", reserved=Ref(RESERVATION, row.reservation.name))
                evict.evict(this, gang, evict.RESERVATION, why)


def _beyond(this: Pass, reservation: Reservation, node: str, count: int, guests: list[GangState]) -> dict[str, None]:
    """The guests of a node that must leave it for so many GPUs to be free for the holder: the newest, no more than
    needed. Counted as in `windows.kept`, which says where others may start: who may is not told to leave."""
    state = this.state
    stay = [gang for gang in guests if any(placed.node == node for placed in gang.held)]
    going = [gang for gang in stay if gang.spec.preemptible]
    going.sort(
        key=lambda g: (not g.is_active(), state.now if g.started_at is None else g.started_at, g.submitted_at, g.id)
    )
    chosen: list[GangState] = []

    def lacks(others: list[GangState]) -> int:
        return lacking(this.trial, reservation, node, count, others)

    while going and lacks(stay):
        chosen.append(going.pop())
        stay.remove(chosen[-1])
    least = lacks(stay)  # more than nothing, where those are there who may not be told to leave
    for gang in list(chosen):
        if lacks([*stay, gang]) <= least:
            stay.append(gang)
            chosen.remove(gang)
    return {gang.id: None for gang in chosen}
