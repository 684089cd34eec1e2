"""In what state of its life a gang is. Which follows which is lifecycle.py's."""

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
