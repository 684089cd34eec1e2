"""The life of a gang as a table, which is the program: which status follows which event, and what is done then.

`step` is the only place where a status is written: it looks the event up, writes, and carries out the row's action. An
event without a row is not legal; it is noted as stale and ignored. The diagram in ARCHITECTURE.md is drawn from the
table, and a test shows that no row can be missed. Below it are the actions, and what they share with the entries that
change how many replicas there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from llmsched.core import lives, rollout
from llmsched.core.decisions import Drain, Launch, Preempt, Resize, Stop
from llmsched.core.draining import is_moving
from llmsched.core.exchanges import Exchange
from llmsched.core.facts import Finished, Resized
from llmsched.core.message import Message, quoted, say, workload
from llmsched.core.records import GangState, Nomination, Version, WorkloadState, size_of
from llmsched.core.status import Status
from llmsched.core.world import World

HOUR_S = 3600.0
STEADY_S = 600.0  # a replica that ran this long has its restarts forgiven

Action = Callable[[World, GangState, Any], None]  # of a row; the last is the entry of the journal that led to it


class Row(NamedTuple):
    to: Status
    action: Action


def step(world: World, gang: GangState, event: str, entry: object = None) -> bool:
    """Whether the event was legal; then all that follows from it has been done."""
    row = TABLE.get((gang.status, event))
    if row is None:
        world.note(entry, f"{gang.id} is {gang.status.value}")
        return False
    gang.status = row.to
    row.action(world, gang, entry)
    return True


def current(world: World, name: str, attempt: int, fact: object) -> GangState | None:
    """The gang, if that is its present attempt."""
    gang = world.gangs.get(name)
    if gang is None or gang.attempt != attempt:
        world.note(fact, f"{name} attempt {attempt} is not the present one")
        return None
    return gang


def at_work(world: World, name: str, attempt: int, fact: object) -> GangState | None:
    """The gang, if that is its present attempt and it holds something."""
    gang = current(world, name, attempt, fact)
    if gang is not None and not gang.is_holding():
        world.note(fact, "no attempt is open")
        return None
    return gang


def fails(
    world: World, gang: GangState, event: str, message: Message | None, entry: object, by_others: bool = False
) -> None:
    """An attempt failed or was lost: again after a pause, or for good."""
    steady = gang.started_at is not None and world.now - gang.started_at >= STEADY_S
    if gang.spec.kind == "serve" and steady:
        gang.restarts = 0
    if message:
        gang.message = message
    leaving = gang.leaving if gang.status is Status.VACATING else ""
    if leaving in ("ended", "stopped"):
        step(world, gang, leaving, entry)
    elif leaving == "released" and event not in ("error", "input"):
        step(world, gang, "released", entry)  # it was leaving anyway: not its fault
    else:
        again_or_not(world, gang, event, message, entry, by_others)


def again_or_not(
    world: World, gang: GangState, event: str, message: Message | None, entry: object, by_others: bool = False
) -> None:
    retry, is_cancelled = gang.spec.retry, world.workloads[gang.workload_id].cancelled
    spends = event != "no-capacity" and not by_others
    gang.failures += 1
    may_retry = by_others or event in retry.on_events
    if is_cancelled or (may_retry and not (spends and gang.restarts >= retry.max_restarts)):
        gang.restarts += spends
        step(world, gang, "retry", entry)
        return
    gang.message = message or say("attempt_failed")
    if gang.attempt > 1:
        gang.message = say("failed_after", message=gang.message, attempts=gang.attempt)
    step(world, gang, "failed", entry)


def cancel(world: World, record: WorkloadState, why: Message) -> None:
    """It is to end, and what it asked for with it."""
    record.cancelled = True
    record.message = why
    for gang in world.gangs_of(record):
        if gang.status is Status.QUEUED:
            step(world, gang, "cancel")
        elif gang.is_active():
            world.troubled[gang.id] = None
        elif gang.status is Status.VACATING and gang.leaving == "released":
            gang.leaving = "ended"
    lives.close(world, record)
    end_children(world, record)


def end_children(world: World, parent: WorkloadState) -> None:
    for name in [*world.children.get(parent.workload.id, ())]:
        child = world.workloads[name]
        if not child.cancelled:
            cancel(world, child, say("ended_with", who=workload(parent.workload.id)))


# The actions: what is done once the status is written.


def _launched(world: World, gang: GangState, decision: Launch) -> None:
    lives.leave_line(world, gang, decision.placement)
    world.lanes.put(gang, world.now, world.ledgers, waits=False)
    world.lanes.owe(gang, decision.owed_s, world.now, world.ledgers)
    gang.attempt = decision.attempt
    gang.placement = decision.placement
    gang.size = size_of(gang.spec, decision.placement)
    gang.launched_at = gang.progress_at = world.now
    lives.set_pace(world, gang)
    lives.expect(world, gang)
    gang.started_at = gang.resized_at = gang.checkpoint_at = None
    gang.lost_members = False
    gang.home = ()
    gang.leaving = gang.vacate_reason = gang.beneficiary = ""
    gang.adapters = {}
    gang.adapter_errors = {}
    world.holding[gang.id] = None
    if gang.spec.is_elastic() or gang.wanted_size is not None:
        world.elastic[gang.id] = None
    if gang.spec.max_runtime_s is not None or gang.spec.deadline is not None or gang.spec.budget_gpu_s is not None:
        world.timed[gang.id] = None
    world.ledgers.hold(gang, decision.placement, world.now)
    lives.expect_end(world, gang)


def _began(world: World, gang: GangState, fact: object) -> None:
    world.ledgers.meter.began(gang.id, world.now)
    gang.started_at = gang.progress_at = world.now
    gang.failures = 0
    gang.message = None
    lives.expect_end(world, gang)
    _answers(world, gang, fact)


def _answers(world: World, gang: GangState, _: object) -> None:
    """A replica answers: its version has shown that it can."""
    if gang.spec.kind != "serve":
        return
    record = world.workloads[gang.workload_id]
    if record.answered is None or record.answered.revision < gang.revision:
        rollout.has_answered(record, Version(gang.revision, gang.spec, gang.model))
        record.message = None
        lives.move_on(world, record)
        fill(world, record)
    world.troubled[gang.workload_id] = None


def _resizes(world: World, gang: GangState, decision: Resize) -> None:
    """It holds old and new until it says Resized. One that has not said so yet may be told to become smaller still."""
    lives.settle(world, gang)
    old, new = Counter(gang.held), Counter(decision.placement)
    world.ledgers.hold(gang, tuple(sorted((old | new).elements())), world.now)
    gang.placement = decision.placement
    gang.size = size_of(gang.spec, decision.placement)
    lives.set_pace(world, gang)
    lives.expect_end(world, gang)


def _has_resized(world: World, gang: GangState, _: Resized) -> None:
    lives.settle(world, gang)
    gang.resized_at = gang.progress_at = world.now
    world.ledgers.hold(gang, gang.placement or (), world.now)
    lives.expect_end(world, gang)


def _preempted(world: World, gang: GangState, decision: Preempt) -> None:
    _vacates(world, gang, "released", decision.reason)
    gang.beneficiary = decision.beneficiary
    gang.message = decision.why
    if decision.goes_to and all(placed.node in world.nodes for placed in decision.goes_to):
        lives.keep_places(world, gang, decision.goes_to)
    _makes_way(world, gang, decision)
    if decision.reason == "in_queue_rank":
        world.ranked_at = world.now
    if decision.reason not in ("node_lost", "superseded"):
        gang.preemptions += 1
        gang.evicted_at = (*(at for at in gang.evicted_at if at > world.now - HOUR_S), world.now)


def _makes_way(world: World, gang: GangState, decision: Preempt) -> None:
    other = world.gangs.get(decision.beneficiary)
    if other is not None and not other.is_ended():
        world.exchanges.note(Exchange(gang.id, other.id, world.now, decision.reason == "in_queue_rank"))
    elif not decision.beneficiary and decision.reason != "faster_flavor":  # for a node, a new spec or a reservation
        world.exchanges.forget(gang.id)


def _drained(world: World, gang: GangState, _: Drain) -> None:
    _vacates(world, gang, "ended", "drain")
    record = world.workloads[gang.workload_id]
    if not record.cancelled:
        fill(world, record)


def _stopped(world: World, gang: GangState, decision: Stop) -> None:
    _vacates(world, gang, "ended" if decision.reason == "cancelled" else "stopped", decision.reason)
    gang.message = decision.why
    end_children(world, world.workloads[gang.workload_id])


def _vacates(world: World, gang: GangState, leaving: str, reason: str) -> None:
    lives.settle(world, gang)
    gang.leaving = leaving
    gang.vacate_reason = reason
    world.vacating[gang.id] = None
    lives.forget_end(world, gang)


def _requeued(world: World, gang: GangState, _: object) -> None:
    """Back among the waiting, under the newest spec of its workload (a replica: that has answered)."""
    record = world.workloads[gang.workload_id]
    goes_to = lives.give_up_places(world, gang)
    lives.let_go(world, gang, again=not record.cancelled)
    gang.queued_since = world.now
    gang.placement = None
    gang.size = 0
    gang.lost_members = False
    if record.cancelled:
        step(world, gang, "cancel")
        return
    version = rollout.version_of(record, gang)
    if gang.revision != version.revision:
        lives.adopt_version(world, gang, version)
        goes_to = ()
    lives.queue(world, gang)
    if goes_to and not gang.blocked_by:
        lives.promise(world, gang, Nomination(goes_to, (), world.now, moves=True))
    if gang.spec.kind == "serve":
        fill(world, record)


def _set_back(world: World, gang: GangState, entry: object) -> None:
    """Back among the waiting, after a pause that grows with each failure."""
    retry = gang.spec.retry
    world.begin_anew(gang.id)
    lives.give_up_places(world, gang)
    gang.not_before = world.now + min(retry.backoff_s * 2 ** (gang.failures - 1), retry.backoff_max_s)
    _requeued(world, gang, entry)


def _succeeded(world: World, gang: GangState, fact: Finished) -> None:
    lives.let_go(world, gang)
    pace = max(gang.pace(gang.spec.min_size), 1e-9)
    world.history.learn(gang.spec, gang.worked_s, gang.flavor, gang.worked_s / pace)
    gang.message = quoted(fact.message)
    _over(world, gang, fact)


def _ended(world: World, gang: GangState, entry: object) -> None:
    lives.let_go(world, gang)
    _over(world, gang, entry)


def _over(world: World, gang: GangState, _: object) -> None:
    lives.leave_line(world, gang)
    world.lanes.drop(gang, world.now)
    world.begin_anew(gang.id)
    world.troubled.pop(gang.id, None)
    record = world.workloads[gang.workload_id]
    if record.workload.kind == "serve" and not record.cancelled and gang.status is not Status.CANCELLED:
        world.troubled[record.workload.id] = None
        record.message = gang.message
        if record.is_unproven and gang.revision == record.revision:
            record.message = say("rollout_held", message=gang.message or ())
            fill(world, record)
    lives.close(world, record)
    if record.outcome:
        end_children(world, record)


def _passed_over(world: World, gang: GangState, _: object) -> None:
    """A replica that failed stands for none any more: its endpoint has another spec, or was scaled anew."""


Q, L, R, Z, V = Status.QUEUED, Status.LAUNCHING, Status.RUNNING, Status.RESIZING, Status.VACATING

TABLE: dict[tuple[Status, str], Row] = {
    (Q, "launch"): Row(L, _launched),
    (Q, "cancel"): Row(Status.CANCELLED, _over),
    (Q, "give_up"): Row(Status.FAILED, _over),
    (L, "bound"): Row(R, _began),
    (R, "bound"): Row(R, _answers),  # said again after a reconnect
    (R, "resize"): Row(Z, _resizes),
    (Z, "resize"): Row(Z, _resizes),
    (Z, "resized"): Row(R, _has_resized),
    (L, "preempt"): Row(V, _preempted),
    (R, "preempt"): Row(V, _preempted),
    (Z, "preempt"): Row(V, _preempted),
    (L, "drain"): Row(V, _drained),
    (R, "drain"): Row(V, _drained),
    (Z, "drain"): Row(V, _drained),
    (L, "stop"): Row(V, _stopped),
    (R, "stop"): Row(V, _stopped),
    (Z, "stop"): Row(V, _stopped),
    (V, "released"): Row(Q, _requeued),  # preempted, or superseded by a new spec
    (V, "ended"): Row(Status.CANCELLED, _ended),  # cancelled, drained
    (V, "stopped"): Row(Status.FAILED, _ended),  # over its run time, its budget, its deadline
    (L, "succeeded"): Row(Status.FINISHED, _succeeded),
    (R, "succeeded"): Row(Status.FINISHED, _succeeded),
    (Z, "succeeded"): Row(Status.FINISHED, _succeeded),
    (V, "succeeded"): Row(Status.FINISHED, _succeeded),
    (L, "failed"): Row(Status.FAILED, _ended),  # for good: no retry is left
    (R, "failed"): Row(Status.FAILED, _ended),
    (Z, "failed"): Row(Status.FAILED, _ended),
    (V, "failed"): Row(Status.FAILED, _ended),
    (L, "retry"): Row(Q, _set_back),  # failed or lost, and it may try again
    (R, "retry"): Row(Q, _set_back),
    (Z, "retry"): Row(Q, _set_back),
    (V, "retry"): Row(Q, _set_back),
    (Status.FAILED, "pass_over"): Row(Status.CANCELLED, _passed_over),  # a replica, for which another is to stand
}


def fill(world: World, record: WorkloadState) -> None:
    """Make the replicas that are missing; those that are too many and never ran go."""
    if record.cancelled or record.outcome:
        return
    live = [
        gang for gang in world.gangs_of(record) if rollout.counts(gang, record) and not is_moving(gang, world.nodes)
    ]
    newest, proven = rollout.missing(record, live)
    for _ in range(newest):
        lives.new_gang(world, record, record.version)
    for _ in range(proven):
        assert record.answered is not None
        lives.new_gang(world, record, record.answered)
    for gang in rollout.superfluous(record, live):
        live.remove(gang)
        step(world, gang, "cancel")
    if len(live) != record.wanted_replicas or any(gang.revision != record.revision for gang in live):
        world.troubled[record.workload.id] = None
