"""Tells Ray's autoscaler which bundles the cluster should be able to hold.

The only user of an internal seam: Ray's AutoscalingCoordinator, which merges the wishes of several requesters. The
public `request_resources` is one global slot that every Train run overwrites. A wish expires, so it is renewed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from llmsched.executors.bridge.ray_internals import autoscaling_coordinator
from llmsched.executors.wire import CapacityBundle

REQUESTER = "llmsched"
EXPIRES_AFTER_S = 60.0
RENEW_EVERY_S = 20.0


class Provision:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: tuple[CapacityBundle, ...] = ()
        self._client: Any = None
        self._asked_at = 0.0

    def request(self, bundles: Sequence[CapacityBundle]) -> None:
        """Replace the wish; an empty one withdraws it. Raises what Ray raises, or ImportError without the seam."""
        with self._lock:
            self._wanted = tuple(bundles)
            if self._wanted:
                self._ask()
            elif self._client is not None:
                self._client.cancel_request()

    def renew(self) -> None:
        with self._lock:
            if self._wanted and time.monotonic() - self._asked_at > RENEW_EVERY_S:
                self._ask()

    def _ask(self) -> None:
        if self._client is None:
            self._client = autoscaling_coordinator(REQUESTER)
        self._client.request_resources(
            resources=[dict(one.resources) for one in self._wanted for _ in range(one.count)],
            label_selectors=[dict(one.labels) for one in self._wanted for _ in range(one.count)],
            expire_after_s=EXPIRES_AFTER_S,
        )
        self._asked_at = time.monotonic()
