"""What batch uses of Ray Data beyond its promises is there, and does what it is used for."""

from __future__ import annotations

from types import SimpleNamespace

from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.resource_manager import ReservationOpResourceAllocator

from llmsched.runtime.data_internals import OfGroup, of_group


def test_ray_data_is_told_of_the_gang_alone_and_asks_nobody_for_more() -> None:
    before = streaming_executor.create_cluster_autoscaler
    with of_group([{"CPU": 2.0, "GPU": 1.0}, {"CPU": 1.0}]):
        made = streaming_executor.create_cluster_autoscaler({}, None, None, execution_id="x")
        assert isinstance(made, OfGroup), "every method that Ray Data asks for is there"
        total = made.get_total_resources()
        assert (total.cpu, total.gpu) == (3.0, 1.0)
    assert streaming_executor.create_cluster_autoscaler is before
    where = streaming_executor.StreamingExecutor.execute.__code__.co_names
    assert "create_cluster_autoscaler" in where, "and this is where it asks who tells it"


def test_all_members_have_parts_at_once_whatever_an_answer_is_as_large_as() -> None:
    """Of four workers one had a part and three none: Ray Data was told of no room in the object store, so after the
    first answer each further part waited until nothing was under way."""
    is_blocked = ReservationOpResourceAllocator._is_task_submission_blocked_on_output_budget
    answer = SimpleNamespace(metrics=SimpleNamespace(obj_store_mem_max_pending_output_per_task=256 * 2**20))
    share = OfGroup([{"CPU": 1.0}] * 1000).get_total_resources().scale(0.01)
    assert not is_blocked(answer, share)
    assert is_blocked(answer, share.copy(object_store_memory=0)), "and this is where it waits"
