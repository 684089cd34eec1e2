"""Demand for nodes and their release, as decisions: what the waiting could use, and what has been idle too long.

Demand is computed from our own queue, never from what an autoscaler believes: whoever waits for nodes (not for quota, a
window or its turn) is packed, in order, onto what is free, then onto nodes that were asked for and have not come, then
onto new nodes of a type that may still grow. A request names how many nodes of each type there should be, and replaces
the one before it. Prices keep to the ceiling of the configuration.

A type that keeps us waiting for COMES_WITHIN_S is passed over for SHUNNED_S in favour of others. A node that somebody
who waits could use is not given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from llmsched.core.amounts import flavor_of, need_milli
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import NodeType
from llmsched.core.decisions import ReleaseNode, RequestCapacity
from llmsched.core.explain import Reason
from llmsched.core.message import NODE_TYPE, Ref, say
from llmsched.core.node_types import node_of, price_of
from llmsched.core.nodes import COMES_WITHIN_S
from llmsched.core.plan import Plan
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.stages.place import eligible, quota_refusal
from llmsched.core.state import State
from llmsched.core.suitable import wish_of
from llmsched.core.trial import Trial
from llmsched.core.workload import Workload

GANGS_COUNTED = 1000  # waiting gangs whose demand is added up
COMING = "capacity_coming"
WAITS_FOR_NODES = ("nodes", "fragmentation", "topology")


def run(this: Pass) -> None:
    trial, state, plan = this.trial, this.state, this.plan
    if not state.configuration.node_types:
        return
    for shape in state.waiting.live.values():
        _forget(this, shape)
    if plan.is_cut:
        return
    demand = Demand(this)
    demand.count_waiting()
    _release(trial, plan, demand)
    counts = tuple((name, count) for name, count in demand.wanted.items() if count)
    if counts != state.fleet.requested:
        plan.wake(plan.at + COMES_WITHIN_S)
        plan.decisions.append(RequestCapacity(counts, say("capacity.demand", gangs=demand.served)))


def _forget(this: Pass, shape: Shape) -> None:
    """What the last pass told of nodes to come: this one says itself whether they still are."""
    reason = this.reason_of(shape)
    if reason is not None and reason.code == COMING:
        wants = reason.message.inner("wants")
        this.tell(shape, Reason(wants.code.partition(".")[0], wants, reason.counts))


class Demand:
    """The nodes of each type that there should be. `wanted` counts those that are there; `used` are the nodes on whose
    free room somebody who waits was packed."""

    def __init__(self, this: Pass) -> None:
        self.this, self.trial, self.plan = this, this.trial, this.plan
        trial, plan = this.trial, this.plan
        state = trial.state
        self.configuration = state.configuration
        self.types = _in_order(state, plan)
        self.present = dict.fromkeys((t.name for t in state.configuration.node_types), 0)
        for node in state.nodes.values():
            if node.node.node_type in self.present and not node.leaving:  # one that is drained is paid for
                self.present[node.node.node_type] += 1
        self.wanted = {t.name: max(self.present[t.name], t.min) for t in state.configuration.node_types}
        self.new = [NodeState(node_of(self.configuration, t), 0) for t in self.types for _ in range(self._to_come(t))]
        self.used: dict[str, None] = {}
        self.served = 0

    def _to_come(self, node_type: NodeType) -> int:
        return self.wanted[node_type.name] - self.present[node_type.name]

    def count_waiting(self) -> None:
        """Pack whoever waits for nodes, in order of their classes; a class of which one finds no room is left."""
        state, trial = self.trial.state, self.trial
        counted = 0
        charged: list[tuple[str, str | None, int]] = []
        undo: list[tuple[NodeState, Resources, int]] = []
        for shape in sorted(state.waiting.live.values(), key=lambda shape: shape.entries[0][0]):
            reason = self.this.reason_of(shape)
            if reason is None or reason.code not in WAITS_FOR_NODES:
                continue
            for name in _who_waits(trial, self.plan, shape):
                own = self.this.own_reason_of(state.gangs[name])
                if own is not None and own.code not in WAITS_FOR_NODES:
                    continue  # more nodes are of no use to it, whatever its class was told
                counted += 1
                if counted > GANGS_COUNTED or not self._pack(state.gangs[name], undo, charged):
                    break
                self.served += 1
                if any(self._to_come(t) for t in self.types):
                    self._tell(shape)
            if counted > GANGS_COUNTED:
                break
        for node, amount, device in reversed(undo):
            if node.node.id:
                state.capacity.change(node.node.id, amount, device, -1)
        for queue, flavor, milli in charged:
            state.quota.release(queue, flavor, milli)

    def _tell(self, shape: Shape) -> None:
        _forget(self.this, shape)
        reason = self.this.reason_of(shape)
        assert reason is not None
        coming = tuple(
            say("nodes_of", count=n, type=Ref(NODE_TYPE, t.name)) for t in self.types if (n := self._to_come(t))
        )
        told = say("capacity_coming.asked", wants=reason.message, coming=coming)
        self.this.tell(shape, Reason(COMING, told, reason.counts))

    def _pack(
        self, gang: GangState, undo: list[tuple[NodeState, Resources, int]], charged: list[tuple[str, str | None, int]]
    ) -> bool:
        """Find room for all of it on what is free, has been asked for, or could be."""
        spec = gang.spec
        for option in range(max(len(group.options) for group in spec.groups)):
            milli, quota = need_milli(spec, spec.min_size, option), self.trial.state.quota
            flavors = quota.flavors_for(spec.queue, flavor_of(spec, option))
            may_have = [each for each in flavors if quota_refusal(self.trial, spec, each, milli) is None]
            if not may_have:
                continue
            flavor = may_have[0]
            first, before = len(undo), (dict(self.wanted), len(self.new), dict(self.used))
            if all(self._bundles(spec, number, option, undo) for number in range(len(spec.groups))):
                if self.trial.state.quota.enforced:
                    self.trial.state.quota.charge(spec.queue, flavor, milli)
                    charged.append((spec.queue, flavor, milli))
                return True
            self._take_back(undo, first)
            self.wanted, self.used = before[0], before[2]
            del self.new[before[1] :]
        return False

    def _take_back(self, undo: list[tuple[NodeState, Resources, int]], first: int) -> None:
        for node, amount, device in reversed(undo[first:]):
            if node.node.id:
                self.trial.state.capacity.change(node.node.id, amount, device, -1)
            else:
                node.change(amount, device, -1)
        del undo[first:]

    def _bundles(self, spec: Workload, number: int, option: int, undo: list[tuple[NodeState, Resources, int]]) -> bool:
        group = spec.groups[number]
        need, wish = group.option(option).resources, wish_of(spec, option, number)
        left = spec.min_size if number == 0 else group.count
        together = spec.topology.required == "node"  # all of it on one node
        for node in self._rooms(spec, number, option, need, left if together else 1):
            fitting = node.room(need, left)
            for _ in range(fitting):
                self._take(node, need, undo)
            left -= fitting
            if not left:
                return True
        for node_type in self.types:
            if not wish.suits(node_of(self.configuration, node_type)):
                continue
            while left:
                node = NodeState(node_of(self.configuration, node_type), 0)
                fitting = node.room(need, left)
                if fitting < (left if together else 1) or not self._may_grow(node_type):
                    break
                self.wanted[node_type.name] += 1
                self.new.append(node)
                for _ in range(fitting):
                    self._take(node, need, undo)
                left -= fitting
        return not left

    def _rooms(self, spec: Workload, number: int, option: int, need: Resources, least: int) -> Iterator[NodeState]:
        """Nodes with room for `least` bundles: those that are there, then those that were asked for. In which domain a
        node to come will be is not known, so who must be in one gets new ones."""
        capacity = self.trial.state.capacity
        if spec.topology.required in (None, "node"):
            mask = eligible(self.trial, spec, option, number)
            whole = need.gpus_milli // MILLI
            for node in capacity.nodes(mask & capacity.with_free(whole) if whole else mask):
                if node.room(need, least) >= least:
                    yield node
        wish = wish_of(spec, option, number)
        for node in self.new:
            if wish.suits(node.node) and node.room(need, least) >= least:
                yield node

    def _take(self, node: NodeState, need: Resources, undo: list[tuple[NodeState, Resources, int]]) -> None:
        device = node.device_for(need.gpus_milli)
        if node.node.id:
            self.used[node.node.id] = None
            self.trial.state.capacity.change(node.node.id, need, device, 1)
        else:
            node.change(need, device, 1)
        undo.append((node, need, device))

    def _may_grow(self, node_type: NodeType) -> bool:
        """Whether one node more keeps to the type's maximum and to the price ceiling."""
        ceiling = self.configuration.price_ceiling_per_hour
        if self.wanted[node_type.name] >= node_type.max:
            return False
        if ceiling is None:
            return True
        total = price_of(self.configuration, node_type)
        total += sum(price_of(self.configuration, t) * self.wanted[t.name] for t in self.configuration.node_types)
        return total <= ceiling


def _in_order(state: State, plan: Plan) -> list[NodeType]:
    """As written, those that have no capacity, or had none lately, last."""

    def is_short(node_type: NodeType) -> bool:
        since = state.fleet.overdue_since.get(node_type.name, inf)
        is_overdue = plan.has_come(since + COMES_WITHIN_S)
        return is_overdue or not plan.has_come(state.fleet.shunned_until.get(node_type.name, -inf))

    return sorted(state.configuration.node_types, key=is_short)


def _who_waits(trial: Trial, plan: Plan, shape: Shape) -> Iterator[str]:
    for _, name in shape.entries:
        if name not in plan.nominations and not trial.held(trial.state.gangs[name]):
            yield name


def _release(trial: Trial, plan: Plan, demand: Demand) -> None:
    """Nodes of our own types that have held nothing for their idle time go, down to the minimum, unless somebody who
    waits could use them."""
    rules = {t.name: t for t in demand.types}
    for name, node in trial.state.nodes.items():
        node_type = rules.get(node.node.node_type or "")
        if node_type is None or node.gpus or node.cpus or node.memory or node.draining or name in demand.used:
            continue
        if demand.present[node_type.name] <= node_type.min:
            continue
        due = node.idle_since + node_type.idle_timeout_s
        if plan.has_come(due):
            demand.present[node_type.name] -= 1
            demand.wanted[node_type.name] -= 1
            plan.decisions.append(ReleaseNode(name, say("release.idle", idle=node_type.idle_timeout_s)))
