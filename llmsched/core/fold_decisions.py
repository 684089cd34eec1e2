"""What each decision changes. It was made of this state, so it is legal, unless a fact has come in between.

Called by `State.apply`, one function a decision. What a gang's life is made of is lifecycle.py's.
"""

from __future__ import annotations

from dataclasses import replace

from llmsched.core import decisions, lifecycle, lives, submissions, trade
from llmsched.core.records import Nomination, WorkloadState, gpus_of
from llmsched.core.status import Status
from llmsched.core.workload import run_id
from llmsched.core.world import World


def launch(world: World, decision: decisions.Launch) -> None:
    world.starts += 1
    lifecycle.step(world, world.gangs[decision.gang], "launch", decision)


def nominate(world: World, decision: decisions.Nominate) -> None:
    world.starts += 1
    gang = world.gangs[decision.gang]
    lives.promise(world, gang, Nomination(decision.placement, decision.victims, world.now))
    world.lanes.owe(gang, decision.owed_s, world.now, world.ledgers)


def withdraw(world: World, decision: decisions.Withdraw) -> None:
    lives.unpromise(world, world.gangs[decision.gang])


def resize(world: World, decision: decisions.Resize) -> None:
    gang = world.gangs[decision.gang]
    loss_s = trade.resize_loss_s(gang, world.now, world.configuration.scheduling.restart_cost_s)
    before = gpus_of(gang.spec, gang.placement or gang.held)  # it may hold more still: what it gave to others
    _give(world, decision, before - gpus_of(gang.spec, decision.placement), loss_s)
    _of_attempt(world, decision, "resize")


def preempt(world: World, decision: decisions.Preempt) -> None:
    gang = world.gangs[decision.gang]
    loss_s = trade.eviction_loss_s(gang, world.now, world.configuration.scheduling.restart_cost_s)
    _give(world, decision, gang.gpus_milli(), loss_s)
    _of_attempt(world, decision, "preempt")


def _give(world: World, decision: decisions.Resize | decisions.Preempt, gpus_milli: int, lost_gpu_s: float) -> None:
    giver, receiver = world.gangs[decision.gang], world.gangs.get(decision.beneficiary)
    if receiver is not None and gpus_milli > 0 and giver.attempt == decision.attempt:
        trade.give(receiver, giver, gpus_milli, lost_gpu_s)


def drain(world: World, decision: decisions.Drain) -> None:
    _of_attempt(world, decision, "drain")


def stop(world: World, decision: decisions.Stop) -> None:
    _of_attempt(world, decision, "stop")


def _of_attempt(
    world: World, decision: decisions.Resize | decisions.Preempt | decisions.Drain | decisions.Stop, event: str
) -> None:
    gang = world.gangs[decision.gang]
    if gang.attempt == decision.attempt:
        lifecycle.step(world, gang, event, decision)


def scale(world: World, decision: decisions.Scale) -> None:
    record = world.workloads[decision.workload]
    record.memory = decision.memory
    record.held_back = decision.why if decision.asked else None
    if record.wanted_replicas != decision.replicas:
        record.wanted_replicas = decision.replicas
        lifecycle.fill(world, record)


def load_adapter(world: World, decision: decisions.LoadAdapter) -> None:
    gang = world.gangs[decision.gang]
    gang.adapters[decision.name] = decision.uri


def request_capacity(world: World, decision: decisions.RequestCapacity) -> None:
    world.fleet.requested = decision.counts
    lives.count_nodes(world)


def release_node(world: World, decision: decisions.ReleaseNode) -> None:
    node = world.nodes.get(decision.node)
    if node is not None:
        world.fleet.releasing[decision.node] = world.now
        node.leaving = True
        world.capacity.reindex(node)


def assign(world: World, decision: decisions.Assign) -> None:
    world.taken[decision.reservation] = decision.taken


def run_again(world: World, decision: decisions.RunAgain) -> None:
    record = world.workloads[decision.workload]
    workload = record.workload
    if decision.run > workload.run:
        following = replace(workload, id=run_id(workload.name, decision.run), run=decision.run, after=())
        submissions.begin(world, WorkloadState(following, world.now, [], world.gangs, is_due=True))
        return
    record.next_run_at = lives.next_due_of(workload.schedule or "", world.now)
    record.is_due = True
    for gang in world.gangs_of(record):
        if gang.blocked_by == "schedule":
            lives.queue(world, gang)


def give_up(world: World, decision: decisions.GiveUp) -> None:
    gang = world.gangs[decision.gang]
    gang.message = decision.why
    if gang.status is Status.QUEUED:
        lifecycle.step(world, gang, "give_up", decision)
