"""The world as the journal tells it: `State.apply(entry)` is the only way anything changes.

A fact never raises: one that is stale (an older attempt) or impossible in the present status is noted in `notes` and
ignored. Start reading at `_HANDLERS`. Records are in records.py; the ledgers kept in step here are the capacity of
nodes (capacity.py), quota (quota.py) and the classes of waiting gangs (waiting.py). Decides nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from math import inf, log
from typing import Any

from llmsched.core import cron, decisions, facts
from llmsched.core.capacity import Capacity, NodeState
from llmsched.core.configuration import Configuration
from llmsched.core.decisions import Decision
from llmsched.core.explain import Reason
from llmsched.core.facts import Fact
from llmsched.core.lifecycle import Status, after
from llmsched.core.quota import QuotaTree
from llmsched.core.records import (
    GangState,
    HoldingGroup,
    Nomination,
    QueueUse,
    WorkloadState,
    amount_of,
    expected_end,
    gpus_of,
    size_of,
    speed,
)
from llmsched.core.resources import MILLI
from llmsched.core.waiting import Waiting
from llmsched.core.workload import Placement, Workload, gang_id

__all__ = ["GangState", "NodeState", "State", "Status", "WorkloadState"]

HOUR_S = 3600.0
NOTES_KEPT = 200
RATIOS_KEPT = 256
STEADY_S = 600.0  # a replica that ran this long has its restarts forgiven


class State:
    def __init__(self, configuration: Configuration | None = None) -> None:
        self.now = 0.0
        self.configuration = configuration or Configuration()
        self.capacity = Capacity()
        self.nodes: dict[str, NodeState] = self.capacity.by_id
        self.workloads: dict[str, WorkloadState] = {}
        self.gangs: dict[str, GangState] = {}
        self.publications: dict[str, dict[str, facts.Published]] = {}
        self.requested: tuple[tuple[str, int], ...] = ()  # last RequestCapacity
        self.releasing: dict[str, float] = {}  # nodes asked to go
        # What follows is derived from the above and kept in step; none of it is part of the digest.
        self.waiting = Waiting()
        self.holding: dict[str, None] = {}  # gangs that hold something, oldest launch first
        self.nominated: dict[str, None] = {}
        self.estimate_ratios: deque[float] = deque(maxlen=RATIOS_KEPT)  # real run time / estimate, of who succeeded
        self.vacating: dict[str, None] = {}
        self.elastic: dict[str, None] = {}  # of the holding, those whose size may vary
        self.serving: dict[str, None] = {}  # serve workloads that have not ended
        self.timed: dict[str, None] = {}  # active gangs with a run time, deadline or budget
        self.scheduled: dict[str, None] = {}  # workloads with a schedule
        self.troubled: dict[str, None] = {}  # gangs the `end` stage must look at
        self.parked: dict[str, None] = {}
        self.groups: dict[tuple[str, int, bool], HoldingGroup] = {}  # by queue, priority, preemptible
        self.ends: list[tuple[float, str]] = []  # (expected end, gang) of the holding, soonest first
        self.dependents: dict[str, list[str]] = {}
        self.use: dict[str, QueueUse] = {}
        self.quota = QuotaTree(self.configuration, {})
        self.version = 0  # raised by everything but the passing of time
        self.freed = 0  # raised whenever something may have become possible
        self.taken = 0  # raised whenever somebody got something that might be taken back
        self.notes: deque[str] = deque(maxlen=NOTES_KEPT)
        self.memo: dict[str, Any] = {}  # of the scheduler: what the last pass found
        self._end_of: dict[str, float] = {}
        self._timers: list[tuple[float, str]] = []

    # ------------------------------------------------------------------ the fold

    def apply(self, entry: Fact | Decision) -> None:
        """Fold one entry of the journal. Never raises for what a fact says."""
        at = getattr(entry, "at", None)
        if at is not None and at > self.now:
            self._advance(at)
        _HANDLERS[type(entry)](self, entry)
        if type(entry) is not facts.Tick:
            self.version += 1

    def _advance(self, at: float) -> None:
        self.now = at
        while self._timers and self._timers[0][0] <= at:
            _, gang_id_ = heapq.heappop(self._timers)
            gang = self.gangs[gang_id_]
            if gang.status is Status.QUEUED and gang.blocked_by == "backoff" and gang.not_before <= at:
                self._enqueue(gang)
                self.version += 1

    def _note(self, fact: object, why: str) -> None:
        self.notes.append(f"{self.now:.3f} ignored {type(fact).__name__}: {why}")

    def digest(self) -> str:
        """SHA-256 of everything the journal determines, the same in every process."""
        configuration = self.configuration
        parts: list[object] = [
            self.now,
            configuration,
            [
                (n.node, n.gpus, n.cpus, n.memory, n.whole, n.promised, sorted(n.shares.items()), n.foreign, n.draining)
                + (n.deadline, sorted((k, v) for k, v in n.custom.items() if v))
                for _, n in sorted(self.nodes.items())
            ],
            [
                tuple(
                    getattr(g, name) if name not in ("adapters", "adapter_errors") else sorted(getattr(g, name).items())
                    for name in _GANG_FIELDS
                )
                for _, g in sorted(self.gangs.items())
            ],
            [
                tuple(getattr(w, name) if name != "metrics" else sorted(w.metrics.items()) for name in _WORKLOAD_FIELDS)
                for _, w in sorted(self.workloads.items())
            ],
            [(t, sorted(p.items())) for t, p in sorted(self.publications.items())],
            self.requested,
            sorted(self.releasing.items()),
            [
                (name, [(key, branch.used) for key, branch in sorted(branches.items())])
                for name, branches in sorted(self.quota.rows.items())
            ],
            sorted(
                (name, use.gpus_milli, use.cpus_milli, use.memory_bytes, use.fixed_milli)
                for name, use in self.use.items()
                if use.gpus_milli or use.cpus_milli or use.memory_bytes
            ),
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    # ------------------------------------------------------------------ facts

    def _tick(self, fact: facts.Tick) -> None:
        pass

    def _configured(self, fact: facts.Configured) -> None:
        self.configuration = fact.configuration
        self._rebuild_quota()

    def _rebuild_quota(self) -> None:
        cluster: dict[str, int] = {}
        for node in self.nodes.values():
            name = node.node.flavor or ""
            cluster[name] = cluster.get(name, 0) + node.total_gpus * MILLI
        self.quota = QuotaTree(self.configuration, cluster)
        for name in (*self.holding, *self.nominated):
            gang = self.gangs[name]
            held = gang.held or (gang.nomination.placement if gang.nomination else ())
            for flavor, amount in self._gpus_by_flavor(gang, held).items():
                self.quota.charge(gang.spec.queue, flavor, amount)
        self.freed += 1

    def _submitted(self, fact: facts.Submitted) -> None:
        workload = fact.workload
        known = self.workloads.get(workload.id)
        if known is not None:
            if fact.replaces and not known.outcome and not known.cancelled:
                self._replace(known, workload)
            else:
                self._note(fact, f"{workload.id} is known already")
            return
        record = WorkloadState(workload, fact.at, [], self.gangs, last_run=workload.run)
        self.workloads[workload.id] = record
        if workload.schedule:
            self.scheduled[workload.id] = None
            record.next_run_at = _next_due(workload.schedule, fact.at)
        for name in workload.after:
            self.dependents.setdefault(name, []).append(workload.id)
        if workload.kind == "serve":
            self.serving[workload.id] = None
            record.wanted_replicas = workload.min_replicas
            self._fill(record)
        else:
            self._new_gang(record)

    def _new_gang(self, record: WorkloadState) -> None:
        name = gang_id(record.workload.id, record.next_index)
        spec = record.workload
        submitted = record.submitted_at if spec.kind != "serve" else self.now
        gang = GangState(name, spec.id, record.next_index, spec, submitted, record.revision, queued_since=self.now)
        gang.work_left = spec.estimated_runtime_s
        record.next_index += 1
        record.gangs.append(name)
        self.gangs[name] = gang
        self._queue(gang)

    def _fill(self, record: WorkloadState) -> None:
        """Make the replicas that are wanted. While a new spec rolls out, `max_surge` more than wanted may live."""
        if record.cancelled or record.outcome:
            return
        live = [gang for gang in self._gangs_of(record) if self._counts(gang)]
        current = sum(gang.revision == record.revision for gang in live)
        surge = record.workload.max_surge if current < len(live) else 0
        for _ in range(min(record.wanted_replicas - current, record.wanted_replicas + surge - len(live))):
            self._new_gang(record)
        for gang in sorted(live, key=lambda g: -g.index):  # too many: those that never ran go first, newest first
            if len(live) <= record.wanted_replicas + surge:
                break
            if gang.status is Status.QUEUED:
                live.remove(gang)
                self._end(gang, "cancel")
        if len(live) != record.wanted_replicas or current < len(live):
            self.troubled[record.workload.id] = None

    @staticmethod
    def _counts(gang: GangState) -> bool:
        """Whether a replica counts as one of those wanted. A failed one does: a replacement would fail likewise."""
        if gang.status in (Status.CANCELLED, Status.FINISHED):
            return False
        return not (gang.status is Status.VACATING and gang.leaving == "ended")

    def _gangs_of(self, record: WorkloadState) -> list[GangState]:
        return [self.gangs[name] for name in record.gangs]

    def _replace(self, record: WorkloadState, workload: Workload) -> None:
        old, record.workload = record.workload, workload
        record.revision += 1
        for name in workload.after:
            self.dependents.setdefault(name, []).append(workload.id)
        if workload.schedule != old.schedule:
            self.scheduled.pop(workload.id, None)
            record.next_run_at = None
            if workload.schedule:
                self.scheduled[workload.id] = None
                record.next_run_at = _next_due(workload.schedule, self.now)
        if workload.kind == "serve":
            record.wanted_replicas = min(max(record.wanted_replicas, workload.min_replicas), workload.max_replicas)
        for gang in self._gangs_of(record):
            if gang.status is Status.QUEUED:
                self._adopt_spec(gang, record)
                self._queue(gang)
            elif gang.status is Status.FAILED and workload.kind == "serve":
                self._become(gang, Status.CANCELLED)  # it failed under the old spec: the new one gets its chance
            elif gang.is_active():
                self.troubled[gang.id] = None
        if workload.kind == "serve":
            self._fill(record)

    def _adopt_spec(self, gang: GangState, record: WorkloadState) -> None:
        self._unpromise(gang)
        self.waiting.discard(gang)
        gang.spec = record.workload
        gang.revision = record.revision
        gang.shape = None
        gang.restarts = gang.failures = 0
        gang.not_before = 0.0
        gang.work_left = record.workload.estimated_runtime_s

    def _cancelled(self, fact: facts.Cancelled) -> None:
        record = self.workloads.get(fact.workload)
        if record is None or record.outcome:
            self._note(fact, f"{fact.workload} is unknown or has ended")
            return
        record.cancelled = True
        record.message = f"cancelled by {fact.by}" if fact.by else "cancelled"
        self.scheduled.pop(fact.workload, None)
        for gang in self._gangs_of(record):
            if gang.status is Status.QUEUED:
                self._end(gang, "cancel")
            elif gang.is_active():
                self.troubled[gang.id] = None
            elif gang.status is Status.VACATING and gang.leaving == "released":
                gang.leaving = "ended"
        self._maybe_ended(record)

    def _scaled(self, fact: facts.Scaled) -> None:
        record = self.workloads.get(fact.workload)
        if record is None or record.outcome or record.cancelled:
            self._note(fact, f"{fact.workload} is unknown or has ended")
            return
        if record.workload.kind == "serve":
            record.wanted_replicas = fact.size
            record.scaled_by_user = True
            for gang in self._gangs_of(record):
                if gang.status is Status.FAILED:
                    self._become(gang, Status.CANCELLED)
            self._fill(record)
            return
        for gang in self._gangs_of(record):
            gang.wanted_size = fact.size
            if gang.id in self.waiting:
                self.waiting.discard(gang)
                gang.shape = None
                self.waiting.add(gang)
        self.freed += 1

    def _node_joined(self, fact: facts.NodeJoined) -> None:
        known = self.nodes.get(fact.node.id)
        if known is not None:
            if known.node == fact.node:
                if known.draining:
                    known.draining, known.deadline = False, None
                    self.capacity.reindex(known)
                    self.freed += 1
                return
            self._node_lost(facts.NodeLost(fact.at, fact.node.id))  # it came back as something else
        node = self.capacity.add(fact.node)
        node.idle_since = self.now
        self.releasing.pop(fact.node.id, None)
        self._rebuild_quota()

    def _node_lost(self, fact: facts.NodeLost) -> None:
        node = self.nodes.get(fact.node)
        if node is None:
            self._note(fact, f"node {fact.node} is unknown")
            return
        for name in [*self.nominated]:
            gang = self.gangs[name]
            if gang.nomination and any(placed.node == fact.node for placed in gang.nomination.placement):
                self._unpromise(gang)
        for name in [*self.holding]:
            gang = self.gangs[name]
            left = tuple(placed for placed in gang.held if placed.node != fact.node)
            if len(left) == len(gang.held):
                continue
            self._hold(gang, left)
            gang.message = f"node {node.node.name or fact.node} was lost"
            if not left:
                self._ended_badly(gang, "interruption", gang.message)
            elif gang.status is not Status.VACATING:
                gang.lost_members = True
                self.troubled[name] = None
        self.capacity.remove(fact.node)
        self.releasing.pop(fact.node, None)
        self._rebuild_quota()

    def _node_draining(self, fact: facts.NodeDraining) -> None:
        node = self.nodes.get(fact.node)
        if node is None:
            self._note(fact, f"node {fact.node} is unknown")
            return
        node.draining, node.deadline = True, fact.deadline
        self.capacity.reindex(node)
        for name in [*self.nominated]:
            gang = self.gangs[name]
            if gang.nomination and any(placed.node == fact.node for placed in gang.nomination.placement):
                self._unpromise(gang)
        for name in self.holding:
            gang = self.gangs[name]
            if gang.is_active() and any(placed.node == fact.node for placed in gang.held):
                self.troubled[name] = None

    def _foreign_use(self, fact: facts.ForeignUse) -> None:
        node = self.nodes.get(fact.node)
        if node is None:
            self._note(fact, f"node {fact.node} is unknown")
            return
        node.foreign = fact.used
        self.capacity.reindex(node)
        self.freed += 1

    def _bound(self, fact: facts.Bound) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not self._step(gang, "bound", fact):
            return
        if gang.started_at is None:
            gang.started_at = gang.progress_at = self.now
            gang.failures = 0
            gang.message = ""
            self._expect_end(gang)
        if gang.spec.kind == "serve":
            self.troubled[gang.workload_id] = None

    def _launch_failed(self, fact: facts.LaunchFailed) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or gang.status not in (Status.LAUNCHING, Status.VACATING):
            self._note(fact, "not launching")
            return
        if gang.status is Status.VACATING:
            self._released(facts.Released(fact.at, fact.gang, fact.attempt))
            return
        self._ended_badly(gang, fact.event, fact.message)

    def _resized(self, fact: facts.Resized) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not self._step(gang, "resized", fact):
            return
        self._settle(gang)
        gang.resized_at = gang.progress_at = self.now
        self._hold(gang, tuple(placed for placed in gang.placement or () if placed.node in self.nodes))
        self._expect_end(gang)

    def _finished(self, fact: facts.Finished) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return
        record = self.workloads[gang.workload_id]
        if fact.artifact is not None:
            record.artifact = fact.artifact
        record.metrics.update(fact.metrics)
        if fact.outcome == "succeeded":
            self._let_go(gang)
            estimate = gang.spec.estimated_runtime_s
            if estimate and not gang.spec.is_elastic():
                self.estimate_ratios.append(gang.served_s / estimate)
            gang.message = fact.message
            self._end(gang, "succeeded")
        else:
            self._ended_badly(gang, fact.event, fact.message)

    def _released(self, fact: facts.Released) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or gang.status is not Status.VACATING:
            self._note(fact, "not vacating")
            return
        self._let_go(gang)
        if gang.leaving == "released":
            gang.status = Status.QUEUED
            if gang.lost_members:
                self._retry(gang, "interruption", gang.message)
            else:
                self._requeue(gang)
        else:
            self._end(gang, gang.leaving)

    def _lost(self, fact: facts.Lost) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return
        self._ended_badly(gang, "interruption", fact.message or "lost without a receipt")

    def _checkpoint(self, fact: facts.CheckpointPublished) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return
        gang.checkpoint_at = fact.at
        gang.fraction = fact.fraction

    def _estimated(self, fact: facts.Estimated) -> None:
        gang = self.gangs.get(fact.gang)
        if gang is None or gang.is_ended():
            self._note(fact, f"{fact.gang} is unknown or has ended")
            return
        gang.work_left = max(0.0, fact.remaining_s) * (speed(gang.spec, gang.size) if gang.size else 1.0)
        gang.progress_at = self.now
        if gang.is_active():
            self._expect_end(gang)
            self.freed += 1
        if gang.id in self.waiting:  # its place in line may depend on it
            self.waiting.discard(gang)
            self.waiting.add(gang)

    def _load_observed(self, fact: facts.LoadObserved) -> None:
        record = self.workloads.get(fact.workload)
        if record is None or record.outcome:
            self._note(fact, f"{fact.workload} is unknown or has ended")
            return
        record.load = (fact.ongoing, fact.queued, fact.at)

    def _published(self, fact: facts.Published) -> None:
        self.publications.setdefault(fact.target, {})[fact.name] = fact
        record = self.workloads.get(fact.target)
        if record is None:
            return
        if fact.kind == "model":  # a new model is a new revision: replicas are replaced one by one
            record.revision += 1
            for gang in self._gangs_of(record):
                if gang.status is Status.QUEUED:
                    gang.revision = record.revision
            self._fill(record)
        self.troubled[fact.target] = None

    def _adapter_loaded(self, fact: facts.AdapterLoaded) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_active():
            self._note(fact, "no attempt is open")
            return
        gang.adapters[fact.name] = fact.uri
        if fact.message:
            gang.adapter_errors[fact.name] = fact.message
        else:
            gang.adapter_errors.pop(fact.name, None)

    # ------------------------------------------------------------------ decisions

    def _launch(self, decision: decisions.Launch) -> None:
        gang = self.gangs[decision.gang]
        if not self._step(gang, "launch", decision):
            return
        self._unpromise(gang)
        self.waiting.discard(gang)
        self._drop_parked(gang)
        gang.attempt = decision.attempt
        gang.placement = decision.placement
        gang.size = size_of(gang.spec, decision.placement)
        gang.launched_at = gang.progress_at = self.now
        gang.started_at = gang.resized_at = gang.checkpoint_at = None
        gang.lost_members = False
        gang.leaving = gang.vacate_reason = gang.beneficiary = ""
        gang.adapters = {}
        gang.adapter_errors = {}
        gang.own_reason = None
        self.holding[gang.id] = None
        if gang.spec.is_elastic() or gang.wanted_size is not None:
            self.elastic[gang.id] = None
        if gang.spec.max_runtime_s is not None or gang.spec.deadline is not None or gang.spec.budget_gpu_s is not None:
            self.timed[gang.id] = None
        self._hold(gang, decision.placement)
        self._expect_end(gang)
        self.taken += 1

    def _nominate(self, decision: decisions.Nominate) -> None:
        gang = self.gangs[decision.gang]
        self._unpromise(gang)
        gang.nomination = Nomination(decision.placement, decision.victims, self.now)
        self.nominated[gang.id] = None
        self._change(gang, decision.placement, 1, promise=True)

    def _withdraw(self, decision: decisions.Withdraw) -> None:
        self._unpromise(self.gangs[decision.gang])

    def _unpromise(self, gang: GangState) -> None:
        if gang.nomination is not None:
            self._change(gang, gang.nomination.placement, -1, promise=True)
            gang.nomination = None
            del self.nominated[gang.id]
            self.freed += 1

    def _resize(self, decision: decisions.Resize) -> None:
        gang = self.gangs[decision.gang]
        if gang.attempt != decision.attempt or not self._step(gang, "resize", decision):
            return
        self._settle(gang)
        old, new = Counter(gang.held), Counter(decision.placement)
        self._hold(gang, tuple(sorted((old | new).elements())))
        gang.placement = decision.placement
        gang.size = size_of(gang.spec, decision.placement)
        self._expect_end(gang)

    def _preempt(self, decision: decisions.Preempt) -> None:
        gang = self.gangs[decision.gang]
        if self._vacate(gang, decision, "released", decision.reason):
            gang.beneficiary = decision.beneficiary
            gang.message = decision.why
            if decision.reason not in ("node_lost", "superseded"):
                gang.preemptions += 1
                gang.evicted_at = (*(at for at in gang.evicted_at if at > self.now - HOUR_S), self.now)

    def _drain(self, decision: decisions.Drain) -> None:
        gang = self.gangs[decision.gang]
        if self._vacate(gang, decision, "ended", "drain"):
            record = self.workloads[gang.workload_id]
            if not record.cancelled:
                self._fill(record)

    def _stop(self, decision: decisions.Stop) -> None:
        gang = self.gangs[decision.gang]
        self._vacate(gang, decision, "ended" if decision.reason == "cancelled" else "stopped", decision.reason)
        gang.message = decision.why

    def _vacate(
        self, gang: GangState, decision: decisions.Preempt | decisions.Drain | decisions.Stop, leaving: str, reason: str
    ) -> bool:
        if gang.attempt != decision.attempt or not self._step(gang, "vacate", decision):
            return False
        self._settle(gang)
        gang.leaving = leaving
        gang.vacate_reason = reason
        self.vacating[gang.id] = None
        self._forget_end(gang)
        return True

    def _scale(self, decision: decisions.Scale) -> None:
        record = self.workloads[decision.workload]
        record.memory = decision.memory
        if record.wanted_replicas != decision.replicas:
            record.wanted_replicas = decision.replicas
            self._fill(record)

    def _load_adapter(self, decision: decisions.LoadAdapter) -> None:
        gang = self.gangs[decision.gang]
        gang.adapters[decision.name] = decision.uri

    def _request_capacity(self, decision: decisions.RequestCapacity) -> None:
        self.requested = decision.counts

    def _release_node(self, decision: decisions.ReleaseNode) -> None:
        node = self.nodes.get(decision.node)
        if node is not None:
            self.releasing[decision.node] = self.now
            node.draining = True
            self.capacity.reindex(node)

    def _run_again(self, decision: decisions.RunAgain) -> None:
        record = self.workloads[decision.workload]
        schedule = record.workload.schedule
        record.next_run_at = _next_due(schedule, self.now) if schedule else None
        if decision.run <= record.last_run:
            return  # skipped: the run before has not ended
        record.last_run = decision.run
        name = record.workload.name
        run = replace(record.workload, id=f"{name}@{decision.run}", run=decision.run, schedule=None, after=())
        if run.id not in self.workloads:
            self._submitted(facts.Submitted(self.now, run))

    def _give_up(self, decision: decisions.GiveUp) -> None:
        gang = self.gangs[decision.gang]
        gang.message = decision.why
        if gang.status is Status.QUEUED:
            self._end(gang, "give_up")

    # ------------------------------------------------------------------ steps they share

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

    def _queue(self, gang: GangState) -> None:
        """Put a QUEUED gang among the waiting, or aside while it may not start yet."""
        spec = gang.spec
        waits_for = any(
            (known := self.workloads.get(name)) is None or known.outcome != "succeeded" for name in spec.after
        )
        if waits_for:
            self._park(gang, "dependency")
            if any((known := self.workloads.get(n)) and known.outcome in ("failed", "cancelled") for n in spec.after):
                self.troubled[gang.id] = None
        elif gang.not_before > self.now:
            self._park(gang, "backoff")
            heapq.heappush(self._timers, (gang.not_before, gang.id))
        else:
            self._enqueue(gang)

    def _park(self, gang: GangState, why: str) -> None:
        gang.blocked_by = why
        self.parked[gang.id] = None
        if why == "backoff":
            what = gang.message or "its last attempt failed"
            gang.own_reason = Reason(
                "backoff", f"tries again after a pause: {what}", next_change="nothing to do", eta=gang.not_before,
                eta_basis="end of the pause",
            )  # fmt: skip
        else:
            names = [n for n in gang.spec.after if self._outcome_of(n) != "succeeded"]
            gang.own_reason = Reason(
                "dependency", f"waits for {', '.join(names)} to succeed", (("dependencies", len(names)),),
                f"{names[0]} succeeds",
            )  # fmt: skip

    def _outcome_of(self, workload: str) -> str:
        record = self.workloads.get(workload)
        return record.outcome if record else ""

    def _drop_parked(self, gang: GangState) -> None:
        self.parked.pop(gang.id, None)
        gang.blocked_by = ""

    def _enqueue(self, gang: GangState) -> None:
        self._drop_parked(gang)
        gang.own_reason = None
        self.waiting.add(gang)

    def _requeue(self, gang: GangState) -> None:
        """Back among the waiting, under the newest spec of its workload."""
        record = self.workloads[gang.workload_id]
        gang.queued_since = self.now
        gang.placement = None
        gang.size = 0
        gang.lost_members = False
        if record.cancelled:
            self._end(gang, "cancel")
            return
        if gang.revision != record.revision:
            self._adopt_spec(gang, record)
        self._queue(gang)
        if gang.spec.kind == "serve":
            self._fill(record)

    def _settle(self, gang: GangState) -> None:
        """Count the work done since the last change of speed."""
        if gang.work_left is not None and gang.started_at is not None and gang.status is not Status.QUEUED:
            done = (self.now - gang.progress_at) * speed(gang.spec, gang.size or gang.spec.min_size)
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
        for index in (self.holding, self.vacating, self.elastic, self.timed, self.troubled):
            index.pop(gang.id, None)

    def _ended_badly(self, gang: GangState, event: str, message: str) -> None:
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
            self._retry(gang, event, message)

    def _retry(self, gang: GangState, event: str, message: str) -> None:
        retry = gang.spec.retry
        record = self.workloads[gang.workload_id]
        spends = event != "no-capacity"
        gang.failures += 1
        if not record.cancelled and (event not in retry.on_events or (spends and gang.restarts >= retry.max_restarts)):
            tries = f" (after {gang.attempt} attempts)" if gang.attempt > 1 else ""
            gang.message = (message or "the attempt failed") + tries
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
        name = record.workload.id
        self.serving.pop(name, None)
        self.troubled.pop(name, None)
        if outcome != "succeeded":
            self.scheduled.pop(name, None)
        for dependent in self.dependents.get(name, ()):
            for gang in self._gangs_of(self.workloads[dependent]):
                if gang.status is Status.QUEUED and gang.blocked_by == "dependency":
                    self._queue(gang)

    # ------------------------------------------------------------------ ledgers

    def _expect_end(self, gang: GangState) -> None:
        self._forget_end(gang)
        end = expected_end(gang)
        if end < inf:
            self._end_of[gang.id] = end
            insort(self.ends, (end, gang.id))

    def _forget_end(self, gang: GangState) -> None:
        end = self._end_of.pop(gang.id, None)
        if end is not None:
            del self.ends[bisect_left(self.ends, (end, gang.id))]

    def _hold(self, gang: GangState, new: Placement) -> None:
        """Make the gang hold exactly `new` on nodes and in quota."""
        spec = gang.spec
        self._account(spec.queue)
        group = self.groups.setdefault((spec.queue, spec.priority, spec.preemptible), HoldingGroup())
        group.gpus_milli += gpus_of(spec, new) - gpus_of(spec, gang.held)
        if new:
            group.gangs[gang.id] = None
        else:
            group.gangs.pop(gang.id, None)
        if gang.held:
            self._change(gang, gang.held, -1)
            for placed in gang.held:
                self.nodes[placed.node].idle_since = self.now
            self.freed += 1
        gang.held = new
        if new:
            self._change(gang, new, 1)

    def _account(self, queue: str) -> None:
        """Bring a queue's decayed past use up to now, before what it holds changes."""
        half_life = self.configuration.scheduling.usage_half_life_s
        use = self.use.setdefault(queue, QueueUse(decayed_at=self.now))
        if half_life > 0 and use.decayed_at < self.now:
            factor = 0.5 ** ((self.now - use.decayed_at) / half_life)
            use.decayed = use.decayed * factor + use.gpus_milli * half_life / log(2) * (1.0 - factor)
        use.decayed_at = self.now

    def _change(self, gang: GangState, placement: Placement, sign: int, promise: bool = False) -> None:
        charge(self, gang, placement, sign, promise)

    def _gpus_by_flavor(self, gang: GangState, placement: Placement) -> dict[str | None, int]:
        amounts: dict[str | None, int] = {}
        for placed in placement:
            gpus = amount_of(gang.spec, placed).gpus_milli
            node = self.nodes.get(placed.node)
            if gpus and node is not None:
                flavor = node.node.flavor
                amounts[flavor] = amounts.get(flavor, 0) + gpus
        return amounts


def charge(state: State, gang: GangState, placement: Placement, sign: int, promise: bool = False) -> None:
    """Put a placement into the ledgers (sign 1) or take it out (-1). Exact: the two undo each other."""
    spec = gang.spec
    queue = spec.queue
    capacity = state.capacity
    by_flavor: dict[str | None, int] = {}
    cpus = memory = total = 0
    at, end = 0, len(placement)
    while at < end:
        placed = placement[at]
        run = at + 1
        amount = amount_of(spec, placed)
        if placed.gpu_index < 0:  # like bundles side by side are one change
            while run < end and placement[run] == placed:
                run += 1
        count = run - at
        at = run
        if count > 1:
            amount = amount.times(count)
        node = state.nodes[placed.node]
        capacity.change(placed.node, amount, placed.gpu_index, sign)
        gpus = amount.gpus_milli
        if gpus:
            if promise:
                node.promised += sign * gpus
            flavor = node.node.flavor
            by_flavor[flavor] = by_flavor.get(flavor, 0) + gpus
            total += gpus
        cpus += amount.cpus_milli
        memory += amount.memory_bytes
    for flavor, gpus in by_flavor.items():
        if sign > 0:
            state.quota.charge(queue, flavor, gpus)
        else:
            state.quota.release(queue, flavor, gpus)
    use = state.use.get(queue)
    if use is None:
        use = state.use[queue] = QueueUse()
    use.gpus_milli += sign * total
    use.cpus_milli += sign * cpus
    use.memory_bytes += sign * memory
    if not spec.preemptible:
        use.fixed_milli += sign * total


def _next_due(schedule: str, after_: float) -> float | None:
    try:
        return cron.next_due(schedule, after_)
    except ValueError:  # a fact never raises; `check` refuses such a schedule
        return None


_GANG_FIELDS = (
    "id", "spec", "submitted_at", "revision", "status", "size", "placement", "held", "attempt", "restarts", "failures",
    "preemptions", "evicted_at", "queued_since", "launched_at", "started_at", "resized_at", "not_before", "wanted_size",
    "message", "nomination", "leaving", "vacate_reason", "lost_members", "checkpoint_at", "fraction", "work_left",
    "progress_at", "served_s", "served_gpu_s", "adapters", "adapter_errors", "blocked_by",
)  # fmt: skip
_WORKLOAD_FIELDS = (
    "workload", "submitted_at", "gangs", "revision", "wanted_replicas", "scaled_by_user", "next_index", "cancelled",
    "outcome", "finished_at", "message", "artifact", "metrics", "load", "memory", "next_run_at", "last_run",
)  # fmt: skip

_HANDLERS: dict[type, Callable[[State, Any], None]] = {
    facts.Tick: State._tick,
    facts.Configured: State._configured,
    facts.Submitted: State._submitted,
    facts.Cancelled: State._cancelled,
    facts.Scaled: State._scaled,
    facts.NodeJoined: State._node_joined,
    facts.NodeLost: State._node_lost,
    facts.NodeDraining: State._node_draining,
    facts.ForeignUse: State._foreign_use,
    facts.Bound: State._bound,
    facts.LaunchFailed: State._launch_failed,
    facts.Resized: State._resized,
    facts.Finished: State._finished,
    facts.Released: State._released,
    facts.Lost: State._lost,
    facts.CheckpointPublished: State._checkpoint,
    facts.Estimated: State._estimated,
    facts.LoadObserved: State._load_observed,
    facts.Published: State._published,
    facts.AdapterLoaded: State._adapter_loaded,
    decisions.Launch: State._launch,
    decisions.Nominate: State._nominate,
    decisions.Withdraw: State._withdraw,
    decisions.Resize: State._resize,
    decisions.Preempt: State._preempt,
    decisions.Drain: State._drain,
    decisions.Stop: State._stop,
    decisions.Scale: State._scale,
    decisions.LoadAdapter: State._load_adapter,
    decisions.RequestCapacity: State._request_capacity,
    decisions.ReleaseNode: State._release_node,
    decisions.RunAgain: State._run_again,
    decisions.GiveUp: State._give_up,
}
