"""The one that started last: it has done least."""

from __future__ import annotations

from llmsched.core.policy import View
from llmsched.core.records import GangState


class NewestFirst:
    def cost(self, victim: GangState, beneficiary: GangState, view: View) -> int | None:
        return int((view.now - (victim.launched_at or view.now)) * 1000)
