"""Whole-number resource vectors: what one bundle takes on one node.

GPUs and CPUs are counted in thousandths, memory in bytes, so ledgers add up exactly and half a GPU is 500.
Floats never enter a ledger. Start reading at `Resources.fits_in`.
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

    def fits_in(self, free: Resources) -> bool:
        """True when every amount is at most what is free (of whole devices see `capacity`)."""
        return (
            self.gpus_milli <= free.gpus_milli
            and self.cpus_milli <= free.cpus_milli
            and self.memory_bytes <= free.memory_bytes
            and (not self.custom or _custom_fits(self.custom, free.custom))
        )

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

    def times(self, count: int) -> Resources:
        return Resources(
            self.gpus_milli * count,
            self.cpus_milli * count,
            self.memory_bytes * count,
            tuple((name, amount * count) for name, amount in self.custom),
        )

    def is_zero(self) -> bool:
        return not (self.gpus_milli or self.cpus_milli or self.memory_bytes or any(a for _, a in self.custom))


ZERO = Resources()


def _custom_fits(need: tuple[tuple[str, int], ...], free: tuple[tuple[str, int], ...]) -> bool:
    have = dict(free)
    return all(amount <= have.get(name, 0) for name, amount in need)


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
