"""What changes hands: who gave GPUs to whom, what that cost who gave, and how long it took until they were of use.

A gift is counted when it is decided; a hand-over is over when who received it runs (a replica: answers). Kept with the
gang and the workload that received, bounded; whoever gave is named by its workload. Knows no policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmsched.core.resources import MILLI
from llmsched.core.status import Status

if TYPE_CHECKING:
    from llmsched.core.records import GangState

GIFTS_KEPT = 16  # of one gang
HANDOVERS_KEPT = 32  # of one workload


class Gift(NamedTuple):
    """GPUs that a workload gave for an attempt of somebody else's. `lost_gpu_s`: GPU-seconds of its own work."""

    attempt: int
    giver: str
    gpus_milli: int
    lost_gpu_s: float


class Handover(NamedTuple):
    """A gang got what it runs on: `seconds` from when it began to wait until it ran."""

    at: float
    gang: str
    seconds: float
    gifts: tuple[Gift, ...] = ()


def resize_loss_s(gang: GangState, now: float, restart_cost_s: float) -> float:
    """GPU-seconds that a change of its size costs: a restart on all that it holds. Nothing unsaved is among them, as it
    saves first. Who has only begun, or changed its size, loses no more than the time since, and nothing who has not yet
    done so; the nodes of a Ray program leave while it goes on."""
    if gang.spec.kind == "ray" or gang.launched_at is None or gang.status is Status.RESIZING:
        return 0.0
    since_s = now - max(gang.launched_at, gang.resized_at or 0.0)
    return min(restart_cost_s, since_s) * gang.gpus_milli() / MILLI


def eviction_loss_s(gang: GangState, now: float, restart_cost_s: float) -> float:
    """The same of one that is evicted: what it did since its last checkpoint, and a restart. A replica has nothing to
    do again."""
    if gang.spec.kind == "serve" or gang.started_at is None:
        return 0.0
    unsaved_s = now - max(gang.checkpoint_at or 0.0, gang.started_at)
    return (unsaved_s + restart_cost_s) * gang.gpus_milli() / MILLI


def give(receiver: GangState, giver: GangState, gpus_milli: int, lost_gpu_s: float) -> None:
    gift = Gift(receiver.attempt + 1, giver.workload_id, gpus_milli, round(lost_gpu_s, 1))
    receiver.gifts = (*receiver.gifts, gift)[-GIFTS_KEPT:]


def gifts_of(gang: GangState) -> tuple[Gift, ...]:
    """Those that its attempt runs on."""
    return tuple(gift for gift in gang.gifts if gift.attempt == gang.attempt)


def seconds_p95(handovers: tuple[Handover, ...]) -> float | None:
    """Nearest rank."""
    found = sorted(each.seconds for each in handovers)
    return found[-(-95 * len(found) // 100) - 1] if found else None
