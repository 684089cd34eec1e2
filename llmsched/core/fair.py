"""Shares: how much of the cluster each queue has, should have, and would have. Scores only, never a ledger.

Three senses, by `scheduling.fair_share`:
  weighted_drf_over_borrowed  what a queue holds beyond its nominal quota, over its weight (Kueue)
  drf_total                   its largest share of any resource in `drf_resources`, over its weight (DRF; Armada)
  guarantee_then_weight       nominal first, the rest by over-quota weight, whole GPUs by largest remainder (KAI), with
                              the weights corrected for past use: P = max(W + k (W - U), 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf, log

from llmsched.core.configuration import Queue
from llmsched.core.records import QueueUse
from llmsched.core.resources import MILLI, ZERO, Resources
from llmsched.core.state import State
from llmsched.core.workload import Workload

BORROWED, TOTAL, GUARANTEE = "weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"
NOTHING = QueueUse()


def total_of(spec: Workload, size: int, option: int = 0) -> Resources:
    """What the whole gang takes at `size`."""
    total = ZERO
    for number, group in enumerate(spec.groups):
        amount = group.options[min(option, len(group.options) - 1)].resources
        total = total.plus(amount.times(size if number == 0 else group.count))
    return total


@dataclass(slots=True)
class Shares:
    """Of one pass. `deserved` (guarantee_then_weight only) is thousandths of GPUs, fixed for the pass."""

    state: State
    mode: str
    weights: dict[str, float]
    deserved: dict[str, float]

    @classmethod
    def of(cls, state: State, mode: str) -> Shares:
        queues = {queue.name: queue for queue in state.configuration.queues}
        weights = {name: queue.weight for name, queue in queues.items()}
        deserved = guarantee_then_weight(state) if mode == GUARANTEE else {}
        return cls(state, mode, weights, deserved)

    def after(self, queue: str, flavor: str | None, extra: Resources) -> float:
        """The queue's share if it had `extra` more (negative amounts: less)."""
        if self.mode == GUARANTEE:
            have = self.state.use.get(queue, NOTHING).gpus_milli + extra.gpus_milli
            deserved = self.deserved.get(queue, 0.0)
            return have / deserved if deserved else (inf if have else 0.0)
        if self.mode == TOTAL:
            share = self._dominant(queue, extra)
        else:
            share = self._borrowed(queue, flavor, extra.gpus_milli)
        weight = self.weights.get(queue, 1.0)
        return share / weight if weight > 0 else (inf if share > 0 else 0.0)

    def item(self, extra: Resources) -> float:
        """The dominant share of one request alone."""
        return self._dominant("", extra)

    def _dominant(self, queue: str, extra: Resources) -> float:
        use = self.state.use.get(queue, NOTHING)
        capacity = self.state.capacity
        share = 0.0
        for name in self.state.configuration.scheduling.drf_resources:
            have, total = {
                "gpu": (use.gpus_milli + extra.gpus_milli, capacity.gpus_total * MILLI),
                "cpu": (use.cpus_milli + extra.cpus_milli, capacity.cpus_total),
                "memory": (use.memory_bytes + extra.memory_bytes, capacity.memory_total),
            }.get(name, (0, 0))
            if total:
                share = max(share, have / total)
        return share

    def _borrowed(self, queue: str, flavor: str | None, extra: int) -> float:
        quota = self.state.quota
        own_row = quota.row_of(queue, flavor)
        borrowed = 0
        for row, branches in quota.rows.items():
            branch = branches.get("queue:" + queue)
            if branch is not None:
                borrowed += max(0, branch.used + (extra if row == own_row else 0) - branch.subtree)
        return borrowed / max(self.state.capacity.gpus_total * MILLI, 1)

    def fair_milli(self, queue: str) -> float:
        """drf_total: the queue's weight among the queues that hold or want something, of all GPUs."""
        active = [
            name
            for name in self.weights
            if self.state.use.get(name, NOTHING).gpus_milli or self.state.waiting.by_queue.get(name)
        ]
        total = sum(self.weights[name] for name in active) or 1.0
        return self.state.capacity.gpus_total * MILLI * self.weights.get(queue, 1.0) / total


def nominal_milli(queue: Queue) -> int:
    return sum(quota.nominal_milli for _, quota in queue.quotas)


def usage_share(state: State, queue: str) -> float:
    """Past use of a queue as a share of all the cluster could have given, half-lives and window applied."""
    scheduling = state.configuration.scheduling
    half_life = scheduling.usage_half_life_s
    use = state.use.get(queue)
    if half_life <= 0 or use is None or not state.capacity.gpus_total:
        return 0.0
    return decayed(use, state.now, half_life) / (
        state.capacity.gpus_total * MILLI * weighed_window_s(half_life, scheduling.usage_window_s)
    )


def weighed_window_s(half_life: float, window: float) -> float:
    """Seconds that full use of the whole window counts for, after decay."""
    kept = 1.0 - float(0.5 ** (window / half_life)) if window > 0 else 1.0
    return half_life / log(2) * kept


def decayed(use: QueueUse, now: float, half_life: float) -> float:
    """GPU-milli-seconds of a queue, each second weighing half as much per half-life gone by."""
    factor = float(0.5 ** ((now - use.decayed_at) / half_life))
    return use.decayed * factor + use.gpus_milli * half_life / log(2) * (1.0 - factor)


def over_quota_weights(state: State) -> dict[str, float]:
    """P of each queue, normalised to one: its over-quota weight, corrected for its use in the past."""
    queues = state.configuration.queues
    raw = {q.name: q.weight if q.overquota_weight is None else q.overquota_weight for q in queues}
    total = sum(raw.values()) or 1.0
    k = state.configuration.scheduling.usage_k
    p = {name: max(w / total + k * (w / total - usage_share(state, name)), 0.0) for name, w in raw.items()}
    whole = sum(p.values())
    return {name: value / whole if whole else 0.0 for name, value in p.items()}


def guarantee_then_weight(state: State) -> dict[str, float]:
    """Thousandths of GPUs per queue: what it is guaranteed and asks for, then the rest by weight up to what it asks."""
    wanted: dict[str, float] = {q.name: state.use.get(q.name, NOTHING).gpus_milli for q in state.configuration.queues}
    for shape in state.waiting.live.values():
        gpus = total_of(shape.sample, shape.sample.max_size).gpus_milli
        wanted[shape.queue] = wanted.get(shape.queue, 0) + gpus * len(shape.entries)
    for name in state.elastic:  # running elastic gangs would take more
        gang = state.gangs[name]
        most = total_of(gang.spec, gang.spec.max_size).gpus_milli
        wanted[gang.spec.queue] += max(0, most - gang.gpus_milli())
    share = {q.name: float(min(nominal_milli(q), wanted[q.name])) for q in state.configuration.queues}
    left = state.capacity.gpus_total * MILLI - sum(share.values())
    weights = over_quota_weights(state)
    remainders: dict[str, float] = {}
    while left >= MILLI:  # rounds: whole GPUs by weight to whoever still wants some
        asking = [name for name in share if wanted[name] > share[name] and weights[name] > 0]
        total = sum(weights[name] for name in asking)
        remainders = {name: left * weights[name] / total for name in asking}
        given = 0.0
        for name in asking:
            part = min(floor(remainders[name] / MILLI) * MILLI, wanted[name] - share[name])
            share[name] += part
            given += part
        left -= given
        if given < MILLI:
            break
    else:
        asking = [name for name in share if wanted[name] > share[name] and weights[name] > 0]
        total = sum(weights[name] for name in asking)
        remainders = {name: left * weights[name] / total for name in asking}
    by_remainder = sorted(remainders, key=lambda name: -(remainders[name] % MILLI or remainders[name]))
    for name in by_remainder:
        part = min(MILLI, left, wanted[name] - share[name])
        if part > 0:
            share[name] += part
            left -= part
    return share
