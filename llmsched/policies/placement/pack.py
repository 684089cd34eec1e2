"""The fullest node that still fits: keeps whole nodes free for large gangs, and GPU nodes free of CPU work."""

from __future__ import annotations

from llmsched.core.policy import NodeView, View
from llmsched.core.resources import Resources


class Pack:
    walk = 1
    alike = False

    def score(self, bundle: Resources, node: NodeView, view: View) -> int:
        if not bundle.gpus_milli:
            return -node.total_gpus
        return -(node.free_whole * 1000 + node.unshared_milli)
