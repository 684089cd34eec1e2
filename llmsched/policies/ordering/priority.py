"""Higher priority first, then age."""

from __future__ import annotations

from typing import Any

from llmsched.core.policy import View
from llmsched.core.records import GangState


class Priority:
    static = True

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]:
        return (-gang.spec.priority,)
