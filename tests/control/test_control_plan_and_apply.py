"""`plan` says what `apply` does seconds later, in any small world: the same verdict, reason and start."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from control_harness import ANN, ManualClock, Script, controlling, serve, task, train

from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.controller import Controller
from llmsched.control.roles import OPERATOR
from llmsched.core.facts import Tick
from llmsched.errors import RequestError
from llmsched.executors.fake import FakeCluster, NodeKind
from llmsched.executors.port import LaunchOrder
from llmsched.spec import cluster as cluster_file
from llmsched.spec import http_models

LATER_S = 3.0
STARTS_WITHIN_S = 5.0
ETA_WITHIN_S = LATER_S + STARTS_WITHIN_S  # the end of what is just starting is known once it has started
RULES = [
    "queues: [{name: a}, {name: b}]",
    "queues: [{name: a}, {name: b}]\nscheduling: {order: strict_fifo, backfill: easy}\npolicies: {ordering: fifo}",
    "queues: [{name: a, weight: 2}, {name: b}]\nscheduling: {fair_share: drf_total, backfill: conservative}",
    "cohorts: [{name: all}]\nqueues: [{name: a, cohort: all, quota: {A100: {nominal: 2}}},\n"
    "  {name: b, cohort: all, quota: {A100: {nominal: 2}, T4: {nominal: 1}}}]\n"
    "scheduling: {preemption: {reclaim: any}}",
    "queues: [{name: a, quota: {A100: {nominal: 2, borrowing_limit: 0}}}, {name: b}]",
    "queues: [{name: a}, {name: b}]\nscheduling: {preemption: {within_queue: lower_priority}}",
]


def some_spec(chance: random.Random, name: str) -> Any:
    more: dict[str, Any] = {"queue": chance.choice("ab"), "priority": chance.choice([0, 0, 10])}
    if chance.random() < 0.6:
        more["estimated_runtime"] = f"{chance.choice([60, 200, 900])}s"
    more["resources"] = {"accelerators": [f"{chance.choice(['A100', 'A100', 'T4'])}:{chance.choice([1, 1, 2, 5])}"]}
    match chance.choice("tttrrs"):
        case "t":
            return task(name, **more)
        case "r":
            return train(name, workers=chance.choice([1, 2, "1..3"]), **more)
    more.pop("estimated_runtime", None)
    return serve(name, replicas=chance.choice([1, 2]), **more)


def script(order: LaunchOrder) -> Script:
    chance = random.Random(order.gang)
    if order.kind == "serve":
        return Script(starts_after_s=5.0)
    return Script(
        chance.choice([1.0, STARTS_WITHIN_S]),
        chance.choice([None, 100.0, 300.0]),
        stops_after_s=2.0,
        resizes_after_s=2.0,
    )


def happened(controller: Controller) -> int:
    return sum(not isinstance(written.entry, Tick) for written in controller.entries(0))


async def planned_and_applied(seed: int) -> list[tuple[http_models.Planned, http_models.WorkloadView]]:
    """What is said of each workload of a file before it is applied, and of the same after the first pass."""
    chance, clock = random.Random(seed), ManualClock(960_000.0)
    count = chance.choice([1, 2, 3])
    nodes = [NodeKind(chance.choice([1, 2, 4]), chance.choice(["A100", "A100", "T4"])) for _ in range(count)]
    cluster = FakeCluster(nodes, clock=clock, script=script)
    async with controlling(cluster, clock=clock) as controller:
        await controller.configure(cluster_file.load(RULES[seed % len(RULES)].encode(), "cluster.yaml"), "root")
        for number in range(chance.randrange(7)):
            with suppress(RequestError):  # no node of this world could ever hold it
                await controller.submit([some_spec(chance, f"w{number}")], user=ANN)
            await clock.advance(chance.choice([0.0, 3.0, 40.0]))
        file = [some_spec(chance, f"new{number}") for number in range(chance.choice([1, 1, 2, 3]))]
        while True:
            before = happened(controller)
            planned = await controller.plan(file, user=ANN, role=OPERATOR)
            await clock.advance(LATER_S)
            if happened(controller) == before:  # else somebody has started or ended meanwhile
                break
        taken = [spec for spec, one in zip(file, planned, strict=True) if one.outcome != "refused"]
        for spec, one in zip(file, planned, strict=True):
            if spec not in taken:
                with pytest.raises(RequestError) as refused:
                    await controller.submit([spec], user=ANN)
                assert one.reason is not None and refused.value.code == one.reason.code
        if taken:
            await controller.submit(taken, user=ANN)
        await clock.advance(0.0)
        state = controller.state
        names = KnownNames(state, Permissions(Person(ANN, OPERATOR), state.configuration))
        told = [one for one in planned if one.outcome != "refused"]
        return [(one, views.workload(state, state.find(one.name), {}, names)) for one in told]


@pytest.mark.parametrize("rules", range(len(RULES)))
def test_apply_does_what_plan_has_said(rules: int) -> None:
    for seed in range(rules, 10 * len(RULES), len(RULES)):
        for planned, applied in asyncio.run(planned_and_applied(seed)):
            assert differences(planned, applied) == [], f"{planned.name} in world {seed}"


def differences(planned: http_models.Planned, applied: http_models.WorkloadView) -> list[str]:
    found = []
    started = [gang for gang in applied.gangs if gang.launched_at is not None]
    if planned.starts_now != bool(started):
        found.append(f"starts now: {planned.starts_now}, {applied.phase}")
    nodes = [sorted(place.node for place in planned.placement)]
    nodes.append(sorted(place.node for gang in started for place in gang.placement))
    if nodes[0] != nodes[1] and planned.starts_now:
        found.append(f"on: {nodes[0]}, {nodes[1]}")
    before, after = planned.reason, applied.reason
    if before is None or after is None:
        return found if before is after else [*found, f"a reason: {before}, {after}"]
    for field in ("code", "message", "next_change", "counts", "eta_basis"):
        if getattr(before, field) != getattr(after, field):
            found.append(f"{field}: {getattr(before, field)!r}, {getattr(after, field)!r}")
    if (before.eta is None) != (after.eta is None) or abs((before.eta or 0) - (after.eta or 0)) > ETA_WITHIN_S:
        found.append(f"eta: {before.eta}, {after.eta}")
    return found
