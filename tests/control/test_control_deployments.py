"""An endpoint whose deployments lie on several nodes: planned, ordered, lost and changed as one gang."""

from __future__ import annotations

import asyncio

from control_harness import ANN, controlling, fake_cluster, phase, until

from llmsched.executors.fake import NodeKind
from llmsched.spec.load import load_json

NODES = (NodeKind(2, "A100"), NodeKind(2, "A100"), NodeKind(2, "A100"))


def desk(name="desk", copies=2, **more):
    deployments = {"Large": {"accelerators": "A100:2", "replicas": copies}}
    section = {"app": "desk:app", "deployments": deployments}
    return load_json({"name": name, "kind": "serve", "serve": section, **more})


def test_a_replica_with_deployments_of_its_own_is_ordered_lost_and_started_again_as_a_whole() -> None:
    async def story() -> None:
        cluster = fake_cluster(NODES)
        async with controlling(cluster) as controller:
            (planned,) = await controller.plan([desk()], user=ANN)
            assert planned.at_min.gpus == 4.0 and planned.starts_now
            assert sum(one.gpus for one in planned.placement) == 4.0
            await controller.submit([desk()], user=ANN)
            await until(lambda: phase(controller, "desk") == "running")
            order = cluster.attempts["llms/desk/0/1"].order
            assert [(one.rank, one.group, one.gpus) for one in order.members] == [
                (0, "workers", 0.0), (1, "Large", 2.0), (2, "Large", 2.0),
            ]  # fmt: skip
            held = {one.node for one in order.members[1:]}
            assert len(held) == 2

            await controller.submit([desk("other", copies=3)], user=ANN)
            await until(lambda: controller.state.find("other").gangs and phase(controller, "other") == "waiting")

            cluster.lose_node(order.members[2].node)
            await until(lambda: "llms/desk/0/2" in cluster.running())
            assert "llms/desk/0/1" not in cluster.running()
            assert len({one.node for one in cluster.attempts["llms/desk/0/2"].order.members[1:]}) == 2

    asyncio.run(story())
