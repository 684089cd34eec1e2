"""The one that started last: it has done least."""

from __future__ import annotations

from llmsched.core.policy import GangView, View


class NewestFirst:
    by_victim = True

    def cost(self, victim: GangView, beneficiary: GangView, view: View) -> int | None:
        return int((view.now - (victim.launched_at or view.now)) * 1000)
