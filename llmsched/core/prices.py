"""What an hour of a GPU costs on a node, as the configuration prices flavors."""

from __future__ import annotations

from llmsched.core.configuration import Configuration, Flavor
from llmsched.core.nodes import Node


def price_per_gpu_hour(configuration: Configuration, node: Node) -> float:
    """Of a node of a type, its type's flavor's; of any other, that of the flavor that says the most of its labels, or
    bears the name of its accelerator. 0.0: nobody said."""
    for node_type in configuration.node_types:
        if node.node_type == node_type.name:
            return next((one.price_per_gpu_hour for one in configuration.flavors if one.name == node_type.flavor), 0.0)
    fitting = [one for one in configuration.flavors if _is(one, node)]
    return max(fitting, key=lambda one: len(one.labels)).price_per_gpu_hour if fitting else 0.0


def _is(flavor: Flavor, node: Node) -> bool:
    labels = dict(flavor.labels)
    if labels.pop("ray.io/accelerator-type", flavor.name) != node.flavor:
        return False
    return all(node.label(key) == value for key, value in labels.items())
