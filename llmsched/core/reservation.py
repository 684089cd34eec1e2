"""A reservation by itself: when it is open, whether another one ever is at the same time, for whom it is, and who may
not be moved from what it takes."""

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


def is_open(reservation: Reservation, at: float) -> bool:
    span = window(reservation, at)
    return span is not None and span[0] <= at


def meet(one: Reservation, other: Reservation) -> bool:
    """Whether windows of both are ever open at once. Of one that comes again every window counts, so that it does not
    depend on when this is asked."""
    if one.repeat is not None and other.repeat is not None:
        return cron.ever_meet(one.repeat, one.duration_s, other.repeat, other.duration_s)
    again, once = (one, other) if one.repeat is not None else (other, one)
    span = window(again, once.start) if again.repeat is not None else (again.start, again.start + again.duration_s)
    return span is not None and span[0] < once.start + once.duration_s and once.start < span[1]


def is_holder(reservation: Reservation, spec: Workload) -> bool:
    return (reservation.queue is not None and spec.queue == reservation.queue) or spec.user in reservation.users


def is_immovable(reservation: Reservation, gang: GangState, opens: float) -> bool:
    """Whether it neither ends before the window opens, nor may be asked to leave, nor is of the holder."""
    return not (gang.spec.preemptible or is_holder(reservation, gang.spec) or expected_end(gang) <= opens)
