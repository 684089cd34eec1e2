"""The emptiest node: less is lost with one node, and replicas of an endpoint do not share its fate."""

from __future__ import annotations

from llmsched.core.policy import NodeView, View
from llmsched.core.resources import Resources


class Spread:
    walk = -1
    alike = False

    def score(self, bundle: Resources, node: NodeView, view: View) -> int:
        if not bundle.gpus_milli:
            return node.total.cpus_milli - node.used.cpus_milli
        return node.free_whole * 1000 + node.unshared_milli
