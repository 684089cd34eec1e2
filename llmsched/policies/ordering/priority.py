"""Higher priority first, then age."""

from __future__ import annotations

from typing import Any

from llmsched.core.policy import GangView, View


class Priority:
    static = True
    by_priority = True

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        return (-gang.spec.priority,)
