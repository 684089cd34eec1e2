"""Everyone its minimum, in order of age; then each further GPU where it adds the most throughput.

Throughput is counted relative to a gang's own minimum, so that nobody wins by being large. Knows nothing of the work
left: see `goodput` for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from llmsched.core.policy import GangView, View


class MarginalThroughput:
    period_s = 0.0

    def share(self, gangs: Sequence[GangView], capacity: float, view: View) -> Mapping[str, int]:
        free = float(capacity)
        chosen: dict[str, int] = {}
        steps: list[tuple[float, int, int]] = []  # (-gain per GPU, index of the gang, index of its next size)
        sizes = [view.sizes(gang) for gang in gangs]
        for index, gang in enumerate(gangs):
            chosen[gang.id] = sizes[index][0]
            free -= sizes[index][0] * view.gpus_per_bundle(gang)
        for index, gang in enumerate(gangs):
            self._offer(steps, gang, index, sizes[index], 0, free, view)
        heapify(steps)
        while steps and free > 0:
            _, index, at = heappop(steps)
            gang = gangs[index]
            price = (sizes[index][at] - chosen[gang.id]) * view.gpus_per_bundle(gang)
            if price > free:
                at = sizes[index].index(chosen[gang.id])  # a smaller step may do
            else:
                free -= price
                chosen[gang.id] = sizes[index][at]
            following: list[tuple[float, int, int]] = []
            self._offer(following, gang, index, sizes[index], at, free, view)
            for step in following:
                heappush(steps, step)
        return chosen

    def _offer(
        self,
        steps: list[tuple[float, int, int]],
        gang: GangView,
        index: int,
        sizes: tuple[int, ...],
        at: int,
        free: float,
        view: View,
    ) -> None:
        """Of the steps from sizes[at] that these GPUs are enough for, the one with the best gain for each; sizes slower
        than a smaller one are passed over."""
        now, each = view.speed(gang, sizes[at]), view.gpus_per_bundle(gang)
        best = (0.0, 0)
        for bigger in range(at + 1, len(sizes)):
            if (sizes[bigger] - sizes[at]) * each > free:
                break
            gain = (view.speed(gang, sizes[bigger]) - now) / (sizes[bigger] - sizes[at])
            best = max(best, (gain, -bigger))
        if best[0] > 0:
            steps.append((-best[0] / each, index, -best[1]))
