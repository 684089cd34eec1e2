"""Lowest priority first; among equals the one that loses least: GPU-seconds since its last checkpoint, at whole
seconds so that the order is exact."""

from __future__ import annotations

from llmsched.core.policy import View
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI


class Cheapest:
    def cost(self, victim: GangState, beneficiary: GangState, view: View) -> int | None:
        since = max(victim.checkpoint_at or 0.0, victim.started_at or view.now)
        lost = int(max(0.0, view.now - since) * victim.gpus_milli() / MILLI)
        return victim.spec.priority * 10**12 + min(lost, 10**12 - 1)
