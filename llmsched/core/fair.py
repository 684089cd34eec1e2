"""Shares: how much of the cluster each queue has, should have, and would have. Scores only, never a ledger.

Three senses, by `scheduling.fair_share`:
  weighted_drf_over_borrowed  what a queue, or a branch of the tree, holds beyond its quota, over its weight (Kueue)
  drf_total                   its largest share of any resource in `drf_resources`, over its weight (DRF; Armada)
  guarantee_then_weight       nominal first, the rest by over-quota weight, whole GPUs by largest remainder (KAI), with
                              the weights corrected for past use: P = max(W + k (W - U), 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

from llmsched.core.amounts import need_milli
from llmsched.core.configuration import Queue
from llmsched.core.past_use import counted, weighed_window_s
from llmsched.core.possible import option_of
from llmsched.core.quota import Branch
from llmsched.core.records import QueueUse, gpus_of
from llmsched.core.resources import MILLI, ZERO, Resources
from llmsched.core.state import State

BORROWED, TOTAL, GUARANTEE = "weighted_drf_over_borrowed", "drf_total", "guarantee_then_weight"
NOTHING = QueueUse()
ROUNDING = 1e-9  # of a share: equal thirds are equal


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
        if self.mode == BORROWED:
            own = self.state.quota.branch(queue, flavor)
            return self.of_branch(own, own, flavor, extra.gpus_milli) if own is not None else 0.0
        share = self._dominant(queue, extra)
        weight = self.weights.get(queue, 1.0)
        return share / weight if weight > 0 else (inf if share > 0 else 0.0)

    def standing(self, queue: str, flavor: str | None, extra: Resources) -> tuple[float, ...]:
        """What queues are compared by, with `extra` more: over what is borrowed, the shares of the queue's branches
        from below the root down to itself, so that whole branches of the tree come before the queues in them."""
        if self.mode != BORROWED:
            return (self.after(queue, flavor, extra),)
        own = self.state.quota.branch(queue, flavor)
        if own is None:
            return (0.0,)
        shares = []
        top: Branch | None = own
        while top is not None and top.parent is not None:
            shares.append(self.of_branch(own, top, flavor, extra.gpus_milli))
            top = top.parent
        return tuple(reversed(shares))

    def of_branch(self, below: Branch, top: Branch, flavor: str | None, extra: int) -> float:
        """The share of a branch of the tree if the queue `below` it had `extra` more of a flavor (negative: less)."""
        quota = self.state.quota
        (below.charge if extra >= 0 else below.release)(abs(extra))
        borrowed = sum(branches[top.name].borrowed() for branches in quota.rows.values() if top.name in branches)
        (below.release if extra >= 0 else below.charge)(abs(extra))
        if top.weight > 0:
            return borrowed / max(self.state.capacity.gpus_total * MILLI, 1) / top.weight
        return inf if borrowed else 0.0

    def of_queue(self, queue: str) -> float:
        """Its share as it is now, over its weight."""
        flavor = next((name for name, _ in _queue(self.state, queue).quotas if name != "*"), None)
        return self.after(queue, flavor, ZERO)

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

    def depends_on_past_use(self) -> bool:
        scheduling = self.state.configuration.scheduling
        return self.mode == GUARANTEE and scheduling.usage_half_life_s > 0 and scheduling.usage_k > 0

    def depends_on_demand(self) -> bool:
        """Whether what a queue is due changes with what others ask for."""
        return self.mode == GUARANTEE or self.state.configuration.scheduling.protected_fraction > 0

    def fair(self, queue: str) -> float:
        """drf_total: the queue's weight among the queues that hold or want something."""
        active = [
            name for name in self.weights if self.state.waiting.by_queue.get(name) or self._dominant(name, ZERO) > 0
        ]
        total = sum(self.weights[name] for name in active) or 1.0
        return self.weights.get(queue, 1.0) / total

    def is_protected(self, queue: str, fraction: float, spare: Resources) -> bool:
        """drf_total: whether the queue, less `spare`, has no more than that fraction of its fair share."""
        return self._dominant(queue, spare.times(-1)) <= fraction * self.fair(queue) + ROUNDING


def mode_of(state: State, across: str | None) -> str | None:
    """The sense of a share by which queues are compared: configured, or the ordering policy's (`across`). Where there
    are limits but nobody is guaranteed anything, what is reclaimed is an equal part of the whole (YuniKorn)."""
    scheduling = state.configuration.scheduling
    mode = scheduling.fair_share or across
    if mode is None and scheduling.preemption.reclaim != "never" and state.quota.enforced:
        queues, cohorts = state.configuration.queues, state.configuration.cohorts
        quotas = (*(queue.quotas for queue in queues), *(cohort.quotas for cohort in cohorts))
        if not any(quota.nominal_milli for each in quotas for _, quota in each):
            return TOTAL
    return mode


def _queue(state: State, name: str) -> Queue:
    return next((queue for queue in state.configuration.queues if queue.name == name), Queue(name))


def nominal_milli(queue: Queue) -> int:
    return sum(quota.nominal_milli for _, quota in queue.quotas)


def usage_share(state: State, queue: str) -> float:
    """Past use of a queue as a share of all the cluster could have given, half-lives and window applied, as it stood
    when it was counted last. Between two counts shares move with what is asked for alone: so a place changes hands
    between two queues once, and not whenever the one that has it has used a little more."""
    scheduling = state.configuration.scheduling
    half_life = scheduling.usage_half_life_s
    use = state.use.get(queue)
    if half_life <= 0 or use is None or not state.capacity.gpus_total:
        return 0.0
    could = state.capacity.gpus_total * MILLI * weighed_window_s(half_life, scheduling.usage_window_s)
    return counted(use, state.now, half_life) / could


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
        first = state.gangs[shape.entries[0][1]]
        gpus = need_milli(shape.sample, shape.sample.max_size, option_of(state, first))
        wanted[shape.queue] = wanted.get(shape.queue, 0) + gpus * len(shape.entries)
    for name in state.nominated:  # what is promised counts as use: who waits for it wants it once
        gang = state.gangs[name]
        if gang.nomination is not None and gang.spec.queue in wanted:
            wanted[gang.spec.queue] -= gpus_of(gang.spec, gang.nomination.placement)
    for name in state.elastic:  # running elastic gangs would take more
        gang = state.gangs[name]
        most = need_milli(gang.spec, gang.spec.max_size, gang.option)
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
