"""What a spec means is compared, not how it was written or which version of llmsched stored it."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import pytest
from control_harness import ANN, controlling, fake_cluster, kinds, phase, serve, task, train, until
from pydantic import Field

from llmsched.api.specs import read
from llmsched.errors import RequestError
from llmsched.spec import load, spec_requests
from llmsched.spec.section import Section
from llmsched.spec.serve import ServeSection, ServeSpec
from llmsched.spec.train import TrainSection, TrainSpec
from llmsched.store.memory import MemoryStore


class Extra(Section):
    words: list[str] = ["a"]


class WiderTrainSection(TrainSection):
    patience: int = 3
    extra: Extra = Field(default_factory=Extra)


class WiderTrain(TrainSpec):
    train: WiderTrainSection


class WiderServeSection(ServeSection):
    warm: bool = True
    extra: Extra | None = None


class WiderServe(ServeSpec):
    serve: WiderServeSection
    colour: str = "blue"


class NarrowerServe(ServeSpec):
    """It knows no `priority` above 10."""

    priority: int = Field(default=1, ge=0, le=10)


class NarrowerTrain(TrainSpec):
    priority: int = Field(default=1, ge=0, le=10)


@contextmanager
def models(**kinds):
    """The next version of llmsched, which has other models of these kinds."""
    before = dict(load.KINDS)
    load.KINDS.update(kinds)
    try:
        yield
    finally:
        load.KINDS.update(before)


def wider():
    return models(train=WiderTrain, serve=WiderServe)


async def running(cluster, store, *specs):
    """Submits them to a controller, which ends when they run."""
    async with controlling(cluster, store) as controller:
        await controller.submit(list(specs), user=ANN)
        await until(lambda: all(phase(controller, each.name) == "running" for each in specs))


def test_a_field_more_with_a_default_changes_nobodys_workload():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        await running(cluster, store, train("tune"), serve("chat", replicas=2))
        launched = len(cluster.attempts)
        with wider():
            async with controlling(cluster, store) as controller:
                before = kinds(controller)
                specs = [train("tune"), serve("chat", replicas=2)]
                assert {type(each) for each in specs} == {WiderTrain, WiderServe}
                planned = await controller.plan(specs, user=ANN)
                assert [(each.outcome, each.diff, each.rolls_out) for each in planned] == [("unchanged", [], False)] * 2
                applied = await controller.submit(specs, user=ANN)
                assert [(each.outcome, each.diff) for each in applied] == [("unchanged", [])] * 2
                assert kinds(controller) == before
                await controller.cancel("tune", by=ANN)
                await until(lambda: phase(controller, "tune") == "cancelled")
                (ended,) = await controller.plan([train("tune")], user=ANN)
                assert (ended.outcome, ended.diff) == ("unchanged", [])
                assert {gang.revision for gang in controller.state.gangs.values()} == {0}
        assert len(cluster.attempts) == launched

    asyncio.run(story())


def test_after_a_field_more_a_change_is_what_the_user_changed():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        await running(cluster, store, train("tune"), serve("chat"))
        with wider():
            async with controlling(cluster, store) as controller:
                specs = [train("tune", priority=60), serve("chat", envs={"A": "b"})]
                applied = await controller.submit(specs, user=ANN)
                assert [each.diff for each in applied] == [["priority: 50 -> 60"], ["envs.A: nothing -> b"]]
                with pytest.raises(RequestError, match='has begun, and "train" would make other work'):
                    await controller.submit([train("tune", train={"config": {"a": 1}})], user=ANN)

    asyncio.run(story())


def test_what_was_submitted_before_a_field_more_is_launched_with_its_default():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        async with controlling(cluster, store) as controller:
            await controller.submit([task("first", gpus=2, workers=2)], user=ANN)
            await controller.submit([train("waits")], user=ANN)
            await until(lambda: phase(controller, "first") == "running")
        with wider():
            async with controlling(cluster, store) as controller:
                await controller.cancel("first", by=ANN)
                await until(lambda: phase(controller, "waits") == "running")
        (order,) = [each.order for each in cluster.attempts.values() if each.order.workload == "waits"]
        assert (order.spec["train"]["patience"], order.spec["train"]["extra"]) == (3, {"words": ["a"]})

    asyncio.run(story())


def test_a_request_repeated_after_a_field_more_is_still_the_same_request():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        body = json.dumps({"specs": [train("tune").dump()]})
        key = {"user": ANN, "idempotency_key": "k", "fingerprint": "of the body"}
        async with controlling(cluster, store) as controller:
            specs = await read(spec_requests.ApplyRequest.model_validate_json(body).specs)
            first = await controller.submit(specs, **key)
        with wider():
            async with controlling(cluster, store) as controller:
                specs = await read(spec_requests.ApplyRequest.model_validate_json(body).specs)
                assert await controller.submit(specs, **key) == first

    asyncio.run(story())


def test_a_spec_that_is_none_any_more_goes_on_and_is_never_changed_unseen():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        await running(cluster, store, train("tune"), serve("chat"))
        with models(train=NarrowerTrain, serve=NarrowerServe):
            async with controlling(cluster, store) as controller:
                assert (phase(controller, "tune"), phase(controller, "chat")) == ("running", "running")
                with pytest.raises(RequestError, match="does not read .*priority.*It goes on as it is") as refused:
                    await controller.submit([train("tune")], user=ANN)
                assert "--again" in refused.value.hint
                (planned,) = await controller.plan([serve("chat")], user=ANN)
                assert (planned.outcome, planned.rolls_out) == ("changed", True)
                assert "not one that this version reads" in planned.diff[0] and "priority: 50 -> 1" in planned.diff
                assert phase(controller, "tune") == "running"

    asyncio.run(story())


def test_more_replicas_are_made_in_place_and_those_that_answer_stay():
    async def story():
        cluster, store = fake_cluster(), MemoryStore()
        async with controlling(cluster, store) as controller:
            await controller.submit([serve("chat", replicas=1)], user=ANN)
            await until(lambda: phase(controller, "chat") == "running")
            (planned,) = await controller.plan([serve("chat", replicas=3)], user=ANN)
            assert (planned.outcome, planned.rolls_out, planned.size) == ("changed", False, 2)
            (applied,) = await controller.submit([serve("chat", replicas=3)], user=ANN)
            assert (applied.diff, applied.rolls_out) == (["replicas: 1 -> 3"], False)
            await until(lambda: len(controller.state.holding) == 3)
            await controller.submit([serve("chat", replicas=2)], user=ANN)
            await until(lambda: len(controller.state.holding) == 2)
            assert "chat/0" in controller.state.holding
            (changed,) = await controller.submit([serve("chat", replicas=2, envs={"A": "b"})], user=ANN)
            assert changed.rolls_out
            await until(lambda: controller.state.holding and "chat/0" not in controller.state.holding)

    asyncio.run(story())
