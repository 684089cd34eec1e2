"""Demand for nodes and their release, as decisions: what the waiting could use, and what has been idle too long.

Demand is computed from our own queue, never from what an autoscaler believes; only gangs that wait for nodes (not for
quota or a window) count, and a request replaces the one before it. Prices keep to the ceiling of the configuration.
"""

from __future__ import annotations

from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Configuration, NodeType
from llmsched.core.decisions import ReleaseNode, RequestCapacity
from llmsched.core.explain import Reason
from llmsched.core.nodes import Node
from llmsched.core.plan import Plan
from llmsched.core.resources import Resources
from llmsched.core.trial import Trial
from llmsched.core.workload import Option

GANGS_COUNTED = 1000  # waiting gangs whose demand is added up
UNKNOWN = 1 << 50  # amount of a resource that a node type does not state


def run(trial: Trial, plan: Plan) -> None:
    state = trial.state
    types = state.configuration.node_types
    if not types:
        return
    present: dict[str, int] = dict.fromkeys((t.name for t in types), 0)
    for node in state.nodes.values():
        if node.node.node_type in present and not node.draining:
            present[node.node.node_type] += 1
    wanted = {t.name: max(present[t.name], t.min) for t in types}
    counted = 0
    for shape in state.waiting.live.values():
        reason = shape.reason
        if reason is None or reason.code not in ("nodes", "fragmentation", "topology", "capacity_coming"):
            continue
        for _, name in shape.entries:
            if name in plan.nominations or trial.held(state.gangs[name]):
                continue
            counted += 1
            if counted > GANGS_COUNTED:
                break
            _add(state.configuration, types, wanted, shape.sample.groups[0].options, shape.sample.min_size)
        if any(wanted[name] > present[name] for name in wanted):
            shape.reason = Reason("capacity_coming", reason.message, reason.counts, "a node that was asked for joins")
    counts = tuple((name, count) for name, count in wanted.items() if count)
    if counts != state.requested:
        plan.decisions.append(RequestCapacity(counts, f"{counted} gangs wait for nodes"))
    _release(trial, plan, types, present)


def _add(
    configuration: Configuration,
    types: tuple[NodeType, ...],
    wanted: dict[str, int],
    options: tuple[Option, ...],
    size: int,
) -> None:
    """Count the nodes for one gang: the first option, on the first type, that may still grow and stays affordable."""
    for flavor, need in options:
        for node_type in types:
            if flavor is not None and accelerator_of(configuration, node_type) != flavor:
                continue
            per_node = NodeState(Node("", total_of(node_type)), 0).room(need, size)
            if not per_node:
                continue
            more = -(-size // per_node)
            if wanted[node_type.name] + more <= node_type.max and _affordable(configuration, wanted, node_type, more):
                wanted[node_type.name] += more
                return


def _affordable(configuration: Configuration, wanted: dict[str, int], grown: NodeType, more: int) -> bool:
    ceiling = configuration.price_ceiling_per_hour
    if ceiling is None:
        return True
    price = {flavor.name: flavor.price_per_gpu_hour for flavor in configuration.flavors}
    total = sum(
        (wanted[t.name] + (more if t.name == grown.name else 0)) * t.gpus * price.get(t.flavor or "", 0.0)
        for t in configuration.node_types
    )
    return total <= ceiling


def total_of(node_type: NodeType) -> Resources:
    """What one node of a type has; what the type does not say is taken to be enough."""
    return Resources(node_type.gpus * 1000, node_type.cpus * 1000 or UNKNOWN, node_type.memory_bytes or UNKNOWN)


def accelerator_of(configuration: Configuration, node_type: NodeType) -> str | None:
    """The accelerator of a node type: its flavor's accelerator label, else the flavor's name."""
    for flavor in configuration.flavors:
        if flavor.name == node_type.flavor:
            return dict(flavor.labels).get("ray.io/accelerator-type", flavor.name)
    return node_type.flavor


def _release(trial: Trial, plan: Plan, types: tuple[NodeType, ...], present: dict[str, int]) -> None:
    """Nodes of our own types that have held nothing for their idle time go, down to the minimum."""
    rules = {t.name: t for t in types}
    if trial.state.waiting.count:
        return
    for name, node in trial.state.nodes.items():
        node_type = rules.get(node.node.node_type or "")
        if node_type is None or node.gpus or node.cpus or node.memory or node.draining:
            continue
        if present[node_type.name] <= node_type.min:
            continue
        due = node.idle_since + node_type.idle_timeout_s
        if due <= plan.at:
            present[node_type.name] -= 1
            plan.decisions.append(ReleaseNode(name, f"idle for {node_type.idle_timeout_s:g} s"))
        else:
            plan.wake(due)
