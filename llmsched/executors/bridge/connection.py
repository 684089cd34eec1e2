"""Joins one given Ray cluster as a quiet driver. Never looks for another: the address is always explicit."""

from __future__ import annotations

import logging
import urllib.request

import ray
from ray.job_config import JobConfig

from llmsched.executors.bridge import ray_internals
from llmsched.runtime.containment import BRIDGE

CONNECT_WITHIN_S = 60.0
PROBE_WITHIN_S = 5.0


def connect(address: str, namespace: str) -> tuple[str, str]:
    """(cluster id in hex, dashboard url or ""). Raises what Ray raises when nobody answers or the token is wrong."""
    context = ray.init(
        address=address,
        namespace=namespace,
        job_config=JobConfig(metadata={BRIDGE: ""}),
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=True,
    )
    return ray_internals.cluster_id(), f"http://{context.dashboard_url}" if context.dashboard_url else ""


def lets_anyone_in(dashboard: str) -> bool:
    """Whether the cluster's dashboard, where jobs are submitted, answers a request without a token.

    A cluster without a dashboard, or one that cannot be reached from here, does not.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{dashboard}/api/version", timeout=PROBE_WITHIN_S):
            return True
    except OSError:  # refused, with 401 or for want of anyone there
        return False
