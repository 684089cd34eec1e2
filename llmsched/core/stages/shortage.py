"""Of what there is too little where a gang finds no room: for how many of its bundles there is any, and what they lack
beside their GPUs. Only told, never decided by.
"""

from __future__ import annotations

from functools import reduce

from llmsched.core.resources import MILLI, Resources
from llmsched.core.trial import Trial


def rooms(trial: Trial, mask: int, need: Resources, enough: int) -> tuple[int, int]:
    """(nodes of the mask with room, such bundles that fit on them in all)."""
    capacity = trial.state.capacity
    if need.gpus_milli and need == Resources(need.gpus_milli) and not need.gpus_milli % MILLI:
        whole = need.gpus_milli // MILLI
        counts = [(k // whole, (found & mask).bit_count()) for k, found in enumerate(capacity.by_free) if k >= whole]
        return sum(count for _, count in counts), sum(min(room, enough) * count for room, count in counts)
    mask &= capacity.with_free(need.gpus_milli // MILLI) if need.gpus_milli >= MILLI else -1
    each = [node.room(need, enough) for node in capacity.nodes(mask)]
    return sum(room > 0 for room in each), sum(each)


def shortage(trial: Trial, mask: int, need: Resources, size: int) -> tuple[Resources, Resources] | None:
    """Where it is not what a bundle takes first of all, GPUs or else CPUs, that keeps it out: (what is short beside
    that, the most of it on one node that has that). None: that itself is short."""
    first = Resources(need.gpus_milli) if need.gpus_milli else Resources(0, need.cpus_milli)
    if first == need or rooms(trial, mask, first, size)[1] < size:
        return None
    rest = need.minus(first)
    each = [Resources(0, rest.cpus_milli), Resources(0, 0, rest.memory_bytes)]
    each += [Resources(custom=(one,)) for one in rest.custom]
    lacking = [one for one in each if any(one) and rooms(trial, mask, first.plus(one), size)[1] < size]
    short = reduce(Resources.plus, lacking) if lacking else rest
    frees = [node.free for node in trial.state.capacity.nodes(mask) if node.room(first, 1)]
    most = Resources(
        0,
        max(free.cpus_milli for free in frees) if short.cpus_milli else 0,
        max(free.memory_bytes for free in frees) if short.memory_bytes else 0,
        tuple((name, max(dict(free.custom).get(name, 0) for free in frees)) for name, _ in short.custom),
    )
    return short, most
