"""What happens to a gang or workload on the way from one status to the next, and between: queued, set aside, counted.

Steps that several rows of lifecycle.py and several entries share. Writes no status and decides nothing: the choice was
made by whoever said the fact.
"""

from __future__ import annotations

import heapq

from llmsched.core import cron, rollout
from llmsched.core.explain import Reason
from llmsched.core.message import Quote, say, workload, workloads
from llmsched.core.records import GangState, Nomination, Version, WorkloadState, allowed_sizes, flavor_held
from llmsched.core.resources import MILLI, ByNode
from llmsched.core.status import Status
from llmsched.core.workload import Placement, Workload, gang_id
from llmsched.core.world import World

# Beginning, and going by another spec.


def new_gang(world: World, record: WorkloadState, version: Version) -> None:
    name = gang_id(record.workload.id, record.next_index)
    spec = version.spec
    submitted = record.submitted_at if spec.kind != "serve" else world.now
    gang = GangState(
        name, spec.id, record.next_index, spec, submitted, version.revision, version.model, queued_since=world.now
    )
    gang.work_left = spec.estimated_runtime_s
    expect(world, gang)
    record.next_index += 1
    record.gangs.append(name)
    world.gangs[name] = gang
    world.begin_anew()
    queue(world, gang)


def move_on(world: World, record: WorkloadState) -> None:
    """Whoever waits becomes of the version that it is to start as."""
    for gang in world.gangs_of(record):
        version = rollout.version_of(record, gang)
        if gang.status is Status.QUEUED and gang.revision != version.revision:
            adopt_version(world, gang, version)
            queue(world, gang)


def adopt_version(world: World, gang: GangState, version: Version) -> None:
    unpromise(world, gang)
    world.waiting.discard(gang)
    gang.revision, _, gang.model = version
    respecify(world, gang, version.spec)
    gang.goes_to = ()
    gang.restarts = gang.failures = 0
    gang.not_before = 0.0
    gang.work_left = gang.spec.estimated_runtime_s
    gang.measured = False
    expect(world, gang)


def respecify(world: World, gang: GangState, spec: Workload) -> None:
    """The gang goes by another spec; a size that its user asked for holds as long as the spec allows it."""
    _ask_for(world, gang, spec, gang.wanted_size if gang.wanted_size in allowed_sizes(spec) else None)


def want_size(world: World, gang: GangState, size: int) -> None:
    """Its user asks for that size."""
    _ask_for(world, gang, gang.spec, size)


def _ask_for(world: World, gang: GangState, spec: Workload, size: int | None) -> None:
    """From now on it waits with those that ask for the same: at once, or when it waits again."""
    waits = gang.id in world.waiting
    world.waiting.discard(gang)
    gang.spec, gang.wanted_size, gang.shape = spec, size, None
    if gang.id in world.ledgers.graces:
        world.ledgers.graces[gang.id] = spec.grace_s
    if waits:
        world.waiting.add(gang)


# Schedules.


def hand_schedule_to(world: World, record: WorkloadState) -> None:
    """The newest run of a name carries the schedule, if there is one: nothing else is due any more."""
    workload = record.workload
    for name in [n for n in world.scheduled if world.workloads[n].workload.name == workload.name]:
        drop_schedule(world, world.workloads[name])
    if workload.schedule:
        world.scheduled[workload.id] = None
        record.next_run_at = next_due_of(workload.schedule, world.now)


def drop_schedule(world: World, record: WorkloadState) -> bool:
    record.next_run_at = None
    return world.scheduled.pop(record.workload.id, record) is None


def next_due_of(schedule: str, after: float) -> float | None:
    try:
        return cron.next_due(schedule, after)
    except ValueError:  # a fact never raises; `check` refuses such a schedule
        return None


# Waiting.


def queue(world: World, gang: GangState) -> None:
    """Put a QUEUED gang among the waiting, or aside while it may not start yet."""
    spec, record = gang.spec, world.workloads[gang.workload_id]
    if gang.is_late(world.now):
        world.troubled[gang.id] = None
    elif spec.deadline is not None:
        heapq.heappush(world.timers, (spec.deadline, gang.id))
    if spec.after and any(_outcome_of(world, record, name) != "succeeded" for name in spec.after):
        park(world, gang, "dependency")
        if any(_outcome_of(world, record, name) in ("failed", "cancelled") for name in spec.after):
            world.troubled[gang.id] = None
    elif spec.schedule and not record.is_due:
        park(world, gang, "schedule")
    elif gang.not_before > world.now:
        park(world, gang, "backoff")
        heapq.heappush(world.timers, (gang.not_before, gang.id))
    else:
        enqueue(world, gang)


def park(world: World, gang: GangState, why: str) -> None:
    world.lanes.drop(gang, world.now)
    gang.blocked_by = why
    world.parked[gang.id] = None
    if why == "backoff":
        failed = say("backoff.failed", message=gang.message) if gang.message else say("backoff.silent")
        gang.own_reason = Reason("backoff", failed, eta=gang.not_before, eta_basis=say("eta.pause"))
    elif why == "schedule":
        due = world.workloads[gang.workload_id].next_run_at
        its_time = say("dependency.schedule", schedule=Quote(gang.spec.schedule or ""))
        gang.own_reason = Reason("dependency", its_time, eta=due, eta_basis=say("eta.schedule"))
    else:
        record = world.workloads[gang.workload_id]
        names = [name for name in gang.spec.after if _outcome_of(world, record, name) != "succeeded"]
        awaited = say("dependency.after", who=workloads(names), first=workload(names[0]))
        gang.own_reason = Reason("dependency", awaited, (("dependencies", len(names)),))


def enqueue(world: World, gang: GangState) -> None:
    if gang.blocked_by:
        gang.queued_since = world.now  # it could not have started before
        world.begin_anew()
    _drop_parked(world, gang)
    gang.own_reason = None
    world.waiting.add(gang)
    world.lanes.put(gang, world.now, world.ledgers, waits=True)


def leave_line(world: World, gang: GangState, placement: Placement = ()) -> None:
    """It does not wait any more, and nothing is promised to it. `placement`: where it goes instead."""
    unpromise(world, gang, placement)
    world.waiting.discard(gang)
    _drop_parked(world, gang)
    gang.own_reason = None


def promise(world: World, gang: GangState, nomination: Nomination) -> None:
    unpromise(world, gang, nomination.placement)
    gang.nomination = nomination
    world.nominated[gang.id] = None
    world.ledgers.charge(gang, nomination.placement, 1, promise=True)


def unpromise(world: World, gang: GangState, placement: Placement = ()) -> None:
    if gang.nomination is not None:
        world.causes += gang.nomination.placement != placement  # what it leaves others may take
        world.ledgers.charge(gang, gang.nomination.placement, -1, promise=True)
        gang.nomination = None
        del world.nominated[gang.id]
        world.lanes.give_back(gang, 0.0, world.now, world.ledgers)


def _outcome_of(world: World, record: WorkloadState, dependency: str) -> str:
    known = world.workloads.get(dependency)
    return known.outcome if known else "succeeded" if dependency in record.met else ""


def _drop_parked(world: World, gang: GangState) -> None:
    world.parked.pop(gang.id, None)
    gang.blocked_by = ""


# Holding.


def keep_places(world: World, gang: GangState, placement: Placement) -> None:
    """They are its own while it leaves what it holds."""
    gang.goes_to = placement
    world.moved[gang.id] = None
    world.ledgers.keep(gang, placement, 1)


def give_up_places(world: World, gang: GangState) -> Placement:
    """They are kept no more. Which ones; () for none."""
    placement = gang.goes_to
    if placement:
        world.causes += 1
        world.ledgers.keep(gang, placement, -1)
        gang.goes_to = ()
        del world.moved[gang.id]
    return placement


def set_pace(world: World, gang: GangState) -> None:
    """Say how fast it is where it was placed: as its option says, else as earlier runs on that flavor were."""
    placement = gang.placement or ()
    gang.option, gang.flavor = placement[0].option, flavor_held(world.nodes, gang.spec, placement)
    gang.relative_speed = world.history.relative_speed(gang.spec, gang.option, gang.flavor)
    most = gang.spec.max_size if gang.spec.is_elastic() else gang.size
    gang.faster = world.history.faster(gang.spec, most, gang.option, gang.pace(gang.size))
    if gang.faster:
        world.movable[gang.id] = None
    else:
        world.movable.pop(gang.id, None)


def expect(world: World, gang: GangState) -> None:
    """Say how much work is left, where nobody declared it: as history has it. Its own progress knows better."""
    if gang.measured or gang.spec.estimated_runtime_s is not None or gang.spec.kind == "serve":
        return
    guess = world.history.plan(gang.spec)
    gang.work_left = max(guess.seconds - gang.worked_s, 0.0) if guess else None
    gang.basis = guess.basis if guess else None


def expect_end(world: World, gang: GangState) -> None:
    world.outstanding.put(gang)
    world.ends.put(gang)


def forget_end(world: World, gang: GangState) -> None:
    world.outstanding.drop(gang)
    world.ends.drop(gang)


def settle(world: World, gang: GangState) -> None:
    """Count the work that its attempt has done since the last change of speed."""
    if gang.started_at is not None:
        done = (world.now - gang.progress_at) * gang.pace(gang.size or gang.spec.min_size)
        gang.worked_s += done
        if gang.work_left is not None:
            gang.work_left = max(0.0, gang.work_left - done)
    gang.progress_at = world.now


def exceed(world: World, gang: GangState, used: ByNode) -> None:
    """Its attempt takes so much beyond what the gang was given."""
    if used or gang.excess:
        world.ledgers.exceed(gang, used, world.now)
    if used:
        gang.excess_since = world.now if gang.excess_since is None else gang.excess_since
        world.exceeding[gang.id] = None
    elif gang.excess_since is not None:
        gang.excess_s += world.now - gang.excess_since
        gang.excess_since = None
        world.exceeding.pop(gang.id, None)


def let_go(world: World, gang: GangState, *, again: bool = False) -> None:
    """The attempt is over: count its service and free everything. `again`: another one is to follow it."""
    give_up_places(world, gang)
    settle(world, gang)
    ran_s = 0.0 if gang.started_at is None else world.now - gang.started_at
    world.lanes.give_back(gang, ran_s, world.now, world.ledgers)
    if gang.started_at is not None:
        gang.served_s += world.now - gang.started_at
        gang.served_gpu_s += (world.now - gang.started_at) * gang.gpus_milli() / MILLI
    world.ledgers.hold(gang, (), world.now)
    world.ledgers.meter.end(gang.id, world.now, again=again and gang.spec.kind != "serve")
    forget_end(world, gang)
    gang.stalled = ""
    exceed(world, gang, ())
    gang.excess_s = 0.0
    indices = (world.holding, world.vacating, world.elastic, world.movable, world.timed, world.troubled)
    for index in indices:
        index.pop(gang.id, None)


# Over.


def close(world: World, record: WorkloadState) -> None:
    """A workload all of whose gangs have ended is over, and who waits for it may go on."""
    if record.outcome:
        return
    gangs = world.gangs_of(record)
    if any(not gang.is_ended() for gang in gangs):
        return
    if record.cancelled:
        outcome = "cancelled"
    elif record.workload.kind == "serve":
        failed = [gang for gang in gangs if gang.status is Status.FAILED]
        if not failed or not record.wanted_replicas:
            return  # scaled to zero: still alive
        outcome = "failed"
        record.message = failed[-1].message
    else:
        outcome = {Status.FINISHED: "succeeded", Status.FAILED: "failed"}.get(gangs[-1].status, "cancelled")
        record.message = gangs[-1].message
    record.outcome = outcome
    record.finished_at = world.now
    name = record.workload.id
    world.ended[name] = None
    world.serving.pop(name, None)
    world.open_work.drop(name)
    world.troubled.pop(name, None)
    leave_parent(world, record)
    if outcome == "cancelled":
        drop_schedule(world, record)
    for dependent in world.dependents.get(name, ()):
        for gang in world.gangs_of(world.workloads[dependent]):
            if gang.status is Status.QUEUED and gang.blocked_by == "dependency":
                queue(world, gang)


def leave_parent(world: World, child: WorkloadState) -> None:
    """What it took goes on to count in its parent's budget."""
    parent = child.workload.parent
    if not parent:
        return
    siblings = world.children[parent]
    del siblings[child.workload.id]
    if not siblings:
        del world.children[parent]
    if (record := world.workloads.get(parent)) is not None:
        record.children_gpu_s += sum(gang.served_gpu_s for gang in world.gangs_of(child))


def put_aside(world: World, record: WorkloadState) -> None:
    """Out of the state, into the archive, with its gangs."""
    workload = record.workload
    record.known = {name: world.gangs.pop(name) for name in record.gangs}
    del world.workloads[workload.id], world.ended[workload.id]
    world.dependents.pop(workload.id, None)
    for name in workload.after:
        left = [one for one in world.dependents.pop(name, ()) if one != workload.id]
        if left:
            world.dependents[name] = left
    newest, here = world.runs.pop(workload.name)
    if here > 1:
        world.runs[workload.name] = newest, here - 1
    record.usage = world.ledgers.meter.close(workload.id, workload.user)
    world.archived[workload.user, workload.queue, record.outcome] += 1
    world.archive.put(record)


# Nodes.


def count_nodes(world: World) -> None:
    """Nodes came, went, or were asked for."""
    if world.configuration.node_types:
        world.fleet.count(world.nodes.values(), world.now)


def count_quota(world: World) -> None:
    """Quota as it is by the present configuration and nodes."""
    having = (world.gangs[name] for name in (*world.holding, *world.nominated))
    world.ledgers.configure(world.configuration, having)


def follow_flavors(world: World) -> None:
    """Who waits stands in the pool of what is there for it by these nodes and quotas."""
    by_rank = world.configuration.scheduling.preemption.within_queue == "by_rank"
    world.lanes.follow(world.gangs.values(), by_rank, world.ledgers)
