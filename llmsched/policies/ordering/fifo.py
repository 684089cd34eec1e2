"""First come, first served: by age alone, whatever the priority."""

from __future__ import annotations

from typing import Any

from llmsched.core.policy import View
from llmsched.core.records import GangState


class Fifo:
    static = True

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]:
        return ()
