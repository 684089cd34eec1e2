"""What a worker does when its work uses more memory than it asked for: it tells its supervisor, and ends if it must."""

from __future__ import annotations

import os
from typing import Any

import ray

from llmsched.runtime import guardian
from llmsched.runtime.containment import OverMemory


def tell(supervisor: Any, rank: int, word: OverMemory) -> None:
    """Called beside the work, which may be too busy to ever hear of it."""
    print(f"[llmsched] {word}", flush=True)
    if not word.is_over:
        supervisor.report.remote({"memory": str(word)})
        return
    ray.get(supervisor.failed.remote(rank, f"rank {rank}: {word}", "input"), timeout=guardian.REPORT_WITHIN_S)
    os._exit(1)
