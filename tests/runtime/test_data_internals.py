"""What batch uses of Ray Data beyond its promises is there, and does what it is used for."""

from __future__ import annotations

from ray.data._internal.execution import streaming_executor

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
