"""What is lost: GPU-milliseconds since the last checkpoint, whole ones so that sums are exact."""

from __future__ import annotations

from llmsched.core.policy import GangView, View


class Cheapest:
    by_victim = True

    def cost(self, victim: GangView, beneficiary: GangView, view: View) -> int | None:
        return int(view.unsaved_s(victim) * victim.gpus_milli())
