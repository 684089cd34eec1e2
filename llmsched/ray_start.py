"""How a `ray start` of ours is begun: Ray's own program, without those of its commands that it does not need.

`ray start --block` stays as long as its node. It imports Serve, and pandas with it, for a command `serve` that nobody
gives it: 1 s of a core and 124 MB for each node, pretended ones and those of a program's own Ray. Ray goes on without a
group of commands that it cannot import, as where `ray[serve]` is not installed; so these are made so here.
`tests/executors/test_ray_start.py` fails when a Ray does otherwise.
"""

from __future__ import annotations

_NOT_NEEDED = ("ray.serve.scripts", "ray.dashboard.modules.job.cli", "ray.util.state.state_cli")
_CODE = f"import sys; sys.modules.update(dict.fromkeys({_NOT_NEEDED})); from ray.scripts.scripts import main; main()"

RAY = ("-P", "-c", _CODE)  # after the name of a Python that has Ray; then `start` and its options
