"""Which rows does this worker take: every row exactly once an epoch, at any world size, also across a resize.

The order of an epoch and the cut into steps depend on (rows, global batch, seed) only, never on how many workers there
are; a step's rows are then shared out unevenly when they do not divide. So position is one number: the step.
Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

from llmsched.runtime import context


def shares(global_batch: int, world_size: int) -> list[int]:
    """How many of `global_batch` rows each rank takes: they differ by at most one, and may be 0."""
    whole, rest = divmod(global_batch, world_size)
    return [whole + (rank < rest) for rank in range(world_size)]


def share_of(rows: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """The consecutive piece of `rows` that `rank` takes."""
    sizes = shares(len(rows), world_size)
    start = sum(sizes[:rank])
    return rows[start : start + sizes[rank]]


def epoch_order(rows: int, epoch: int, seed: int) -> list[int]:
    """A permutation of range(rows): the same in every process for the same epoch and seed."""
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """The last step of an epoch may be smaller; none is dropped and none is padded."""
    return -(-rows // global_batch)


def batches(
    rows: int,
    global_batch: int,
    *,
    start: int = 0,
    steps: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> Iterator[tuple[int, int, Sequence[int]]]:
    """(step, epoch, row numbers of this rank) from step `start`+1 up to `steps` (None: for ever); steps count from 1.

    `start` is the number of steps done already, as in a checkpoint. Rank and world size default to the context's.
    Raises ValueError when there are no rows.
    """
    if rows < 1 or global_batch < 1:
        raise ValueError(f"nothing to train on: {rows} rows in steps of {global_batch}")
    if rank is None or world_size is None:
        where = context.current()
        rank, world_size = where.rank, where.world_size
    per_epoch = steps_per_epoch(rows, global_batch)
    known, order = -1, []
    for done in count(start):
        if steps is not None and done >= steps:
            return
        epoch, place = divmod(done, per_epoch)
        if epoch != known:
            known, order = epoch, epoch_order(rows, epoch, seed)
        yield done + 1, epoch, share_of(order[place * global_batch : (place + 1) * global_batch], rank, world_size)
