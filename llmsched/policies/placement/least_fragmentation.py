"""Fragmentation gradient descent (FGD, Weng et al., USENIX ATC 2023): put a bundle where it makes least of the free
GPUs useless to the work that is typical here.

A free GPU of a node is a fragment for a kind of work that does not fit there: too few GPUs left, too few CPUs, or no
device with a large enough share. The expected fragment is weighed by how common each kind of work is, running or
waiting; the node where it grows least wins. What a bundle costs each kind on a node depends on the room there alone, so
it is worked out once per likeness of nodes and kept from pass to pass; only the weights are new.
"""

from __future__ import annotations

from operator import mul

from llmsched.core.policy import NodeView, View
from llmsched.core.resources import MILLI, Resources

KINDS = 64  # the most common bundle shapes that count
KEPT = 50_000  # answers remembered before all are forgotten


class LeastFragmentation:
    walk = 0
    alike = True

    def __init__(self) -> None:
        self._kinds: tuple[Resources, ...] = ()
        self._weights: tuple[int, ...] = ()
        self._lost: dict[tuple[object, ...], tuple[int, ...]] = {}  # likeness -> lost to each kind
        self._grown: dict[tuple[object, ...], tuple[int, ...]] = {}  # bundle and likeness -> more lost to each kind

    def score(self, bundle: Resources, node: NodeView, view: View) -> int:
        key = (bundle, node.likeness())
        grown = self._grown.get(key)
        if grown is None:
            before = self._fragments(node)
            after = self._fragments(node.after(bundle))
            grown = self._grown[key] = tuple(new - old for new, old in zip(after, before, strict=True))
        more: int = sum(map(mul, self._weights, grown))
        return -more

    def prepare(self, view: View) -> None:
        """What is typical now."""
        typical = sorted(view.typical_bundles(KINDS))
        kinds = tuple(kind for kind, _ in typical)
        self._weights = tuple(weight for _, weight in typical)
        if kinds != self._kinds or len(self._grown) > KEPT:
            self._kinds = kinds
            self._lost, self._grown = {}, {}

    def _fragments(self, node: NodeView) -> tuple[int, ...]:
        """Thousandths of free GPUs that each kind of work cannot use."""
        key = node.likeness()
        found = self._lost.get(key)
        if found is None:
            slack = [MILLI - taken for taken in node.shares]
            whole = max(node.free_whole, 0) * MILLI
            lost = []
            for need in self._kinds:
                if not need.gpus_milli or not node.room(need, 1):
                    lost.append(whole + sum(slack))
                elif need.gpus_milli < MILLI:
                    lost.append(sum(left for left in slack if left < need.gpus_milli))
                else:
                    lost.append(sum(slack))
            found = self._lost[key] = tuple(lost)
        return found
