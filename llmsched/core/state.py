"""The world as the journal tells it: `State.apply(entry)` is the only way anything changes.

A fact never raises: one that is stale (an older attempt) or impossible in the present status is noted in `notes` and
ignored. Start reading at `_HANDLERS`. Records are in records.py, what is kept in step with them in ledgers.py, the
steps that several entries share in lives.py. Decides nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from llmsched.core import authorization, decisions, facts
from llmsched.core.archive import is_gone
from llmsched.core.capacity import NodeState
from llmsched.core.decisions import Decision
from llmsched.core.facts import Fact
from llmsched.core.ledgers import charge
from llmsched.core.lifecycle import Status
from llmsched.core.lives import Lives, next_due_of
from llmsched.core.message import ACTOR, NODE, Ref, quoted, say
from llmsched.core.records import (
    GangState,
    Nomination,
    WorkloadState,
    allowed_sizes,
    size_of,
)

__all__ = ["GangState", "NodeState", "State", "Status", "WorkloadState", "charge"]

HOUR_S = 3600.0


class State(Lives):
    # ------------------------------------------------------------------ the fold

    def apply(self, entry: Fact | Decision) -> None:
        """Fold one entry of the journal. Never raises for what a fact says."""
        at = getattr(entry, "at", None)
        if at is not None and at > self.now:
            self._advance(at)
        kind = type(entry)
        _HANDLERS[kind](self, entry)
        if kind is not facts.Tick:
            self.version += 1
        if kind in _ABOUT_VICTIMS:
            self.victims += 1
        elif kind not in _FOR_NOBODY:
            self.causes += 1

    def _advance(self, at: float) -> None:
        if self.is_to_be_ranked():
            self.ranked_at = self.now  # by rank: the last pass has ranked them, or one before it in this quantum had
        self.now = at
        while self._timers and self._timers[0][0] <= at:
            _, gang_id_ = heapq.heappop(self._timers)
            gang = self.gangs.get(gang_id_)
            if (
                gang is not None
                and gang.status is Status.QUEUED
                and gang.blocked_by == "backoff"
                and gang.not_before <= at
            ):
                self._enqueue(gang)
                self.version += 1

    def is_to_be_ranked(self) -> bool:
        """By rank: whether those who wait must be compared with those who run: when somebody has waited since before
        this quantum. Who came in it may still find room."""
        scheduling = self.configuration.scheduling
        if not self.waiting.count or scheduling.preemption.within_queue != "by_rank":
            return False
        quantum = scheduling.quantum_s
        if quantum <= 0:
            return True
        began = self.now // quantum * quantum
        return any(shape.since[0][0] < began for shape in self.waiting.live.values())

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
            self.ranked_at,
            sorted(self.archived.items()),
            self.history.parts(),
            sorted(self.overdue_since.items()),
            sorted(self.shunned_until.items()),
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

    def _submitted(self, fact: facts.Submitted) -> None:
        workload = fact.workload
        known = self.workloads.get(workload.id)
        if known is not None:
            if fact.replaces and not known.cancelled and (not known.outcome or workload.id in self.scheduled):
                known.met = fact.met
                self._replace(known, workload, fact.in_place)
            else:
                self._note(fact, f"{workload.id} is known already")
            return
        self._begin(WorkloadState(workload, fact.at, [], self.gangs, met=fact.met))

    def _begin(self, record: WorkloadState) -> None:
        workload = record.workload
        self.workloads[workload.id] = record
        newest, here = self.runs.get(workload.name, (0, 0))
        self.runs[workload.name] = max(newest, workload.run), here + 1
        self.open_work.put(workload)
        self._hand_schedule_to(record)
        for name in workload.after:
            self.dependents.setdefault(name, []).append(workload.id)
        if workload.kind == "serve":
            self.serving[workload.id] = None
            record.wanted_replicas = workload.min_replicas
            published = authorization.published_to(self, workload).values()
            models = [one for one in published if one.kind == "model"]
            record.model = max(models, key=lambda one: one.at).uri if models else ""
            self._fill(record)
        else:
            self._new_gang(record, record.version)

    def _cancelled(self, fact: facts.Cancelled) -> None:
        record = self.workloads.get(fact.workload)
        had_schedule = self._drop_schedule(record) if record is not None else False
        if record is None or record.outcome:
            if not had_schedule:
                self._note(fact, f"{fact.workload} is unknown or has ended")
            return
        record.cancelled = True
        record.message = say("cancelled_by", by=Ref(ACTOR, fact.by)) if fact.by else say("cancelled")
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
            if fact.size not in allowed_sizes(gang.spec):
                self._note(fact, f"{gang.id} may not have that size")
                continue
            gang.wanted_size = fact.size
            if gang.id in self.waiting:
                self.waiting.discard(gang)
                gang.shape = None
                self.waiting.add(gang)

    def _node_joined(self, fact: facts.NodeJoined) -> None:
        known = self.nodes.get(fact.node.id)
        if known is not None:
            if known.node == fact.node:
                if known.draining:
                    known.draining, known.deadline = False, None
                    self.capacity.reindex(known)
                return
            self._node_lost(facts.NodeLost(fact.at, fact.node.id))  # it came back as something else
        node = self.capacity.add(fact.node)
        node.idle_since = self.now
        self.releasing.pop(fact.node.id, None)
        self.overdue_since.pop(fact.node.node_type or "", None)
        self._count_nodes_to_come()
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
            gang.message = say("node_lost", node=Ref(NODE, node.node.name or fact.node))
            if not left:
                self._ended_badly(gang, "interruption", gang.message)
            elif gang.status is not Status.VACATING:
                gang.lost_members, gang.lost_at = True, self.now
                gang.home = tuple(dict.fromkeys(placed.node for placed in left))
                self.troubled[name] = None
        self.capacity.remove(fact.node)
        self.releasing.pop(fact.node, None)
        self._count_nodes_to_come()
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

    def _excess_use(self, fact: facts.ExcessUse) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return
        gang.excess = fact.used
        if fact.used:
            gang.excess_since = self.now if gang.excess_since is None else gang.excess_since
            self.exceeding[gang.id] = None
        elif gang.excess_since is not None:
            gang.excess_s += self.now - gang.excess_since
            gang.excess_since = None
            self.exceeding.pop(gang.id, None)

    def _stall(self, fact: facts.Stalled) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return
        gang.stalled = fact.message

    def _bound(self, fact: facts.Bound) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not self._step(gang, "bound", fact):
            return
        if gang.started_at is None:
            gang.started_at = gang.progress_at = self.now
            gang.failures = 0
            gang.message = None
            self._expect_end(gang)
        if gang.spec.kind == "serve":
            self._proven(self.workloads[gang.workload_id], gang)
            self.troubled[gang.workload_id] = None

    def _launch_failed(self, fact: facts.LaunchFailed) -> None:
        gang = self._current(fact.gang, fact.attempt, fact)
        if gang is None or not gang.is_holding():
            self._note(fact, "no attempt is open")
            return  # of one that ran it is true too: a resize begins the attempt again, and may not succeed
        if gang.status is Status.VACATING:
            self._released(facts.Released(fact.at, fact.gang, fact.attempt))
            return
        self._ended_badly(gang, fact.event, quoted(fact.message))

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
            pace = max(gang.pace(gang.spec.min_size), 1e-9)
            self.history.learn(gang.spec, gang.worked_s, gang.flavor, gang.worked_s / pace)
            gang.message = quoted(fact.message)
            self._end(gang, "succeeded")
        else:
            self._ended_badly(gang, fact.event, quoted(fact.message))

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
        self._ended_badly(gang, "interruption", quoted(fact.message) or say("lost"), fact.by_others)

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
        if gang.is_active():
            self._settle(gang)
        gang.measured, gang.basis = True, None
        gang.work_left = max(0.0, fact.remaining_s) * (gang.pace(gang.size) if gang.size else 1.0)
        gang.progress_at = self.now
        if gang.is_active():
            self._expect_end(gang)
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
        origin, record = self.workloads.get(fact.origin), self.workloads.get(fact.target)
        if origin is None:
            self._note(fact, f"{fact.origin} is unknown")
            return
        user = origin.workload.user
        self.publications.setdefault(fact.target, {})[user, fact.name] = fact
        if record is None or not authorization.may_publish(self, user, record.workload):
            return
        if fact.kind == "model":  # a new model is a new revision: replicas are replaced one by one
            record.revision += 1
            record.model = fact.uri
            self._move_on(record)
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

    def _command_begun(self, fact: facts.CommandBegun) -> None:
        """A look beside a gang takes nothing and moves nothing: it is kept because it happened."""
        self._current(fact.gang, fact.attempt, fact)

    def _archived(self, fact: facts.Archived) -> None:
        for name in fact.workloads:
            record = self.workloads.get(name)
            if record is None or not record.outcome or name in self.scheduled:
                self._note(fact, f"{name} is unknown, lives, or has a schedule")
            else:
                self._put_aside(record)
        for name in fact.replicas:
            gang = self.gangs.get(name)
            if gang is None or not is_gone(gang) or gang.workload_id not in self.serving:
                self._note(fact, f"{name} is no replica that is gone")
            else:
                self.workloads[gang.workload_id].gangs.remove(name)
                del self.gangs[name]

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
        self._set_pace(gang)
        self._expect(gang)
        gang.started_at = gang.resized_at = gang.checkpoint_at = None
        gang.lost_members = False
        gang.home = ()
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

    def _nominate(self, decision: decisions.Nominate) -> None:
        gang = self.gangs[decision.gang]
        self._unpromise(gang)
        gang.nomination = Nomination(decision.placement, decision.victims, self.now)
        self.nominated[gang.id] = None
        self._change(gang, decision.placement, 1, promise=True)

    def _withdraw(self, decision: decisions.Withdraw) -> None:
        self._unpromise(self.gangs[decision.gang])

    def _resize(self, decision: decisions.Resize) -> None:
        gang = self.gangs[decision.gang]
        if gang.attempt != decision.attempt or not self._step(gang, "resize", decision):
            return
        self._settle(gang)
        old, new = Counter(gang.held), Counter(decision.placement)
        self._hold(gang, tuple(sorted((old | new).elements())))
        gang.placement = decision.placement
        gang.size = size_of(gang.spec, decision.placement)
        self._set_pace(gang)
        self._expect_end(gang)

    def _preempt(self, decision: decisions.Preempt) -> None:
        gang = self.gangs[decision.gang]
        if self._vacate(gang, decision, "released", decision.reason):
            gang.beneficiary = decision.beneficiary
            gang.message = decision.why
            if decision.reason == "in_queue_rank":
                self.ranked_at = self.now
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
        self._count_nodes_to_come()

    def _release_node(self, decision: decisions.ReleaseNode) -> None:
        node = self.nodes.get(decision.node)
        if node is not None:
            self.releasing[decision.node] = self.now
            node.draining = True
            self.capacity.reindex(node)

    def _run_again(self, decision: decisions.RunAgain) -> None:
        record = self.workloads[decision.workload]
        workload = record.workload
        if decision.run > workload.run:
            following = replace(workload, id=f"{workload.name}@{decision.run}", run=decision.run, after=())
            self._begin(WorkloadState(following, self.now, [], self.gangs, is_due=True))
            return
        record.next_run_at = next_due_of(workload.schedule or "", self.now)
        record.is_due = True
        for gang in self._gangs_of(record):
            if gang.blocked_by == "schedule":
                self._queue(gang)

    def _give_up(self, decision: decisions.GiveUp) -> None:
        gang = self.gangs[decision.gang]
        gang.message = decision.why
        if gang.status is Status.QUEUED:
            self._end(gang, "give_up")


_GANG_FIELDS = (
    "id", "spec", "submitted_at", "revision", "model", "status",
    "size", "placement", "held", "attempt", "restarts", "failures",
    "preemptions", "evicted_at", "queued_since", "launched_at", "started_at", "resized_at", "not_before", "wanted_size",
    "message", "nomination", "leaving", "vacate_reason", "lost_members", "home",
    "lost_at", "checkpoint_at", "fraction", "work_left",
    "progress_at", "measured", "option", "flavor", "relative_speed", "faster", "worked_s", "served_s",
    "served_gpu_s", "stalled", "excess", "excess_since", "excess_s",
    "adapters", "adapter_errors", "blocked_by",
)  # fmt: skip
_WORKLOAD_FIELDS = (
    "workload", "submitted_at", "gangs", "revision", "model", "answered",
    "wanted_replicas", "scaled_by_user", "next_index", "cancelled",
    "outcome", "finished_at", "message", "artifact", "metrics", "load", "memory", "next_run_at", "is_due", "met",
)  # fmt: skip

# What cannot make anything possible for a waiting gang: it tells, or it takes. All else makes every refusal doubtful:
# an entry that is forgotten here costs time and nothing else. A new version of a spec says so itself, see _replace.
_FOR_NOBODY = frozenset(
    {
        facts.Tick,
        facts.Submitted,
        facts.LoadObserved,
        facts.Published,
        facts.AdapterLoaded,
        facts.CommandBegun,
        facts.Archived,
        decisions.Nominate,
        decisions.LoadAdapter,
        decisions.RequestCapacity,
        decisions.RunAgain,
    }
)
# It may make somebody a victim, or a cheaper one. A launch on other places than were promised says so itself.
_ABOUT_VICTIMS = frozenset({facts.Bound, facts.CheckpointPublished, decisions.Launch})

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
    facts.ExcessUse: State._excess_use,
    facts.Bound: State._bound,
    facts.LaunchFailed: State._launch_failed,
    facts.Stalled: State._stall,
    facts.Resized: State._resized,
    facts.Finished: State._finished,
    facts.Released: State._released,
    facts.Lost: State._lost,
    facts.CheckpointPublished: State._checkpoint,
    facts.Estimated: State._estimated,
    facts.LoadObserved: State._load_observed,
    facts.Published: State._published,
    facts.AdapterLoaded: State._adapter_loaded,
    facts.CommandBegun: State._command_begun,
    facts.Archived: State._archived,
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
