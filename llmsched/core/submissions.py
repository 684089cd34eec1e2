"""A run begins, or goes on under another spec; see the table in section 4 of ARCHITECTURE.md."""

from __future__ import annotations

from llmsched.core import authorization, lifecycle, lives
from llmsched.core.records import Version, WorkloadState
from llmsched.core.status import Status
from llmsched.core.workload import Workload, run_id
from llmsched.core.world import World


def begin(world: World, record: WorkloadState) -> None:
    workload = record.workload
    world.workloads[workload.id] = record
    newest, here = world.runs.get(workload.name, (0, 0))
    world.runs[workload.name] = max(newest, workload.run), here + 1
    world.open_work.put(workload)
    lives.hand_schedule_to(world, record)
    for name in workload.after:
        world.dependents.setdefault(name, []).append(workload.id)
    if workload.parent:
        world.children.setdefault(workload.parent, {})[workload.id] = None
    if workload.kind == "serve":
        world.serving[workload.id] = None
        record.wanted_replicas = workload.min_replicas
        _remember(world, record)
        published = authorization.published_to(world, workload).values()
        models = [one for one in published if one.kind == "model"]
        record.model = max(models, key=lambda one: one.at).uri if models else ""
        lifecycle.fill(world, record)
    else:
        lives.new_gang(world, record, record.version)


def _remember(world: World, record: WorkloadState) -> None:
    """An endpoint that its owner ended and began again is as slow, and asked as much, as it was."""
    workload = record.workload
    before = world.workloads.get(run_id(workload.name, workload.run - 1))
    if before is not None and (before.workload.user, before.workload.kind) == (workload.user, workload.kind):
        record.curves, record.season = before.curves, before.season


def go_by(world: World, record: WorkloadState, workload: Workload, in_place: bool) -> None:
    """The run goes by a changed spec: what runs stays where it is (`in_place`), or is replaced."""
    old, record.workload = record.workload, workload
    if not record.outcome:
        world.open_work.put(workload)
    world.causes += 1
    record.revision += not in_place
    for name in workload.after:
        world.dependents.setdefault(name, []).append(workload.id)
    if workload.schedule != old.schedule:
        lives.hand_schedule_to(world, record)
    if workload.kind == "serve":
        record.wanted_replicas = min(max(record.wanted_replicas, workload.min_replicas), workload.max_replicas)
    record.message = None
    if in_place and record.answered is not None and record.answered.revision == record.revision:
        record.answered = record.answered._replace(spec=workload)
    lives.move_on(world, record)
    for gang in world.gangs_of(record):
        world.begin_anew(gang.id)
        if gang.status is Status.FAILED and workload.kind == "serve":
            lifecycle.step(world, gang, "pass_over")  # it failed under the old spec: the new one gets its chance
        elif in_place and gang.revision == record.revision and not gang.is_ended():
            lives.respecify(world, gang, workload)
        elif gang.is_active():
            world.troubled[gang.id] = None
    if workload.kind == "serve":
        lifecycle.fill(world, record)


def go_back(world: World, record: WorkloadState, version: Version) -> None:
    """The endpoint goes by a version of before, as its newest. What runs of it already goes on as that: only what is of
    another one is replaced."""
    record.model = version.model
    is_last = record.answered is not None and record.answered.revision == version.revision
    revision = record.revision + 1
    if is_last:
        record.answered = version._replace(revision=revision)
        for gang in world.gangs_of(record):
            if gang.revision == version.revision and not gang.is_ended():
                gang.revision = revision
    go_by(world, record, version.spec, in_place=False)
