"""What a node of a configured type is like, before it is there: what it has, its accelerator and labels, its price."""

from __future__ import annotations

from llmsched.core.configuration import Configuration, NodeType
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, Resources

UNKNOWN = 1 << 50  # amount of a resource that a node type does not state


def price_of(configuration: Configuration, node_type: NodeType) -> float:
    """Of one node, per hour."""
    price = {flavor.name: flavor.price_per_gpu_hour for flavor in configuration.flavors}
    return node_type.gpus * price.get(node_type.flavor or "", 0.0)


def node_of(configuration: Configuration, node_type: NodeType, name: str = "") -> Node:
    """A node of a type, empty and nameless until it joins."""
    labels = next((flavor.labels for flavor in configuration.flavors if flavor.name == node_type.flavor), ())
    return Node(
        name, resources_of(node_type), accelerator_of(configuration, node_type), labels, node_type=node_type.name
    )


def resources_of(node_type: NodeType) -> Resources:
    """What one node of a type has; what the type does not say is taken to be enough."""
    return Resources(node_type.gpus * MILLI, node_type.cpus * MILLI or UNKNOWN, node_type.memory_bytes or UNKNOWN)


def accelerator_of(configuration: Configuration, node_type: NodeType) -> str | None:
    """The accelerator of a node type: its flavor's accelerator label, else the flavor's name."""
    for flavor in configuration.flavors:
        if flavor.name == node_type.flavor:
            return dict(flavor.labels).get("ray.io/accelerator-type", flavor.name)
    return node_type.flavor
