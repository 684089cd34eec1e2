"""Reasons: why a gang waits, what would start it, and when it probably starts.

The stage that refuses a gang writes its reason; nobody guesses later. What each code means to a user: api/README.md.
"""

from __future__ import annotations

from typing import NamedTuple

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
    "resize",
    "superseded",
    "node_lost",
    "spot_notice",
    "stale_gang",
)


class Reason(NamedTuple):
    """One dominant reason. `counts` are (stage or filter, number of nodes or bundles it refused)."""

    code: str  # of WAITS
    message: str  # for people, one or two sentences, no name in front
    counts: tuple[tuple[str, int], ...] = ()
    next_change: str = ""  # the smallest change that would start it
    eta: float | None = None  # stamp
    eta_basis: str = ""
