"""Whole-number resource vectors: what one bundle takes on one node.

GPUs and CPUs are counted in thousandths, memory in bytes, so ledgers add up exactly and half a GPU is 500.
Floats never enter a ledger. Whether a bundle fits on a node is capacity.py's question: whole devices matter.
"""

from __future__ import annotations

from typing import NamedTuple

MILLI = 1000


class Resources(NamedTuple):
    """An amount of each resource; `custom` holds (Ray resource name, thousandths), sorted by name."""

    gpus_milli: int = 0
    cpus_milli: int = 0
    memory_bytes: int = 0
    custom: tuple[tuple[str, int], ...] = ()

    def plus(self, other: Resources) -> Resources:
        return Resources(
            self.gpus_milli + other.gpus_milli,
            self.cpus_milli + other.cpus_milli,
            self.memory_bytes + other.memory_bytes,
            _custom_sum(self.custom, other.custom, 1) if self.custom or other.custom else (),
        )

    def minus(self, other: Resources) -> Resources:
        return Resources(
            self.gpus_milli - other.gpus_milli,
            self.cpus_milli - other.cpus_milli,
            self.memory_bytes - other.memory_bytes,
            _custom_sum(self.custom, other.custom, -1) if self.custom or other.custom else (),
        )

    def at_most(self, other: Resources) -> Resources:
        """Of each the smaller amount, and nothing of custom resources."""
        return Resources(
            min(self.gpus_milli, other.gpus_milli),
            min(self.cpus_milli, other.cpus_milli),
            min(self.memory_bytes, other.memory_bytes),
        )

    def times(self, count: int) -> Resources:
        return Resources(
            self.gpus_milli * count,
            self.cpus_milli * count,
            self.memory_bytes * count,
            tuple((name, amount * count) for name, amount in self.custom) if self.custom else (),
        )


ZERO = Resources()
ByNode = tuple[tuple[str, Resources], ...]  # amounts, each with the id of its node


def _custom_sum(
    left: tuple[tuple[str, int], ...], right: tuple[tuple[str, int], ...], sign: int
) -> tuple[tuple[str, int], ...]:
    total = dict(left)
    for name, amount in right:
        total[name] = total.get(name, 0) + sign * amount
    return tuple(sorted((name, amount) for name, amount in total.items() if amount))


def parse_gpus_milli(gpus: float) -> int:
    """Thousandths of a GPU, rounded to the nearest; 0.5 -> 500."""
    return round(gpus * MILLI)
