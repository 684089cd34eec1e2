"""All use of what Ray Data does not promise. `tests/runtime/test_data_internals.py` fails when it changes.

Ray Data asks the cluster's autoscaler for more nodes by itself, whatever its work is placed on, and no setting turns
that off. A batch has the members that the scheduler gave it and no others: within `of_group` Ray Data is told of these
alone, and asks nobody. It is told of room in the object store too, more than the names of parts that travel there
could ever take: where it knows of none it takes any answer for too large, and one member works while all others wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces.execution_options import ExecutionResources

_ROOM = 2.0**50  # bytes of object store


class OfGroup(ClusterAutoscaler):  # type: ignore[misc]
    """Has what its bundles hold, and never more."""

    def __init__(self, bundles: Sequence[Mapping[str, float]]) -> None:
        total = ExecutionResources.zero().copy(object_store_memory=_ROOM)
        for bundle in bundles:
            total = total.add(ExecutionResources.from_resource_dict(dict(bundle)))
        self._total = total

    def try_trigger_scaling(self) -> None:
        """Asks nobody."""

    def on_executor_shutdown(self) -> None:
        """There is nothing to take back."""

    def get_total_resources(self) -> ExecutionResources:
        return self._total


@contextmanager
def of_group(bundles: Sequence[Mapping[str, float]]) -> Iterator[None]:
    """Within, what this process runs through Ray Data has the resources of these bundles."""

    def create(*_: Any, **__: Any) -> OfGroup:
        return OfGroup(bundles)

    before = streaming_executor.create_cluster_autoscaler
    streaming_executor.create_cluster_autoscaler = create
    try:
        yield
    finally:
        streaming_executor.create_cluster_autoscaler = before
