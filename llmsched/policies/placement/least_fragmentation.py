"""Fragmentation gradient descent (FGD, Weng et al., USENIX ATC 2023): put a bundle where it makes least of the free
GPUs useless to the work that is typical here.

A free GPU of a node is a fragment for a kind of work that does not fit there: too few GPUs left, too few CPUs, or no
device with a large enough share. The expected fragment is weighed by how common each kind of work is, running or
waiting; the node where it grows least wins. Kinds are counted once per pass.
"""

from __future__ import annotations

from llmsched.core.capacity import NodeState
from llmsched.core.policy import View
from llmsched.core.resources import MILLI, Resources

KINDS = 24  # the most common bundle shapes that count


class LeastFragmentation:
    walk = 0

    def __init__(self) -> None:
        self._view: View | None = None
        self._kinds: list[tuple[Resources, int]] = []
        self._seen: dict[tuple[object, ...], int] = {}

    def score(self, bundle: Resources, node: NodeState, view: View) -> int:
        if view is not self._view:
            self._view = view
            self._kinds = view.typical_bundles(KINDS)
            self._seen = {}
        total = node.node.total
        signature = (
            bundle, node.free_whole, tuple(sorted(node.shares.values())), total.cpus_milli - node.cpus,
            total.memory_bytes - node.memory,
        )  # fmt: skip
        found = self._seen.get(signature)
        if found is None:
            before = self._fragments(node)
            device = node.device_for(bundle.gpus_milli)
            node.change(bundle, device, 1)
            after = self._fragments(node)
            node.change(bundle, device, -1)
            found = self._seen[signature] = -(after - before)
        return found

    def _fragments(self, node: NodeState) -> int:
        """Thousandths of free GPUs, times how common the work is that cannot use them."""
        free = max(node.free_whole, 0) * MILLI + sum(MILLI - taken for taken in node.shares.values())
        lost = 0
        for need, weight in self._kinds:
            if not need.gpus_milli or not node.room(need, 1):
                lost += weight * free
            elif need.gpus_milli < MILLI:
                lost += weight * sum(MILLI - t for t in node.shares.values() if MILLI - t < need.gpus_milli)
            else:
                lost += weight * (free - max(node.free_whole, 0) * MILLI)
        return lost
