"""The lives of gangs and workloads, step by step: queued, set aside, tried again, ended; replicas made and replaced.

Called by the facts and decisions in state.py. Decides nothing: the choice was made by whoever said the fact.
"""

from __future__ import annotations

import heapq

from llmsched.core import cron, rollout
from llmsched.core.explain import Reason
from llmsched.core.ledgers import Ledgers
from llmsched.core.lifecycle import Status, after
from llmsched.core.message import Message, Quote, say, workload, workloads
from llmsched.core.records import (
    GangState,
    Version,
    WorkloadState,
    allowed_sizes,
)
from llmsched.core.resources import MILLI
from llmsched.core.workload import Workload, gang_id

STEADY_S = 600.0  # a replica that ran this long has its restarts forgiven


class Lives(Ledgers):
    """Steps that several facts and decisions share."""

    def _put_aside(self, record: WorkloadState) -> None:
        """Out of the state, into the archive, with its gangs."""
        workload = record.workload
        record.known = {name: self.gangs.pop(name) for name in record.gangs}
        del self.workloads[workload.id], self.ended[workload.id]
        self.dependents.pop(workload.id, None)
        for name in workload.after:
            left = [one for one in self.dependents.pop(name, ()) if one != workload.id]
            if left:
                self.dependents[name] = left
        newest, here = self.runs.pop(workload.name)
        if here > 1:
            self.runs[workload.name] = newest, here - 1
        self.archived[workload.user, workload.queue, record.outcome] += 1
        self.archive.put(record)

    def _note(self, fact: object, why: str) -> None:
        self.notes.append(f"{self.now:.3f} ignored {type(fact).__name__}: {why}")

    def _current(self, name: str, attempt: int, fact: object) -> GangState | None:
        gang = self.gangs.get(name)
        if gang is None or gang.attempt != attempt:
            self._note(fact, f"{name} attempt {attempt} is not the present one")
            return None
        return gang

    def _step(self, gang: GangState, event: str, entry: object) -> bool:
        status = after(gang.status, event)
        if status is None:
            self._note(entry, f"{gang.id} is {gang.status.value}")
            return False
        gang.status = status
        return True

    def _become(self, gang: GangState, status: Status) -> None:
        gang.status = status

    def _new_gang(self, record: WorkloadState, version: Version) -> None:
        name = gang_id(record.workload.id, record.next_index)
        spec = version.spec
        submitted = record.submitted_at if spec.kind != "serve" else self.now
        gang = GangState(
            name, spec.id, record.next_index, spec, submitted, version.revision, version.model, queued_since=self.now
        )
        gang.work_left = spec.estimated_runtime_s
        self._expect(gang)
        record.next_index += 1
        record.gangs.append(name)
        self.gangs[name] = gang
        self._queue(gang)

    def _fill(self, record: WorkloadState) -> None:
        """Make the replicas that are missing; those that are too many and never ran go."""
        if record.cancelled or record.outcome:
            return
        live = [gang for gang in self._gangs_of(record) if rollout.counts(gang, record)]
        newest, proven = rollout.missing(record, live)
        for _ in range(newest):
            self._new_gang(record, record.version)
        for _ in range(proven):
            assert record.answered is not None
            self._new_gang(record, record.answered)
        for gang in rollout.superfluous(record, live):
            live.remove(gang)
            self._end(gang, "cancel")
        if len(live) != record.wanted_replicas or any(gang.revision != record.revision for gang in live):
            self.troubled[record.workload.id] = None

    def _move_on(self, record: WorkloadState) -> None:
        """Whoever waits becomes of the version that it is to start as."""
        for gang in self._gangs_of(record):
            version = rollout.version_of(record, gang)
            if gang.status is Status.QUEUED and gang.revision != version.revision:
                self._adopt_version(gang, version)
                self._queue(gang)

    def _proven(self, record: WorkloadState, gang: GangState) -> None:
        """A replica answers: its version has shown that it can."""
        if record.answered is None or record.answered.revision < gang.revision:
            record.answered = Version(gang.revision, gang.spec, gang.model)
            record.message = None
            self._move_on(record)
            self._fill(record)

    def _gangs_of(self, record: WorkloadState) -> list[GangState]:
        return [self.gangs[name] for name in record.gangs]

    def _replace(self, record: WorkloadState, workload: Workload, in_place: bool) -> None:
        old, record.workload = record.workload, workload
        if not record.outcome:
            self.open_work.put(workload)
        self.causes += 1
        record.revision += not in_place
        for name in workload.after:
            self.dependents.setdefault(name, []).append(workload.id)
        if workload.schedule != old.schedule:
            self._hand_schedule_to(record)
        if workload.kind == "serve":
            record.wanted_replicas = min(max(record.wanted_replicas, workload.min_replicas), workload.max_replicas)
        record.message = None
        if in_place and record.answered is not None and record.answered.revision == record.revision:
            record.answered = record.answered._replace(spec=workload)
        self._move_on(record)
        for gang in self._gangs_of(record):
            if gang.status is Status.FAILED and workload.kind == "serve":
                self._become(gang, Status.CANCELLED)  # it failed under the old spec: the new one gets its chance
            elif in_place and gang.revision == record.revision and not gang.is_ended():
                self._respecify(gang, workload)
            elif gang.is_active():
                self.troubled[gang.id] = None
        if workload.kind == "serve":
            self._fill(record)

    def _hand_schedule_to(self, record: WorkloadState) -> None:
        """The newest run of a name carries the schedule, if there is one: nothing else is due any more."""
        workload = record.workload
        for name in [n for n in self.scheduled if self.workloads[n].workload.name == workload.name]:
            self._drop_schedule(self.workloads[name])
        if workload.schedule:
            self.scheduled[workload.id] = None
            record.next_run_at = next_due_of(workload.schedule, self.now)

    def _drop_schedule(self, record: WorkloadState) -> bool:
        record.next_run_at = None
        return self.scheduled.pop(record.workload.id, record) is None

    def _adopt_version(self, gang: GangState, version: Version) -> None:
        self._unpromise(gang)
        self.waiting.discard(gang)
        gang.revision, _, gang.model = version
        self._respecify(gang, version.spec)
        gang.shape = None
        gang.restarts = gang.failures = 0
        gang.not_before = 0.0
        gang.work_left = gang.spec.estimated_runtime_s
        gang.measured = False
        self._expect(gang)

    def _respecify(self, gang: GangState, spec: Workload) -> None:
        """The gang goes by another spec; a size that its user asked for holds as long as the spec allows it."""
        gang.spec = spec
        if gang.wanted_size not in allowed_sizes(spec):
            gang.wanted_size = None

    def _expect(self, gang: GangState) -> None:
        """Say how much work is left, where nobody declared it: as history has it. Its own progress knows better."""
        if gang.measured or gang.spec.estimated_runtime_s is not None or gang.spec.kind == "serve":
            return
        guess = self.history.plan(gang.spec)
        gang.work_left = max(guess.seconds - gang.worked_s, 0.0) if guess else None
        gang.basis = guess.basis if guess else None

    def _queue(self, gang: GangState) -> None:
        """Put a QUEUED gang among the waiting, or aside while it may not start yet."""
        spec, record = gang.spec, self.workloads[gang.workload_id]
        waits_for = any(self._outcome_of(record, name) != "succeeded" for name in spec.after)
        if waits_for:
            self._park(gang, "dependency")
            if any(self._outcome_of(record, name) in ("failed", "cancelled") for name in spec.after):
                self.troubled[gang.id] = None
        elif spec.schedule and not record.is_due:
            self._park(gang, "schedule")
        elif gang.not_before > self.now:
            self._park(gang, "backoff")
            heapq.heappush(self._timers, (gang.not_before, gang.id))
        else:
            self._enqueue(gang)

    def _park(self, gang: GangState, why: str) -> None:
        gang.blocked_by = why
        self.parked[gang.id] = None
        if why == "backoff":
            failed = say("backoff.failed", message=gang.message) if gang.message else say("backoff.silent")
            gang.own_reason = Reason("backoff", failed, eta=gang.not_before, eta_basis=say("eta.pause"))
        elif why == "schedule":
            due = self.workloads[gang.workload_id].next_run_at
            its_time = say("dependency.schedule", schedule=Quote(gang.spec.schedule or ""))
            gang.own_reason = Reason("dependency", its_time, eta=due, eta_basis=say("eta.schedule"))
        else:
            record = self.workloads[gang.workload_id]
            names = [name for name in gang.spec.after if self._outcome_of(record, name) != "succeeded"]
            awaited = say("dependency.after", who=workloads(names), first=workload(names[0]))
            gang.own_reason = Reason("dependency", awaited, (("dependencies", len(names)),))

    def _outcome_of(self, record: WorkloadState, dependency: str) -> str:
        known = self.workloads.get(dependency)
        return known.outcome if known else "succeeded" if dependency in record.met else ""

    def _drop_parked(self, gang: GangState) -> None:
        self.parked.pop(gang.id, None)
        gang.blocked_by = ""

    def _enqueue(self, gang: GangState) -> None:
        if gang.blocked_by:
            gang.queued_since = self.now  # it could not have started before
        self._drop_parked(gang)
        gang.own_reason = None
        self.waiting.add(gang)

    def _requeue(self, gang: GangState) -> None:
        """Back among the waiting, under the newest spec of its workload (a replica: that has answered)."""
        record = self.workloads[gang.workload_id]
        gang.queued_since = self.now
        gang.placement = None
        gang.size = 0
        gang.lost_members = False
        if record.cancelled:
            self._end(gang, "cancel")
            return
        version = rollout.version_of(record, gang)
        if gang.revision != version.revision:
            self._adopt_version(gang, version)
        self._queue(gang)
        if gang.spec.kind == "serve":
            self._fill(record)

    def _set_pace(self, gang: GangState) -> None:
        """Say how fast it is where it was placed: as its option says, else as earlier runs on that flavor were."""
        first = (gang.placement or ())[0]
        node = self.nodes.get(first.node)
        gang.option, gang.flavor = first.option, node.node.flavor if node else None
        gang.relative_speed = self.history.relative_speed(gang.spec, gang.option, gang.flavor)
        gang.faster = self.history.faster(gang.spec, gang.size, gang.option, gang.pace(gang.size))
        if gang.faster:
            self.movable[gang.id] = None
        else:
            self.movable.pop(gang.id, None)

    def _settle(self, gang: GangState) -> None:
        """Count the work done since the last change of speed."""
        if gang.started_at is not None and gang.status is not Status.QUEUED:
            done = (self.now - gang.progress_at) * gang.pace(gang.size or gang.spec.min_size)
            gang.worked_s += done
            if gang.work_left is not None:
                gang.work_left = max(0.0, gang.work_left - done)
        gang.progress_at = self.now

    def _let_go(self, gang: GangState) -> None:
        """The attempt is over: count its service and free everything."""
        self._settle(gang)
        if gang.started_at is not None:
            gang.served_s += self.now - gang.started_at
            gang.served_gpu_s += (self.now - gang.started_at) * gang.gpus_milli() / MILLI
        self._hold(gang, ())
        self._forget_end(gang)
        gang.stalled = ""
        gang.excess, gang.excess_since, gang.excess_s = (), None, 0.0
        for index in (
            self.holding,
            self.vacating,
            self.elastic,
            self.movable,
            self.timed,
            self.troubled,
            self.exceeding,
        ):
            index.pop(gang.id, None)

    def _ended_badly(self, gang: GangState, event: str, message: Message | None, by_others: bool = False) -> None:
        """An attempt failed or was lost: again after a pause, or for good."""
        steady = gang.started_at is not None and self.now - gang.started_at >= STEADY_S
        if gang.spec.kind == "serve" and steady:
            gang.restarts = 0
        if message:
            gang.message = message
        leaving = gang.leaving if gang.status is Status.VACATING else ""
        self._let_go(gang)
        if leaving in ("ended", "stopped"):
            self._end(gang, leaving)
        elif leaving == "released" and event not in ("error", "input"):
            gang.status = Status.QUEUED
            self._requeue(gang)  # it was leaving anyway: not its fault
        else:
            self._retry(gang, event, message, by_others)

    def _retry(self, gang: GangState, event: str, message: Message | None, by_others: bool = False) -> None:
        retry = gang.spec.retry
        record = self.workloads[gang.workload_id]
        spends = event != "no-capacity" and not by_others
        gang.failures += 1
        may_retry = by_others or event in retry.on_events
        if not record.cancelled and (not may_retry or (spends and gang.restarts >= retry.max_restarts)):
            gang.message = message or say("attempt_failed")
            if gang.attempt > 1:
                gang.message = say("failed_after", message=gang.message, attempts=gang.attempt)
            gang.status = Status.RUNNING  # QUEUED has no "failed": it is the attempt that failed
            self._end(gang, "failed")
            return
        gang.restarts += spends
        pause = min(retry.backoff_s * 2 ** (gang.failures - 1), retry.backoff_max_s)
        gang.not_before = self.now + pause
        gang.status = Status.QUEUED
        self._requeue(gang)

    def _end(self, gang: GangState, event: str) -> None:
        status = after(gang.status, event)
        assert status is not None, (gang.id, gang.status, event)
        gang.status = status
        self._unpromise(gang)
        self.waiting.discard(gang)
        self._drop_parked(gang)
        self.troubled.pop(gang.id, None)
        gang.own_reason = None
        record = self.workloads[gang.workload_id]
        if record.workload.kind == "serve" and not record.cancelled and status is not Status.CANCELLED:
            self.troubled[record.workload.id] = None
            record.message = gang.message
            if record.is_unproven and gang.revision == record.revision:
                record.message = say("rollout_held", message=gang.message or ())
                self._fill(record)
        self._maybe_ended(record)

    def _maybe_ended(self, record: WorkloadState) -> None:
        if record.outcome:
            return
        gangs = self._gangs_of(record)
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
        record.finished_at = self.now
        self.ended[record.workload.id] = None
        name = record.workload.id
        self.serving.pop(name, None)
        self.open_work.drop(name)
        self.troubled.pop(name, None)
        if outcome == "cancelled":
            self._drop_schedule(record)
        for dependent in self.dependents.get(name, ()):
            for gang in self._gangs_of(self.workloads[dependent]):
                if gang.status is Status.QUEUED and gang.blocked_by == "dependency":
                    self._queue(gang)


def next_due_of(schedule: str, after_: float) -> float | None:
    try:
        return cron.next_due(schedule, after_)
    except ValueError:  # a fact never raises; `check` refuses such a schedule
        return None
