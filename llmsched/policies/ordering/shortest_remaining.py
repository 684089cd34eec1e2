"""Shortest remaining run time first; gangs whose run time nobody knows come after, by age."""

from __future__ import annotations

from math import inf
from typing import Any

from llmsched.core.policy import GangView, View


class ShortestRemaining:
    static = True  # the remaining time of a gang that waits stands still; a new estimate queues it anew

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        left = view.remaining_s(gang)
        return (inf if left is None else left,)
