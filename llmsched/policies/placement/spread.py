"""The emptiest node: less is lost with one node, and replicas of an endpoint do not share its fate."""

from __future__ import annotations

from llmsched.core.capacity import NodeState
from llmsched.core.policy import View
from llmsched.core.resources import Resources


class Spread:
    walk = -1
    alike = False

    def score(self, bundle: Resources, node: NodeState, view: View) -> int:
        if not bundle.gpus_milli:
            return node.node.total.cpus_milli - node.cpus
        return node.free_whole * 1000 + sum(1000 - taken for taken in node.shares.values())
