"""What is held and promised: on nodes, in quota, and by each queue.

Every amount is put in and taken out by `charge`, which undoes itself exactly. Knows no facts and no rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import copy

from llmsched.core.capacity import Capacity, NodeState
from llmsched.core.configuration import Configuration
from llmsched.core.past_use import bring_up_to
from llmsched.core.prices import price_per_gpu_hour
from llmsched.core.quota import QuotaTree
from llmsched.core.records import GangState, HoldingGroup, QueueUse, Weighed, amount_of, gpus_of, lets_go, weigh
from llmsched.core.resources import MILLI, ByNode, Resources
from llmsched.core.usage import MICROS, Held, Meter
from llmsched.core.workload import Placement


class Ledgers:
    """A state has one; a trial that looks ahead has a twin of it."""

    def __init__(self, configuration: Configuration) -> None:
        self.capacity = Capacity()
        self.nodes: dict[str, NodeState] = self.capacity.by_id
        self.quota = QuotaTree(configuration, {})
        self.use: dict[str, QueueUse] = {}
        self.groups: dict[tuple[str, int, bool], HoldingGroup] = {}  # by queue, priority, preemptible
        self.graces: dict[str, float] = {}  # seconds that each that holds something has to leave
        self.kinds: dict[Resources, int] = {}  # bundle shape -> groups of gangs that hold such bundles
        self.frees: dict[tuple[Resources, ...], int] = {}  # what nodes have again -> gangs whose end gives it back
        self.present: dict[str, dict[str, None]] = {}  # by node: gangs that hold something there
        self.configuration = configuration
        self.meter = Meter()  # of what `hold` says; a twin holds nothing of its own
        self.half_life_s = configuration.scheduling.usage_half_life_s

    def twin(self) -> Ledgers:
        """The same amounts, to be changed apart. Who holds what by group is shared, and must not change meanwhile."""
        other = copy(self)
        other.capacity = self.capacity.twin()
        other._part(self)
        return other

    def overlay(self) -> Ledgers:
        """The same amounts, to be changed there for as long as nothing changes here. Costs what is changed."""
        other = copy(self)
        other.capacity = self.capacity.overlay()
        other._part(self)
        return other

    def _part(self, other: Ledgers) -> None:
        self.nodes = self.capacity.by_id
        self.quota = other.quota.twin()
        self.use = {name: copy(use) for name, use in other.use.items()}

    def configure(self, configuration: Configuration, gangs: Iterable[GangState]) -> None:
        """Quota as it is under this configuration, on the nodes that are there, with what these gangs have."""
        self.half_life_s = configuration.scheduling.usage_half_life_s
        cluster: dict[str, int] = {}
        for node in self.nodes.values():
            name = node.node.flavor or ""
            cluster[name] = cluster.get(name, 0) + node.total_gpus * MILLI
        self.quota = QuotaTree(configuration, cluster)
        for gang in gangs:
            placement = gang.held or (gang.nomination.placement if gang.nomination else ())
            for flavor, amount in self._by_flavor(gang, placement).items():
                self.quota.charge(gang.spec.queue, flavor, amount)
            for flavor, amount in self._beyond_held(gang, gang.goes_to).items():
                self.quota.charge(gang.spec.queue, flavor, amount)
            for name, used in gang.excess:
                self.quota.charge(gang.spec.queue, self.nodes[name].node.flavor, used.gpus_milli)

    def hold(self, gang: GangState, new: Placement, now: float) -> None:
        """Make the gang hold exactly `new` on nodes and in quota."""
        spec = gang.spec
        self.account(spec.queue, now)
        group = self.groups.setdefault((spec.queue, spec.priority, spec.preemptible), HoldingGroup())
        group.gpus_milli += gpus_of(spec, new) - gpus_of(spec, gang.held)
        if new:
            group.gangs[gang.id] = None
        else:
            group.gangs.pop(gang.id, None)
        if new:
            self.graces[gang.id] = spec.grace_s
        else:
            self.graces.pop(gang.id, None)
        if bool(new) != bool(gang.held):
            for each in spec.groups:
                shape = each.options[0].resources
                self.kinds[shape] = self.kinds.get(shape, 0) + (1 if new else -1)
                if not self.kinds[shape]:
                    del self.kinds[shape]
        self.count_frees(gang, -1)
        if gang.held:
            self.charge(gang, gang.held, -1)
            for placed in gang.held:
                self.nodes[placed.node].idle_since = now
                self.present[placed.node].pop(gang.id, None)
        gang.held = new
        amounts = self.charge(gang, new, 1) if new else {}
        self.count_frees(gang, 1)
        self.show(gang)
        if not new:
            gang.weighed = None
        held = self._priced(gang, new, amounts)
        self.meter.hold(gang.id, gang.workload_id, spec.queue, held, self.quota, now)

    def count_frees(self, gang: GangState, sign: int) -> None:
        """One more (1) or fewer (-1) that lets go of what this one holds."""
        if gang.held and (found := lets_go(_weighed(gang, gang.held))):
            self.frees[found] = self.frees.get(found, 0) + sign
            if not self.frees[found]:
                del self.frees[found]

    def show(self, gang: GangState) -> None:
        """It is present where it holds something."""
        for placed in gang.held:
            self.present.setdefault(placed.node, {})[gang.id] = None

    def price(self, configuration: Configuration, gangs: Iterable[GangState], now: float) -> None:
        """Whose quota it is that these gangs hold, and what it costs, as it was configured now."""
        self.configuration = configuration
        gangs = [*gangs]
        held = {gang.id: self._priced(gang, gang.held, self._by_flavor(gang, gang.held)) for gang in gangs}
        excess = {gang.id: self._priced_excess(gang) for gang in gangs if gang.excess}
        self.meter.configure(held, excess, self.quota, now)

    def _priced(self, gang: GangState, placement: Placement, amounts: Mapping[str | None, int]) -> dict[str, Held]:
        rates: dict[str | None, int] = {}
        if any(flavor.price_per_gpu_hour for flavor in self.configuration.flavors):
            for placed, count in Counter(placement).items():
                node = self.nodes[placed.node].node
                price = round(price_per_gpu_hour(self.configuration, node) * MICROS)
                rate = amount_of(gang.spec, placed).gpus_milli * count * price
                rates[node.flavor] = rates.get(node.flavor, 0) + rate
        return {flavor or "": Held(gpus, rates.get(flavor, 0)) for flavor, gpus in amounts.items()}

    def exceed(self, gang: GangState, used: ByNode, now: float) -> None:
        """Charge the gang's queue with exactly `used` beyond what the gang holds. Its nodes count it as foreign use."""
        self.account(gang.spec.queue, now)
        self._charge_excess(gang, -1)
        gang.excess = used
        self._charge_excess(gang, 1)
        self.meter.exceed(gang.id, gang.workload_id, gang.spec.queue, self._priced_excess(gang), now)

    def _priced_excess(self, gang: GangState) -> dict[str, Held]:
        taken: dict[str, Held] = {}
        for name, amount in gang.excess:
            node, gpus = self.nodes[name].node, amount.gpus_milli
            before = taken.get(node.flavor or "", Held(0))
            rate = gpus * round(price_per_gpu_hour(self.configuration, node) * MICROS)
            taken[node.flavor or ""] = Held(before.gpus_milli + gpus, before.rate + rate)
        return {flavor: held for flavor, held in taken.items() if held.gpus_milli}

    def _charge_excess(self, gang: GangState, sign: int) -> None:
        queue, use = gang.spec.queue, self.use[gang.spec.queue]
        for name, amount in gang.excess:
            flavor = self.nodes[name].node.flavor
            if sign > 0:
                self.quota.charge(queue, flavor, amount.gpus_milli)
            else:
                self.quota.release(queue, flavor, amount.gpus_milli)
            use.gpus_milli += sign * amount.gpus_milli
            use.cpus_milli += sign * amount.cpus_milli
            use.memory_bytes += sign * amount.memory_bytes

    def return_excess(self, gang: GangState) -> ByNode:
        """As if it had ended: its queue and its nodes have it back. What each node has, for `take_excess`: no more than
        is known to be in use there."""
        self._charge_excess(gang, -1)
        returned = []
        for name, amount in gang.excess:
            node = self.capacity.to_change(name)
            found = amount.at_most(node.foreign)
            node.foreign = node.foreign.minus(found)
            self.capacity.reindex(node)
            returned.append((name, found))
        return tuple(returned)

    def take_excess(self, gang: GangState, returned: ByNode) -> None:
        """Undoes `return_excess`."""
        self._charge_excess(gang, 1)
        for name, amount in returned:
            node = self.capacity.to_change(name)
            node.foreign = node.foreign.plus(amount)
            self.capacity.reindex(node)

    def account(self, queue: str, now: float) -> None:
        """Bring a queue's decayed past use up to now, before what it holds changes."""
        bring_up_to(self.use.setdefault(queue, QueueUse(decayed_at=now)), now, self.half_life_s)

    def _by_flavor(self, gang: GangState, placement: Placement) -> dict[str | None, int]:
        amounts: dict[str | None, int] = {}
        for placed in placement:
            gpus = amount_of(gang.spec, placed).gpus_milli
            node = self.nodes.get(placed.node)
            if gpus and node is not None:
                flavor = node.node.flavor
                amounts[flavor] = amounts.get(flavor, 0) + gpus
        return amounts

    def keep(self, gang: GangState, placement: Placement, sign: int) -> None:
        """Keep (1) these places for a gang that is leaving others, or give them up (-1): on nodes and in quota as far
        as they are more than what it holds, which is its own as long."""
        more = tuple((Counter(placement) - Counter(gang.held)).elements())
        for name, amount, device in weigh(gang.spec, more).amounts:
            node = self.capacity.to_change(name)
            self.capacity.take(node, amount, device, sign)
            node.promised += sign * amount.gpus_milli
        for flavor, gpus in self._beyond_held(gang, placement).items():
            if sign > 0:
                self.quota.charge(gang.spec.queue, flavor, gpus)
            else:
                self.quota.release(gang.spec.queue, flavor, gpus)

    def _beyond_held(self, gang: GangState, placement: Placement) -> dict[str | None, int]:
        """What a placement is more than what the gang holds, by row of its quota: a flavor of each."""
        more: dict[str, int] = {}
        flavors: dict[str, str | None] = {}
        for places, sign in ((placement, 1), (gang.held if placement else (), -1)):
            for flavor, gpus in self._by_flavor(gang, places).items():
                row = self.quota.row_of(gang.spec.queue, flavor)
                flavors.setdefault(row, flavor)
                more[row] = more.get(row, 0) + sign * gpus
        return {flavors[row]: gpus for row, gpus in more.items() if gpus > 0}

    def charge(self, gang: GangState, placement: Placement, sign: int, promise: bool = False) -> dict[str | None, int]:
        """Put a placement into the ledgers (sign 1) or take it out (-1). Exact: the two undo each other. How many
        thousandths of GPUs it is, by flavor."""
        spec = gang.spec
        queue = spec.queue
        take, nodes = self.capacity.take, self.nodes
        by_flavor: dict[str | None, int] = {}
        cpus = memory = total = 0
        for name, amount, device in _weighed(gang, placement).amounts:
            node = nodes[name]
            take(node, amount, device, sign)
            gpus = amount.gpus_milli
            if gpus:
                if promise:
                    nodes[name].promised += sign * gpus
                flavor = node.node.flavor
                by_flavor[flavor] = by_flavor.get(flavor, 0) + gpus
                total += gpus
            cpus += amount.cpus_milli
            memory += amount.memory_bytes
        for flavor, gpus in by_flavor.items():
            if sign > 0:
                self.quota.charge(queue, flavor, gpus)
            else:
                self.quota.release(queue, flavor, gpus)
        use = self.use.get(queue)
        if use is None:
            use = self.use[queue] = QueueUse()
        use.gpus_milli += sign * total
        use.promised_milli += sign * total if promise else 0
        use.cpus_milli += sign * cpus
        use.memory_bytes += sign * memory
        if not spec.preemptible:
            use.fixed_milli += sign * total
        return by_flavor

    def charge_all(self, rows: Iterable[tuple[GangState, Placement]], sign: int) -> None:
        """`charge` for many at once: each node and queue is changed once, for all of them."""
        nodes, take = self.nodes, self.capacity.take
        on_nodes: dict[str, list[int]] = {}  # GPUs, CPUs, memory
        by_queue: dict[tuple[str, str | None], int] = {}
        for gang, placement in rows:
            spec = gang.spec
            weighed = gang.weighed
            if weighed is None or weighed.placement is not placement or weighed.spec is not spec:
                weighed = weigh(spec, placement)
            use = self.use.setdefault(spec.queue, QueueUse())
            for name, amount, device in weighed.amounts:
                gpus, cpus, memory, custom = amount
                if device >= 0 or custom:
                    take(nodes[name], amount, device, sign)
                elif name in on_nodes:
                    sums = on_nodes[name]
                    sums[0] += gpus
                    sums[1] += cpus
                    sums[2] += memory
                else:
                    on_nodes[name] = [gpus, cpus, memory]
                if gpus:
                    key = (spec.queue, nodes[name].node.flavor)
                    by_queue[key] = by_queue.get(key, 0) + gpus
                    use.gpus_milli += sign * gpus
                    if not spec.preemptible:
                        use.fixed_milli += sign * gpus
                use.cpus_milli += sign * cpus
                use.memory_bytes += sign * memory
        for name, (gpus, cpus, memory) in on_nodes.items():
            take(nodes[name], Resources(gpus, cpus, memory), -1, sign)
        change = self.quota.charge if sign > 0 else self.quota.release
        for (queue, flavor), gpus in by_queue.items():
            change(queue, flavor, gpus)


def _weighed(gang: GangState, placement: Placement) -> Weighed:
    """Kept for the next one who asks for the same."""
    weighed = gang.weighed
    if weighed is None or weighed.placement is not placement or weighed.spec is not gang.spec:
        weighed = gang.weighed = weigh(gang.spec, placement)
    return weighed
