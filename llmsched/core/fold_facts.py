"""What each fact changes. A fact that is stale or impossible is noted and ignored; none raises for what it says.

Called by `State.apply`, one function a fact. What a gang's life is made of is lifecycle.py's.
"""

from __future__ import annotations

from llmsched.core import authorization, facts, lifecycle, lives, rollout, submissions
from llmsched.core.archive import is_gone
from llmsched.core.capacity import NodeState
from llmsched.core.draining import OperatorDrain, drain_of
from llmsched.core.latency import learnt
from llmsched.core.message import ACTOR, NODE, Ref, quoted, say
from llmsched.core.message import workload as reference
from llmsched.core.records import WorkloadState, allowed_sizes
from llmsched.core.season import passed
from llmsched.core.status import Status
from llmsched.core.trade import HANDOVERS_KEPT, Handover, gifts_of
from llmsched.core.world import World


def nothing(world: World, fact: facts.Tick) -> None:
    """Time alone has passed."""


def configured(world: World, fact: facts.Configured) -> None:
    world.configuration = fact.configuration
    world.begin_anew()
    names = [reservation.name for reservation in fact.configuration.reservations]
    world.taken = {name: taken for name, taken in world.taken.items() if name in names}
    lives.count_quota(world)
    lives.follow_flavors(world)
    holding = (world.gangs[name] for name in world.holding)
    world.ledgers.price(fact.configuration, holding, world.now)


def submitted(world: World, fact: facts.Submitted) -> None:
    workload = fact.workload
    known = world.workloads.get(workload.id)
    if known is not None:
        if fact.replaces and not known.cancelled and (not known.outcome or workload.id in world.scheduled):
            known.met = fact.met
            submissions.go_by(world, known, workload, fact.in_place)
        else:
            world.note(fact, f"{workload.id} is known already")
        return
    submissions.begin(world, WorkloadState(workload, fact.at, [], world.gangs, met=fact.met))


def cancelled(world: World, fact: facts.Cancelled) -> None:
    record = world.workloads.get(fact.workload)
    had_schedule = lives.drop_schedule(world, record) if record is not None else False
    if record is None or record.outcome:
        if not had_schedule:
            world.note(fact, f"{fact.workload} is unknown or has ended")
        return
    world.begin_anew()
    why = say("cancelled_by", by=Ref(ACTOR, fact.by)) if fact.by else say("cancelled")
    if fact.by_parent:
        why = say("ended_by", who=reference(record.workload.parent))
    lifecycle.cancel(world, record, why)


def scaled(world: World, fact: facts.Scaled) -> None:
    record = world.workloads.get(fact.workload)
    if record is None or record.outcome or record.cancelled:
        world.note(fact, f"{fact.workload} is unknown or has ended")
        return
    world.begin_anew()
    if record.workload.kind == "serve":
        record.wanted_replicas = fact.size
        record.scaled_by_user = True
        for gang in world.gangs_of(record):
            if gang.status is Status.FAILED:
                lifecycle.step(world, gang, "pass_over", fact)
        lifecycle.fill(world, record)
        return
    for gang in world.gangs_of(record):
        if fact.size not in allowed_sizes(gang.spec):
            world.note(fact, f"{gang.id} may not have that size")
            continue
        lives.want_size(world, gang, fact.size)
        if gang.id in world.waiting:
            world.lanes.put(gang, world.now, world.ledgers, waits=True)


def rolled_back(world: World, fact: facts.RolledBack) -> None:
    record = world.workloads.get(fact.workload)
    if fact.adapter:
        back = facts.Published(fact.at, fact.workload, "adapter", fact.adapter, fact.uri, fact.origin)
        published(world, back)
        return
    version = None if record is None or record.outcome else rollout.version_numbered(record, fact.revision)
    if record is None or version is None or record.cancelled:
        world.note(fact, f"{fact.workload} has no such version, is unknown or has ended")
        return
    record.met = fact.met
    submissions.go_back(world, record, version)


def node_joined(world: World, fact: facts.NodeJoined) -> None:
    known = world.nodes.get(fact.node.id)
    if known is not None:
        if known.node == fact.node:
            if known.leaving:
                known.leaving, known.leaves_at = False, None
                _drains_otherwise(world, known)
            return
        node_lost(world, facts.NodeLost(fact.at, fact.node.id))  # it came back as something else
    world.begin_anew()
    node = world.capacity.add(fact.node)
    node.idle_since = world.now
    node.drained = drain_of(fact.node, world.drains)
    if node.drained is not None:
        world.capacity.reindex(node)
    world.fleet.releasing.pop(fact.node.id, None)
    world.fleet.overdue_since.pop(fact.node.node_type or "", None)
    lives.count_nodes(world)
    lives.count_quota(world)
    lives.follow_flavors(world)


def node_lost(world: World, fact: facts.NodeLost) -> None:
    node = world.nodes.get(fact.node)
    if node is None:
        world.note(fact, f"node {fact.node} is unknown")
        return
    for name in [*world.nominated]:
        gang = world.gangs[name]
        if gang.nomination and any(placed.node == fact.node for placed in gang.nomination.placement):
            lives.unpromise(world, gang)
    for name in [*world.moved]:
        gang = world.gangs[name]
        if any(placed.node == fact.node for placed in (*gang.goes_to, *gang.held)):
            lives.give_up_places(world, gang)
    for name in [*world.exceeding]:
        gang = world.gangs[name]
        lives.exceed(world, gang, tuple(one for one in gang.excess if one[0] != fact.node))
    for name in [*world.holding]:
        gang = world.gangs[name]
        left = tuple(placed for placed in gang.held if placed.node != fact.node)
        if len(left) == len(gang.held):
            continue
        world.ledgers.hold(gang, left, world.now)
        # It has nothing to come back to there either, once it has changed size: the node may return, and be others'.
        gang.placement = tuple(placed for placed in gang.placement or () if placed.node != fact.node)
        gang.message = say("node_lost", node=Ref(NODE, node.node.name or fact.node))
        if not left:
            lifecycle.fails(world, gang, "interruption", gang.message, fact)
        elif gang.status is not Status.VACATING:
            gang.lost_members, gang.lost_at = True, world.now
            gang.home = tuple(dict.fromkeys(placed.node for placed in left))
            world.troubled[name] = None
    world.begin_anew()
    world.capacity.remove(fact.node)
    if world.fleet.releasing.pop(fact.node, None) is not None:
        world.drains.pop(node.node.shown, None)  # who gives a node back does not expect it again
        world.drains.pop(fact.node, None)
    lives.count_nodes(world)
    lives.count_quota(world)
    lives.follow_flavors(world)


def node_draining(world: World, fact: facts.NodeDraining) -> None:
    node = world.nodes.get(fact.node)
    if node is None:
        world.note(fact, f"node {fact.node} is unknown")
        return
    if (node.leaving, node.leaves_at) != (True, fact.deadline):
        node.leaving, node.leaves_at = True, fact.deadline
        _drains_otherwise(world, node)


def drain_begun(world: World, fact: facts.DrainBegun) -> None:
    world.drains[fact.node] = OperatorDrain(fact.node, fact.at, fact.deadline, fact.by)
    _look_at_drains(world)


def drain_ended(world: World, fact: facts.DrainEnded) -> None:
    if world.drains.pop(fact.node, None) is None:
        world.note(fact, f"node {fact.node} is not drained")
    _look_at_drains(world)


def _look_at_drains(world: World) -> None:
    for node in world.nodes.values():
        drained = drain_of(node.node, world.drains)
        if drained != node.drained:
            node.drained = drained
            _drains_otherwise(world, node)


def _drains_otherwise(world: World, node: NodeState) -> None:
    """It is to be empty now, or by another time, or not any more: whom that concerns is looked at."""
    world.begin_anew()
    world.capacity.reindex(node)
    holding = (world.gangs[name] for name in world.holding)
    here = [gang for gang in holding if any(placed.node == node.node.id for placed in gang.held)]
    if node.draining:
        for name in [*world.nominated]:
            gang = world.gangs[name]
            if gang.nomination and any(placed.node == node.node.id for placed in gang.nomination.placement):
                lives.unpromise(world, gang)
        for name in [*world.moved]:
            gang = world.gangs[name]
            if any(placed.node == node.node.id for placed in gang.goes_to):
                lives.give_up_places(world, gang)
        world.troubled.update((gang.id, None) for gang in here if gang.is_active())
    for name in dict.fromkeys(gang.workload_id for gang in here if gang.spec.kind == "serve"):
        world.troubled[name] = None
        lifecycle.fill(world, world.workloads[name])


def foreign_use(world: World, fact: facts.ForeignUse) -> None:
    node = world.nodes.get(fact.node)
    if node is None:
        world.note(fact, f"node {fact.node} is unknown")
        return
    if node.foreign != fact.used:
        world.begin_anew()
    node.foreign = fact.used
    world.capacity.reindex(node)


def excess_use(world: World, fact: facts.ExcessUse) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    lives.exceed(world, gang, tuple((node, used) for node, used in fact.used if node in world.nodes))


def stall(world: World, fact: facts.Stalled) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    gang.stalled = fact.message


def bound(world: World, fact: facts.Bound) -> None:
    gang = lifecycle.current(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    if gang.status is Status.LAUNCHING:
        record = world.workloads[gang.workload_id]
        came = Handover(fact.at, gang.id, round(fact.at - gang.queued_since, 3), gifts_of(gang))
        record.handovers = (*record.handovers, came)[-HANDOVERS_KEPT:]
    lifecycle.step(world, gang, "bound", fact)


def resized(world: World, fact: facts.Resized) -> None:
    gang = lifecycle.current(world, fact.gang, fact.attempt, fact)
    if gang is not None and fact.size == len(gang.placement or ()):  # else it was told to become smaller still
        lifecycle.step(world, gang, "resized", fact)


def launch_failed(world: World, fact: facts.LaunchFailed) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return  # of one that ran it is true too: a resize begins the attempt again, and may not succeed
    if gang.status is Status.VACATING:
        released(world, facts.Released(fact.at, fact.gang, fact.attempt))
    else:
        lifecycle.fails(world, gang, fact.event, quoted(fact.message), fact)


def finished(world: World, fact: facts.Finished) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    record = world.workloads[gang.workload_id]
    if fact.artifact is not None:
        record.artifact = fact.artifact
    record.metrics.update(fact.metrics)
    if fact.outcome == "succeeded":
        lifecycle.step(world, gang, "succeeded", fact)
    else:
        lifecycle.fails(world, gang, fact.event, quoted(fact.message), fact)


def released(world: World, fact: facts.Released) -> None:
    gang = lifecycle.current(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    if gang.status is not Status.VACATING:
        world.note(fact, "not vacating")
    elif gang.leaving == "released" and gang.lost_members:
        lifecycle.again_or_not(world, gang, "interruption", gang.message, fact)
    else:
        lifecycle.step(world, gang, gang.leaving, fact)


def lost(world: World, fact: facts.Lost) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is not None:
        message = quoted(fact.message) or say("lost")
        lifecycle.fails(world, gang, "interruption", message, fact, fact.by_others)


def checkpoint(world: World, fact: facts.CheckpointPublished) -> None:
    gang = lifecycle.at_work(world, fact.gang, fact.attempt, fact)
    if gang is None:
        return
    world.ledgers.meter.saved(gang.id, world.now)
    gang.checkpoint_at = fact.at
    gang.fraction = fact.fraction


def estimated(world: World, fact: facts.Estimated) -> None:
    gang = world.gangs.get(fact.gang)
    if gang is None or gang.is_ended():
        world.note(fact, f"{fact.gang} is unknown or has ended")
        return
    if gang.is_active():
        lives.settle(world, gang)
    gang.measured, gang.basis = True, None
    gang.work_left = max(0.0, fact.remaining_s) * (gang.pace(gang.size) if gang.size else 1.0)
    gang.progress_at = world.now
    if gang.is_active():
        lives.expect_end(world, gang)
    if gang.id in world.waiting:  # its place in line may depend on it
        world.waiting.discard(gang)
        world.waiting.add(gang)


def load_observed(world: World, fact: facts.LoadObserved) -> None:
    record = world.workloads.get(fact.workload)
    if record is None or record.outcome:
        world.note(fact, f"{fact.workload} is unknown or has ended")
        return
    knobs = record.workload.autoscaling
    if knobs is None or not knobs.forecast:
        record.season = None
    elif record.load is not None and fact.at > record.load[2]:
        ongoing, queued, since = record.load
        record.season = passed(record.season, ongoing + queued, since, fact.at)
    record.load = (fact.ongoing, fact.queued, fact.at)
    for found in fact.latencies:
        record.curves = learnt(record.curves, found, fact.at)


def published(world: World, fact: facts.Published) -> None:
    origin, record = world.workloads.get(fact.origin), world.workloads.get(fact.target)
    if origin is None:
        world.note(fact, f"{fact.origin} is unknown")
        return
    user = origin.workload.user
    world.publications.setdefault(fact.target, {})[user, fact.name] = fact
    if record is None or not authorization.may_publish(world, user, record.workload):
        return
    if fact.kind == "model":  # a new model is a new revision: replicas are replaced one by one
        record.revision += 1
        record.model = fact.uri
        lives.move_on(world, record)
        lifecycle.fill(world, record)
    world.troubled[fact.target] = None


def adapter_loaded(world: World, fact: facts.AdapterLoaded) -> None:
    gang = lifecycle.current(world, fact.gang, fact.attempt, fact)
    if gang is None or not gang.is_active():
        world.note(fact, "no attempt is open")
        return
    gang.adapters[fact.name] = fact.uri
    if fact.message:
        gang.adapter_errors[fact.name] = fact.message
    else:
        gang.adapter_errors.pop(fact.name, None)


def command_begun(world: World, fact: facts.CommandBegun) -> None:
    """A look beside a gang takes nothing and moves nothing: it is kept because it happened."""
    lifecycle.current(world, fact.gang, fact.attempt, fact)


def unlisted(world: World, fact: facts.Unlisted) -> None:
    record = world.workloads.get(fact.workload)
    if record is None or not record.outcome:
        world.note(fact, "it is unknown, or has not ended")
    else:
        record.unlisted = True


def archived(world: World, fact: facts.Archived) -> None:
    for name in fact.workloads:
        record = world.workloads.get(name)
        if record is None or not record.outcome or name in world.scheduled:
            world.note(fact, f"{name} is unknown, lives, or has a schedule")
        else:
            lives.put_aside(world, record)
    for name in fact.replicas:
        gang = world.gangs.get(name)
        if gang is None or not is_gone(gang) or gang.workload_id not in world.serving:
            world.note(fact, f"{name} is no replica that is gone")
        else:
            world.workloads[gang.workload_id].gangs.remove(name)
            del world.gangs[name]
