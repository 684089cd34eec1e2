"""Nodes that are lost and come back, from one seed: a node's lifetimes are exponential, drawn by hashing.

The draw depends on (seed, node, number of the failure) only, so adding a node changes nothing for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from llmsched.errors import SpecError


class Faults(NamedTuple):
    """Mean seconds between failures of one node, and seconds until it is back. No failures when `mtbf_s` is 0."""

    mtbf_s: float = 0.0
    repair_s: float = 600.0
    seed: int = 0

    def of_node(self, node: str, since: float = 0.0) -> Iterator[tuple[float, float]]:
        """(lost at, back at) of a node that is there since then, without end."""
        if self.mtbf_s <= 0:
            return
        now, number = since, 0
        while True:
            drawn = int.from_bytes(blake2b(f"{self.seed}/{node}/{number}".encode(), digest_size=8).digest(), "big")
            now += -math.log(1.0 - drawn / 2**64) * self.mtbf_s
            yield now, now + self.repair_s
            now += self.repair_s
            number += 1


def parse(text: str, seed: int) -> Faults:
    """`MTBF_S[:REPAIR_S]`, for example 86400:600."""
    first, _, second = text.partition(":")
    try:
        faults = Faults(float(first), float(second or 600), seed)
    except ValueError:
        faults = Faults(-1.0)
    if faults.mtbf_s <= 0 or faults.repair_s < 0:
        raise SpecError(f'"{text}" is not MTBF[:REPAIR] in seconds.', where="--faults", hint="For example 86400:600.")
    return faults
