"""Nodes are asked for when work waits for them: what the controller tells its executor, and what people are told."""

from __future__ import annotations

import asyncio

from control_harness import ANN, ManualClock, Script, controlling, fake_cluster, phase, task, until

from llmsched.api import views
from llmsched.core.render import text
from llmsched.executors.fake import NodeKind
from llmsched.spec import cluster as cluster_file

FILE = """
flavors: [{name: a100-spot, labels: {ray.io/accelerator-type: A100}, price_per_gpu_hour: 2}]
node_types: [{name: p4d, flavor: a100-spot, gpus: 8, max: 2, idle_timeout: 5m}]
price_ceiling_per_hour: 40
"""


def test_a_node_is_asked_for_by_its_accelerator_and_given_back_when_it_was_idle():
    async def story():
        clock = ManualClock()
        cluster = fake_cluster((NodeKind(2, "A100"),), clock, large=Script(runs_for_s=60.0))
        async with controlling(cluster, clock=clock) as controller:
            await controller.configure(cluster_file.load(FILE, "llmsched.yaml"), ANN)
            await controller.submit([task("large", gpus=8)], user=ANN)
            await until(lambda: cluster.capacity)
            (bundle,) = cluster.capacity
            assert bundle == ({"GPU": 8.0}, {"ray.io/accelerator-type": "A100"}, 1)
            waits = controller.state.gangs["large/0"].reason
            assert waits.code == "capacity_coming" and text(waits.message).endswith("asked for 1 x p4d")
            (kind,) = views.node_types(controller.state)
            assert (kind.here, kind.asked, kind.price_per_hour) == (0, 1, 16.0)

            node = cluster.add_node(8, "A100", labels={"ray.io/node-group": "p4d"})
            await until(lambda: phase(controller, "large") == "running")
            assert controller.state.nodes[node].node.node_type == "p4d"
            await clock.advance(61)
            await until(lambda: phase(controller, "large") == "succeeded")
            await clock.advance(301)
            await until(lambda: not cluster.capacity)  # Ray's autoscaler ends what nobody asks for any more

    asyncio.run(story())
