"""Turns of the event loop: whoever has much to do lets everybody else have theirs between two pieces of it."""

from __future__ import annotations

import asyncio
from time import perf_counter

HELD_S = 0.02  # so long the loop is held at most, and one piece of work more

_held_until = 0.0  # there is one loop; who comes to it after a pause lets others go first, which costs nothing


async def breathe() -> None:
    """Call it between two pieces of work. The state may be another one afterwards, except within a round."""
    global _held_until
    if perf_counter() >= _held_until:
        await asyncio.sleep(0)
        _held_until = perf_counter() + HELD_S
