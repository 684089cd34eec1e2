"""How much work is known to be ahead, kept in step so that no pass has to add it up over every gang.

Of each gang that waits or runs, and whose time was declared or measured: its GPUs x the seconds left, and the longest.
Who has not begun needs the same later on; who runs needs a second less each second, and nothing once it is overdue.
Whole milliseconds x thousandths of GPUs: taking out undoes putting in exactly, in any order. What history says of a
model changes with every run that ends, so gangs of a named model are only listed: those that have not begun, and of
which the same is believed, as one. Nothing here is in the digest.
"""

from __future__ import annotations

import heapq
from typing import Self

from llmsched.core.amounts import bundle_milli
from llmsched.core.estimate import alike
from llmsched.core.records import GangState

SECOND = 1000
_SPARE = 64  # entries that are no longer true, before a heap is made anew


class Outstanding:
    """Start reading at `ahead`."""

    def __init__(self) -> None:
        self.models: dict[object, dict[str, None]] = {}  # gangs of models, by all that is believed of them by
        self._listed: dict[str, object] = {}  # gang -> where
        self._still: dict[str, tuple[int, int]] = {}  # gang -> (milliseconds left, thousandths of GPUs)
        self._moving: dict[str, tuple[int, int]] = {}  # gang -> (when it ends, in milliseconds, thousandths of GPUs)
        self._still_total = self._moving_total = self._moving_gpus = 0
        self._longest: list[tuple[int, str]] = []  # heap of (-milliseconds left, gang) of those that are still
        self._last: list[tuple[int, str]] = []  # heap of (-end, gang) of those that move
        self._first: list[tuple[int, str]] = []  # heap of (end, gang) of the same

    def put(self, gang: GangState) -> None:
        """Count it as it is now, in place of what was counted of it."""
        self.drop(gang)
        spec = gang.spec
        if spec.model:
            has_begun = gang.is_holding() or gang.attempt
            asks = (spec.groups, spec.min_size, spec.max_size, spec.speedup)
            like = self._listed[gang.id] = gang.id if has_begun else (alike(gang), *asks)
            self.models.setdefault(like, {})[gang.id] = None
        if spec.model or gang.work_left is None:
            return
        gpus = (gang.size or spec.min_size) * bundle_milli(spec, gang.option)
        if gang.started_at is None or not gang.is_active():
            left = round(max(gang.work_left, 0.0) * SECOND)
            self._still[gang.id] = (left, gpus)
            self._still_total += left * gpus
            _push(self._longest, -left, gang.id, self._still, -1)
            return
        end = round((gang.progress_at + gang.work_left / max(gang.pace(gang.size or spec.min_size), 1e-9)) * SECOND)
        self._moving[gang.id] = (end, gpus)
        self._moving_total += end * gpus
        self._moving_gpus += gpus
        _push(self._last, -end, gang.id, self._moving, -1)
        _push(self._first, end, gang.id, self._moving, 1)

    def drop(self, gang: GangState) -> None:
        if (like := self._listed.pop(gang.id, None)) is not None:
            del self.models[like][gang.id]
            if not self.models[like]:
                del self.models[like]
        if (found := self._still.pop(gang.id, None)) is not None:
            self._still_total -= found[0] * found[1]
        if (found := self._moving.pop(gang.id, None)) is not None:
            self._moving_total -= found[0] * found[1]
            self._moving_gpus -= found[1]

    def of_models(self) -> list[tuple[str, int]]:
        """(one, how many there are) of each that are alike."""
        return [(next(iter(those)), len(those)) for those in self.models.values()]

    def ahead(self, now: float) -> tuple[int, int]:
        """(the longest in milliseconds, all in milliseconds x thousandths of GPUs) at `now`, which never falls."""
        at = round(now * SECOND)
        while (first := _top(self._first, self._moving, 1)) is not None and first[0] <= at:
            end, gpus = self._moving.pop(first[1])  # overdue
            self._moving_total -= end * gpus
            self._moving_gpus -= gpus
        longest = _top(self._longest, self._still, -1)
        last = _top(self._last, self._moving, -1)
        most = max(-longest[0] if longest else 0, -last[0] - at if last else 0)
        return most, self._still_total + self._moving_total - at * self._moving_gpus

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        other = type(self)()
        for name, value in vars(self).items():
            setattr(other, name, value.copy() if isinstance(value, (dict, list)) else value)
        other.models = {like: those.copy() for like, those in self.models.items()}
        return other


def _push(heap: list[tuple[int, str]], key: int, gang: str, known: dict[str, tuple[int, int]], sign: int) -> None:
    if len(heap) > 2 * len(known) + _SPARE:
        heap[:] = [(sign * known[name][0], name) for name in known]
        heapq.heapify(heap)
        return
    heapq.heappush(heap, (key, gang))


def _top(heap: list[tuple[int, str]], known: dict[str, tuple[int, int]], sign: int) -> tuple[int, str] | None:
    """The least entry that is still true."""
    while heap:
        key, gang = heap[0]
        found = known.get(gang)
        if found is not None and sign * found[0] == key:
            return heap[0]
        heapq.heappop(heap)
    return None
