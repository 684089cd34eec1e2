"""The queue with the smallest dominant share of the cluster, over its weight, goes first; inside it higher priority.

`across` tells the admit stage how queues compare when the configuration does not say (`scheduling.fair_share`).
"""

from __future__ import annotations

from typing import Any

from llmsched.core.fair import TOTAL
from llmsched.core.policy import GangView, View


class FairShare:
    static = True
    by_priority = True
    across = TOTAL

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        return (-gang.spec.priority,)
