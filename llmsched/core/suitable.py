"""Which nodes may ever hold a bundle, whatever is free there: by flavor, labels and spot. Decided here alone.

Knows no amounts.
"""

from __future__ import annotations

from typing import NamedTuple

from llmsched.core.nodes import Node
from llmsched.core.workload import Workload

SPOT = "llmsched.io/spot"


class Wish(NamedTuple):
    """What one group of a gang asks of a node; `use_spot` None: it takes both kinds."""

    flavor: str | None
    labels: tuple[tuple[str, str], ...] = ()
    use_spot: bool | None = None

    def suits(self, node: Node) -> bool:
        if self.flavor is not None and node.flavor != self.flavor:
            return False
        if any(node.label(key) != value for key, value in self.labels):
            return False
        return self.use_spot is None or self.use_spot == (node.label(SPOT) == "true")


def wish_of(spec: Workload, option: int, group: int = 0) -> Wish:
    """Of a group with an option; labels and spot are those of the whole workload."""
    return Wish(spec.groups[group].option(option).flavor, spec.node_labels, spec.use_spot)
