"""First come, first served: by age alone, whatever the priority."""

from __future__ import annotations

from typing import Any

from llmsched.core.policy import GangView, View


class Fifo:
    static = True

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        return ()
