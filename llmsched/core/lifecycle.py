"""The life of a gang as a table: which status follows which event. The diagrams in the docs are drawn from it.

`after(status, event)` is None where an event is not legal; the state then notes the fact as stale and ignores it.
Knows nothing of capacity, quota or retries: those choose the event.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    LAUNCHING = "launching"
    RUNNING = "running"
    RESIZING = "resizing"
    VACATING = "vacating"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


HOLDING = (Status.LAUNCHING, Status.RUNNING, Status.RESIZING, Status.VACATING)  # these hold GPUs and quota
ACTIVE = (Status.LAUNCHING, Status.RUNNING, Status.RESIZING)
TERMINAL = (Status.FINISHED, Status.FAILED, Status.CANCELLED)

Q, L, R, Z, V = Status.QUEUED, Status.LAUNCHING, Status.RUNNING, Status.RESIZING, Status.VACATING

TABLE: dict[tuple[Status, str], Status] = {
    (Q, "launch"): L,
    (Q, "cancel"): Status.CANCELLED,
    (Q, "give_up"): Status.FAILED,
    (L, "bound"): R,
    (R, "resize"): Z,
    (Z, "resized"): R,
    (V, "released"): Q,  # preempted, or superseded by a new spec
    (V, "ended"): Status.CANCELLED,  # cancelled, drained
    (V, "stopped"): Status.FAILED,  # over its run time, its budget, its deadline
}
for _status in (L, R, Z, V):
    TABLE[_status, "succeeded"] = Status.FINISHED
    TABLE[_status, "failed"] = Status.FAILED  # for good: no retry is left
    TABLE[_status, "retry"] = Q  # failed or lost, and it may try again
for _status in (L, R, Z):
    TABLE[_status, "vacate"] = V
TABLE[R, "bound"] = R  # said again after a reconnect


def after(status: Status, event: str) -> Status | None:
    return TABLE.get((status, event))
