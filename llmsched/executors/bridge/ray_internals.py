"""Every use that the bridge makes of what Ray does not promise to keep.

One file, so that a new Ray is one place to look at; `tests/executors/test_bridge_on_ray.py` fails when one of these is
not as it was. The runtime's side has a file of the same name.
"""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray._private.state import available_resources_per_node

__all__ = ["autoscaling_coordinator", "available_resources_per_node", "cluster_id"]


def cluster_id() -> str:
    """Of the cluster that this driver has joined, in hex."""
    return str(ray._private.worker.global_worker.node.cluster_id.hex())


def autoscaling_coordinator(requester: str) -> Any:
    """The client of the actor that merges the wishes of several requesters to Ray's autoscaler. Raises ImportError."""
    try:
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import DefaultAutoscalingCoordinator
    except ImportError:
        print(
            "this Ray has no AutoscalingCoordinator where 2.60 has it: llmsched cannot ask its autoscaler for nodes. "
            "Use a tested version (pip install 'ray~=2.60').",
            file=sys.stderr,
        )
        raise
    return DefaultAutoscalingCoordinator(requester_id=requester)
