"""A controller on a fake cluster, and the few words the tests speak."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from waiting import PATIENCE_S

from llmsched.control.archive import VerifiedArchive
from llmsched.control.clock import ManualClock, RealClock
from llmsched.control.controller import Controller
from llmsched.control.recovery import fold, fold_all
from llmsched.core.invariants import violations
from llmsched.executors.fake import FakeCluster, FakeExecutor, NodeKind, Script
from llmsched.spec.load import load_json
from llmsched.store.memory import MemoryStore

TWO_OF_TWO = (NodeKind(2, "A100"), NodeKind(2, "A100"))
ANN = "ann"


def task(name, gpus=1, **more):
    return load_json(
        {"name": name, "kind": "task", "resources": {"accelerators": [f"A100:{gpus}"]}, "task": {"run": ["true"]}}
        | more
    )


def train(name, gpus=1, workers=1, train=None, **more):
    section = {"loop": "mine.train:loop"} | (train or {})
    body = {"name": name, "kind": "train", "workers": workers, "resources": {"accelerators": [f"A100:{gpus}"]}}
    return load_json(body | {"train": section} | more)


def serve(name, source="package:models/tiny", replicas=1, gpus=1, **more):
    section = {"model": {"source": source}}
    body = {"name": name, "kind": "serve", "replicas": replicas, "resources": {"accelerators": [f"A100:{gpus}"]}}
    return load_json(body | {"serve": section} | more)


def scripts(**by_name):
    """How attempts of each workload go; replicas without a script answer, everything else runs until stopped."""

    def script(order):
        return by_name.get(order.workload.partition("@")[0].replace("-", "_"), Script(runs_for_s=None))

    return script


def fake_cluster(nodes=TWO_OF_TWO, clock=None, **by_name):
    return FakeCluster(nodes, clock=clock, script=scripts(**by_name))


@asynccontextmanager
async def controlling(cluster=None, store=None, clock=None, **more):
    """A controller that runs; at the end it is stopped and everything it promised is checked."""
    cluster = cluster if cluster is not None else fake_cluster(clock=clock)
    store = store if store is not None else MemoryStore()
    controller = Controller(
        store,
        FakeExecutor(cluster=cluster),
        clock or RealClock(),
        **({"storage": "/storage"} | more),
    )
    running = asyncio.create_task(controller.run())
    try:
        await until(lambda: controller.health.status == "ready" or running.done())
        if running.done():
            await running
        await until(lambda: len(controller.state.nodes) == len(cluster.nodes))
        yield controller
        assert violations(controller.state) == []
        assert controller.health.message == ""
        assert cluster.refused == []
    finally:
        await controller.stop()
        if not running.done():
            await asyncio.wait_for(running, PATIENCE_S)
    if isinstance(store, MemoryStore):
        archive = VerifiedArchive(store)
        assert fold_all(store, archive)[0].digest() == fold(store)[0].digest()
        assert archive.differences == []


async def until(condition, seconds=PATIENCE_S):
    """Fails when `condition` does not come true; waits no longer than it must."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came true"
        await asyncio.sleep(0.001)


def phase(controller, name):
    return controller.state.find(name).phase


def kinds(controller, workload=None):
    """The types of the entries so far, without those that only keep time."""
    names = [type(written.entry).__name__ for written in controller.entries(0, workload)]
    return [name for name in names if name not in ("Tick", "NodeJoined", "CheckpointPublished", "Estimated")]


__all__ = [
    "ANN", "ManualClock", "Script", "controlling", "fake_cluster", "kinds", "phase", "serve", "task", "train", "until",
]  # fmt: skip
