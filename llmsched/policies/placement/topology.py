"""Keep like with like: the fullest node of the rack that is fullest already, so that whole racks stay free for gangs
that need one domain."""

from __future__ import annotations

from llmsched.core.policy import NodeView, View
from llmsched.core.resources import Resources

WEIGHT = 1_000_000  # a free GPU in the rack counts more than any on the node


class Topology:
    walk = 0  # racks differ between nodes that are equally free, so all are scored
    alike = False

    def score(self, bundle: Resources, node: NodeView, view: View) -> int:
        return -(view.free_gpus_beside(node, "rack") * WEIGHT + node.free_whole * 1000 - sum(node.shares))
