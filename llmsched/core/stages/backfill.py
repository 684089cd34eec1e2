"""Time: the blocked head gets a planned start; later work starts only if it cannot delay it.

`easy` protects the first blocked gang of each accelerator, `conservative` the first few. Later work may start when it
ends before the planned start, fits beside it, or can be shrunk to its minimum in time.
"""

from __future__ import annotations

from llmsched.core.explain import Reason
from llmsched.core.message import RESERVATION, Ref, say, workload
from llmsched.core.policy import Placing, View
from llmsched.core.records import GangState, size_of
from llmsched.core.reservation import (
    Promise,
    Row,
    Windows,
    closed,
    earliest,
    gives_way,
    kept,
    least,
    leaves_room,
    runtime_s,
    use_spare,
)
from llmsched.core.stages import place
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement

PROTECTED = {"off": 0, "easy": 1, "conservative": 10}  # gangs with a planned start that nobody may delay
LATER_LOOKS = 100  # gangs per queue and pass that are tried behind a protected one


class Calendar:
    """The planned starts and windows of one pass."""

    def __init__(self, trial: Trial, placing: Placing, view: View) -> None:
        self.trial = trial
        self.placing = placing
        self.view = view
        self.windows = Windows(trial)
        self.promises: list[Promise] = []
        self.depth = PROTECTED.get(trial.state.configuration.scheduling.backfill, 0)
        self._reason: Reason | None = None
        self._heads: dict[str | None, int] = {}

    def reserved(self, gang: GangState, size: int) -> list[Row]:
        """The reservations of others that the gang would run into if it started now."""
        if not self.windows.rows:
            return []
        now = self.trial.now
        return self.windows.against(gang.spec, now, now + runtime_s(self.trial.state, gang, size))

    def closed(self, gang: GangState, size: int) -> int:
        """Nodes on which no room is made for the gang and none is promised to it, because others have reserved them
        or a part of them."""
        return closed(self.trial, self.reserved(gang, size))

    def allows(self, gang: GangState, placement: Placement) -> bool:
        """Whether starting `placement` now keeps every planned start."""
        if not self.promises:
            return True
        ends_at = self.trial.now + runtime_s(self.trial.state, gang, size_of(gang.spec, placement), placement)
        return all(
            leaves_room(self.trial, promise, placement, gang.spec, ends_at)
            or (
                gives_way(self.trial.state, gang.spec, promise.gang.spec)
                and leaves_room(self.trial, promise, least(gang.spec, placement), gang.spec, ends_at)
            )
            for promise in self.promises
            if promise.gang is not gang
        )

    def started(self, gang: GangState, placement: Placement) -> None:
        """Work was started beside the planned starts."""
        ends_at = self.trial.now + runtime_s(self.trial.state, gang, size_of(gang.spec, placement), placement)
        for promise in self.promises:
            kept = placement
            if gives_way(self.trial.state, gang.spec, promise.gang.spec):
                kept = least(gang.spec, placement)
            use_spare(self.trial, promise, kept, gang.spec, ends_at)

    def is_hopeless(self, gang: GangState, size: int) -> bool:
        """Whether a planned start has less to spare than this gang needs, wherever it goes: nodes need no look."""
        for promise in self.promises:
            if promise.pool and promise.spare_milli < place.need_milli(gang.spec, size, 0):
                late = self.trial.now + runtime_s(self.trial.state, gang, size, fastest=True) > promise.start
                if late and not place.eligible(self.trial, gang.spec, 0) & ~promise.pool:
                    return True
        return False

    def would_delay(self) -> Reason:
        """One reason for all whom a planned start keeps out; the same record for the whole pass."""
        if self._reason is None:
            head = self.promises[0].gang.workload_id
            self._reason = Reason("order", say("order.would_delay", who=workload(head)))
        return self._reason

    def avoid(self) -> int:
        """Nodes that planned starts will use."""
        nodes = self.trial.state.nodes
        mask = 0
        for promise in self.promises:
            mask |= promise.pool
            for placed in promise.placement:
                mask |= 1 << nodes[placed.node].slot
        return mask

    def hold_for(self, gang: GangState) -> Promise | None:
        """Plan the start of a gang that could not start; protect it if it is one of the first."""
        flavor = gang.spec.groups[0].options[0].flavor
        rank = self._heads.get(flavor, 0)
        self._heads[flavor] = rank + 1
        if rank >= self.depth and not (rank == 0 and self.windows.rows):
            return None
        promise = earliest(self.trial, gang, gang.spec.min_size, self.placing, self.view, self.windows, self.promises)
        if promise is not None and rank < self.depth:
            self.promises.append(promise)
        return promise


def place_within(
    trial: Trial,
    gang: GangState,
    size: int,
    placing: Placing,
    view: View,
    calendar: Calendar,
    option: int | None = None,
) -> Placement | place.Refused:
    """A placement now that respects windows and planned starts; Refused says which of them was in the way."""
    rows = calendar.reserved(gang, size)
    with kept(trial, rows) as reserved:
        found = place.find(trial, gang, size, placing, view, ~reserved, option=option)
    if isinstance(found, place.Refused):
        if (
            rows
            and found.code != "quota"
            and not isinstance(place.find(trial, gang, size, placing, view, option=option), place.Refused)
        ):
            reserved_for = tuple(dict.fromkeys(Ref(RESERVATION, row.reservation.name) for row in rows))
            code = "reservation.no_end" if gang.spec.max_runtime_s is None else "reservation.too_long"
            counts = (("reserved", closed(trial, rows).bit_count()),)
            return place.Refused("reservation", say(code, reserved=reserved_for), counts)
        return found
    if calendar.allows(gang, found):
        return found
    with kept(trial, rows) as reserved:
        beside = place.find(trial, gang, size, placing, view, ~(reserved | calendar.avoid()), option=option)
    if not isinstance(beside, place.Refused):
        return beside
    reason = calendar.would_delay()
    return place.Refused("order", reason.message, reason.counts)
