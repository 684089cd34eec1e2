"""The kill loop, short: `python tests/faults/kill_loop.py --kills 500` is the long one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kill_loop import loop


def test_kills_lose_nothing_double_nothing_and_leave_a_whole_store(tmp_path: Path) -> None:
    result = asyncio.run(loop(tmp_path / "home", kills=12, clients=3, seed=7))
    assert result["acknowledged"] > 0
    assert (result["lost"], result["doubled"], result["fsck_said"]) == (0, 0, [])
