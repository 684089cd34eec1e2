"""Reasons: why a gang waits, what would start it, and when it probably starts.

The stage that refuses a gang writes its reason; nobody guesses later. What each code means to a user: api/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

from llmsched.core.message import Message

WAITS = (  # the codes of a Reason
    "impossible",
    "over_limit",
    "quota",
    "nodes",
    "fragmentation",
    "topology",
    "victims_leaving",
    "reservation",
    "order",
    "dependency",
    "backoff",
    "capacity_coming",
)
TAKEN = (  # the `reason` of a Preempt or of a Resize
    "in_queue_priority",
    "in_queue_rank",
    "quota_reclaim",
    "reclaim_while_borrowing",
    "fair_share",
    "reservation",
    "consolidation",
    "faster_flavor",
    "resize",
    "superseded",
    "node_lost",
    "spot_notice",
    "node_drain",
    "stale_gang",
)


class Reason(NamedTuple):
    """One dominant reason. `message` also knows the smallest change that would start it (`render.advice`). `counts`
    are (stage or filter, number of nodes or bundles it refused); their names stand in the cluster file or in the code,
    for everybody to read."""

    code: str  # of WAITS
    message: Message
    counts: tuple[tuple[str, int], ...] = ()
    eta: float | None = None  # stamp
    eta_basis: Message | None = None
