"""A reservation by itself: when it is open, for whom, and who may not be moved from what it takes."""

from __future__ import annotations

from llmsched.core import cron
from llmsched.core.configuration import Reservation
from llmsched.core.records import GangState, expected_end
from llmsched.core.workload import Workload


def window(reservation: Reservation, now: float) -> tuple[float, float] | None:
    """The present or next [start, end) of a reservation; None when it is over."""
    if reservation.repeat is None:
        end = reservation.start + reservation.duration_s
        return (reservation.start, end) if now < end else None
    start = cron.next_due(reservation.repeat, max(now - reservation.duration_s, reservation.start - 60.0))
    return (start, start + reservation.duration_s) if start is not None else None


def is_holder(reservation: Reservation, spec: Workload) -> bool:
    return (reservation.queue is not None and spec.queue == reservation.queue) or spec.user in reservation.users


def is_immovable(reservation: Reservation, gang: GangState, opens: float) -> bool:
    """Whether it neither ends before the window opens, nor may be asked to leave, nor is of the holder."""
    return not (gang.spec.preemptible or is_holder(reservation, gang.spec) or expected_end(gang) <= opens)
