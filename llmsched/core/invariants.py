"""The safety rules as functions that say what is broken. Run after every apply in tests, after every turn in the
simulator, sampled in production. Everything is recomputed from the gangs: a cache cannot vouch for itself.
"""

from __future__ import annotations

from collections import Counter

from llmsched.core.outstanding import Outstanding
from llmsched.core.quota import QuotaTree
from llmsched.core.records import GangState, amount_of, lets_go, size_of, weigh
from llmsched.core.resources import MILLI
from llmsched.core.state import State
from llmsched.core.status import HOLDING, Status
from llmsched.core.usage import limit_of
from llmsched.core.workload import Placed


def violations(state: State) -> list[str]:
    """Every broken rule, with its number in the list of invariants; empty when all is well."""
    return [*_nodes(state), *_gangs(state), *_quota(state), *_usage(state), *_indices(state)]


def _nodes(state: State) -> list[str]:
    """I1: what is held on a node never exceeds it; a device is shared by at most one device's worth."""
    broken = []
    sums: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in state.nodes}
    shares: dict[str, dict[int, int]] = {name: {} for name in state.nodes}
    promised: dict[str, int] = dict.fromkeys(state.nodes, 0)
    ledger: dict[str, int] = dict.fromkeys(state.nodes, 0)
    for gang in state.gangs.values():
        for promise, placement in (
            (False, gang.held),
            (True, gang.nomination.placement if gang.nomination else _kept(gang)),
        ):
            for placed in placement:
                amount = amount_of(gang.spec, placed)
                if placed.node not in sums:
                    broken.append(f"I1 {gang.id} holds a bundle on {placed.node}, which is not there")
                    continue
                ledger[placed.node] += amount.gpus_milli
                if promise:
                    promised[placed.node] += amount.gpus_milli
                    continue
                row = sums[placed.node]
                row[0] += amount.gpus_milli
                row[1] += amount.cpus_milli
                row[2] += amount.memory_bytes
                row[3] += amount.gpus_milli // MILLI
                if amount.gpus_milli % MILLI:
                    devices = shares[placed.node]
                    devices[placed.gpu_index] = devices.get(placed.gpu_index, 0) + amount.gpus_milli % MILLI
    for name, going in _going(state).items():
        node = state.nodes[name]
        if node.promised and node.gpus - going > node.node.total.gpus_milli:
            broken.append(f"I11 node {name} is promised to more than fits once its victims have left")
    for name, node in state.nodes.items():
        total = node.node.total
        held_gpus, cpus, memory, whole = sums[name]
        if held_gpus > total.gpus_milli or cpus > total.cpus_milli or memory > total.memory_bytes:
            broken.append(
                f"I1 node {name} gives {held_gpus} of {total.gpus_milli} GPU thousandths, {cpus} CPU, {memory} B"
            )
        if any(taken > MILLI for taken in shares[name].values()):
            broken.append(f"I1 a device of node {name} is shared by more than one device's worth: {shares[name]}")
        if whole + len(shares[name]) > node.total_gpus:
            broken.append(
                f"I1 node {name} has {node.total_gpus} devices, {whole} whole and {len(shares[name])} shared are taken"
            )
        if ledger[name] != node.gpus or promised[name] != node.promised:
            broken.append(f"I9 node {name} counts {node.gpus}/{node.promised}, gangs {ledger[name]}/{promised[name]}")
    return broken


def _going(state: State) -> dict[str, int]:
    """Thousandths of GPUs on each node that are on their way to being free: of leaving gangs and of shrinking ones."""
    going = dict.fromkeys(state.nodes, 0)
    for gang in state.gangs.values():
        stays = Counter(gang.placement or ()) if gang.status is not Status.VACATING else Counter()
        if gang.status in (Status.VACATING, Status.RESIZING):
            for placed in (Counter(gang.held) - stays).elements():
                going[placed.node] += amount_of(gang.spec, placed).gpus_milli
    return going


def _gangs(state: State) -> list[str]:
    """I2: a running gang holds all its bundles. I6, I7: what holds is open, what has ended holds nothing."""
    broken = []
    for gang in state.gangs.values():
        if gang.status not in HOLDING and gang.held:
            broken.append(f"I7 {gang.id} is {gang.status.value} and still holds {len(gang.held)} bundles")
        if gang.status in (Status.LAUNCHING, Status.RUNNING, Status.RESIZING) and not gang.lost_members:
            size = size_of(gang.spec, gang.placement or ())
            if not gang.spec.min_size <= size <= gang.spec.max_size:
                broken.append(f"I2 {gang.id} runs with {size}, outside {gang.spec.min_size}..{gang.spec.max_size}")
            for group in gang.spec.groups[1:]:
                count = sum(placed.group == group.name for placed in gang.placement or ())
                if count != group.count:
                    broken.append(f"I2 {gang.id} runs with {count} of {group.count} bundles of {group.name}")
        if gang.nomination is not None and gang.status is not Status.QUEUED:
            broken.append(f"I7 {gang.id} is {gang.status.value} and nominated")
        if gang.goes_to and gang.status is not Status.VACATING:
            broken.append(f"I7 {gang.id} is {gang.status.value} and places are kept for it")
    for record in state.workloads.values():
        if record.outcome and any(not state.gangs[name].is_ended() for name in record.gangs):
            broken.append(f"I7 {record.workload.id} has {record.outcome} while a gang of it has not ended")
        if record.outcome == "succeeded" and any(state.gangs[n].status is Status.FAILED for n in record.gangs):
            broken.append(f"I7 {record.workload.id} succeeded although a gang failed")
    return broken


def _kept(gang: GangState) -> list[Placed]:
    """The places that are kept for it while it leaves, but for those that it holds."""
    return [*(Counter(gang.goes_to) - Counter(gang.held)).elements()]


def _quota(state: State) -> list[str]:
    """I9: incremental counters equal those recomputed from the gangs."""
    broken = []
    cluster: dict[str, int] = {}
    for node in state.nodes.values():
        cluster[node.node.flavor or ""] = cluster.get(node.node.flavor or "", 0) + node.total_gpus * MILLI
    fresh = QuotaTree(state.configuration, cluster)
    totals: dict[str, int] = {}
    for gang in state.gangs.values():
        kept, flavors = Counter[str](), dict[str, str | None]()  # beyond what it holds, which is its own as long
        for sign, placement in ((1, gang.goes_to), (-1, gang.held if gang.goes_to else ())):
            for placed in placement:
                flavor = state.nodes[placed.node].node.flavor
                row = fresh.row_of(gang.spec.queue, flavor)
                flavors.setdefault(row, flavor)
                kept[row] += sign * amount_of(gang.spec, placed).gpus_milli
        for row, gpus in kept.items():
            fresh.charge(gang.spec.queue, flavors[row], max(gpus, 0))
        for placed in (*gang.held, *(gang.nomination.placement if gang.nomination else ())):
            gpus = amount_of(gang.spec, placed).gpus_milli
            found = state.nodes.get(placed.node)
            if gpus and found is not None:
                fresh.charge(gang.spec.queue, found.node.flavor, gpus)
                totals[gang.spec.queue] = totals.get(gang.spec.queue, 0) + gpus
        for name, used in gang.excess:
            fresh.charge(gang.spec.queue, state.nodes[name].node.flavor, used.gpus_milli)
            totals[gang.spec.queue] = totals.get(gang.spec.queue, 0) + used.gpus_milli
    for row, branches in fresh.rows.items():
        for name, branch in branches.items():
            have = state.quota.rows[row][name].used
            if have != branch.used:
                broken.append(f"I9 {name} ({row}) is charged {have}, its gangs hold {branch.used}")
    for queue, use in state.use.items():
        if use.gpus_milli != totals.get(queue, 0):
            broken.append(f"I9 queue {queue} counts {use.gpus_milli}, its gangs hold {totals.get(queue, 0)}")
    return broken


def _usage(state: State) -> list[str]:
    """I9: the meter reads what gangs hold, and as borrowed exactly what their queues do not own of it."""
    broken = []
    held: Counter[tuple[str, str]] = Counter()
    for gang in state.gangs.values():
        for placed in gang.held:
            gpus, found = amount_of(gang.spec, placed).gpus_milli, state.nodes.get(placed.node)
            if gpus and found is not None:
                held[gang.spec.queue, state.quota.row_of(gang.spec.queue, found.node.flavor)] += gpus
    meter = state.ledgers.meter
    if meter.held() != dict(held):
        broken.append(f"I9 the meter counts {meter.held()}, gangs hold {dict(held)}")
    beyond = {line: amount - limit_of(state.quota, line) for line, amount in held.items()}
    borrowed = {line: amount for line, amount in beyond.items() if amount > 0}
    if meter.borrowed() != borrowed:
        broken.append(f"I9 the meter counts as borrowed {meter.borrowed()}, queues hold {borrowed} beyond their own")
    return broken


def _indices(state: State) -> list[str]:
    """What is kept in step with the gangs is in step."""
    broken = []
    for gang in state.gangs.values():
        if (gang.id in state.holding) != (gang.status in HOLDING):
            broken.append(f"index: {gang.id} is {gang.status.value}, in holding: {gang.id in state.holding}")
        if (gang.id in state.vacating) != (gang.status is Status.VACATING):
            broken.append(f"index: {gang.id} is {gang.status.value}, in vacating: {gang.id in state.vacating}")
        if (gang.id in state.moved) != bool(gang.goes_to):
            broken.append(f"index: {gang.id} goes to {gang.goes_to}, in moved: {gang.id in state.moved}")
        waits = gang.id in state.waiting or gang.id in state.parked
        if waits != (gang.status is Status.QUEUED):
            broken.append(f"index: {gang.id} is {gang.status.value}, among the waiting: {waits}")
        if (gang.id in state.nominated) != (gang.nomination is not None):
            broken.append(f"index: nomination of {gang.id}")
    shapes = [group.options[0].resources for gang in state.gangs.values() if gang.held for group in gang.spec.groups]
    if state.kinds != {shape: shapes.count(shape) for shape in shapes}:
        broken.append(f"index: kinds of bundles that are held: {state.kinds}")
    frees = Counter(found for gang in state.gangs.values() if (found := lets_go(weigh(gang.spec, gang.held))))
    if state.ledgers.frees != frees:
        broken.append(f"index: what nodes have again when one ends: {state.ledgers.frees}")
    anew = Outstanding()
    for gang in state.gangs.values():
        if gang.id in state.waiting or (gang.is_active() and gang.id in state.holding):
            anew.put(gang)
    if state.outstanding.ahead(state.now) != anew.ahead(state.now) or state.outstanding.models != anew.models:
        broken.append(f"index: work ahead is {anew.ahead(state.now)}, counted {state.outstanding.ahead(state.now)}")
    capacity = state.capacity
    for node in state.nodes.values():
        k = max(node.free_whole, 0)
        if sum(mask >> node.slot & 1 for mask in capacity.by_free) != 1 or not capacity.by_free[k] >> node.slot & 1:
            broken.append(f"index: node {node.node.id} has {k} free GPUs and is filed elsewhere")
    return broken
