"""What is lost: GPU-milliseconds since the last checkpoint, whole ones so that sums are exact."""

from __future__ import annotations

from llmsched.core.policy import GangView, View


class Cheapest:
    def cost(self, victim: GangView, beneficiary: GangView, view: View) -> int | None:
        since = max(victim.checkpoint_at or 0.0, victim.started_at or view.now)
        return int(max(0.0, view.now - since) * victim.gpus_milli())
