"""Shortest remaining run time first; gangs whose run time nobody knows come after, by age.

Work is counted as it would go on the first of a gang's options: who runs where it is slow does not fall behind for it,
or those that wait and those that run there would take turns.
"""

from __future__ import annotations

from math import inf
from typing import Any

from llmsched.core.policy import GangView, View
from llmsched.core.records import speed


class ShortestRemaining:
    static = True  # the remaining time of a gang that waits stands still; a new estimate queues it anew

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]:
        left = view.work_left(gang)
        if left is None:
            return (inf,)
        return (left / max(speed(gang.spec, gang.size or gang.spec.min_size), 1e-9),)
