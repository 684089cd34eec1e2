"""The world as the journal tells it: `State.apply(entry)` is the only way anything changes.

Start reading at `_FOLDS`: the functions are in fold_facts.py and fold_decisions.py, the life of a gang in lifecycle.py.
What there is stands in world.py, the records of it in records.py. Decides nothing.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from typing import Any

from llmsched.core import decisions, facts, fold_decisions, fold_facts
from llmsched.core.capacity import NodeState
from llmsched.core.decisions import Decision
from llmsched.core.facts import Fact
from llmsched.core.lives import enqueue
from llmsched.core.records import GangState, WorkloadState
from llmsched.core.status import Status
from llmsched.core.world import World

__all__ = ["GangState", "NodeState", "State", "Status", "WorkloadState"]


class State(World):
    def apply(self, entry: Fact | Decision) -> None:
        """Fold one entry of the journal. Never raises for what a fact says."""
        at = getattr(entry, "at", None)
        if at is not None and at > self.now:
            self._advance(at)
        kind = type(entry)
        _FOLDS[kind](self, entry)
        if kind is not facts.Tick:
            self.version += 1
        self.touched.note(entry, self.version, self.serving)
        self.places += kind in _ABOUT_VICTIMS or kind is decisions.Nominate
        if kind in _ABOUT_VICTIMS:
            self.victims += kind is decisions.Launch or self.configuration.scheduling.consolidation
        elif kind not in _FOR_NOBODY:
            self.causes += 1

    def _advance(self, at: float) -> None:
        if self.is_to_be_ranked():
            self.ranked_at = self.now  # by rank: the last pass has ranked them, or one before it in this quantum had
        self.now = at
        self.starts, self.starts_before = 0, self.starts
        while self.timers and self.timers[0][0] <= at:
            _, gang_id_ = heapq.heappop(self.timers)
            gang = self.gangs.get(gang_id_)
            if gang is None or gang.status is not Status.QUEUED:
                continue
            if gang.is_late(at):
                self.troubled[gang.id] = None
                self.version += 1
            elif gang.blocked_by == "backoff" and gang.not_before <= at:
                enqueue(self, gang)
                self.version += 1

    def digest(self) -> str:
        """SHA-256 of everything the journal determines, the same in every process."""
        configuration = self.configuration
        parts: list[object] = [
            self.now,
            configuration,
            [
                (n.node, n.gpus, n.cpus, n.memory, n.whole, n.promised, sorted(n.shares.items()), n.foreign, n.leaving)
                + (n.leaves_at, n.drained, sorted((k, v) for k, v in n.custom.items() if v))
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
            sorted(self.drains.items()),
            self.fleet.requested,
            self.ranked_at,
            (self.starts, self.starts_before),
            self.lanes.parts(),
            self.exchanges.parts(),
            sorted(self.taken.items()),
            sorted(self.archived.items()),
            self.history.parts(),
            self.ledgers.meter.frozen(),
            sorted(self.fleet.overdue_since.items()),
            sorted(self.fleet.shunned_until.items()),
            sorted(self.fleet.releasing.items()),
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


_GANG_FIELDS = (
    "id", "spec", "submitted_at", "stake", "there_s", "owed_s", "revision", "model", "status",
    "size", "placement", "held", "attempt", "restarts", "failures",
    "preemptions", "evicted_at", "queued_since",
    "launched_at", "started_at", "resized_at", "not_before", "wanted_size",
    "message", "nomination", "leaving", "vacate_reason", "goes_to", "lost_members", "home",
    "lost_at", "checkpoint_at", "fraction", "work_left",
    "progress_at", "measured", "option", "flavor", "relative_speed", "faster", "worked_s", "served_s",
    "served_gpu_s", "gifts", "stalled", "excess", "excess_since", "excess_s",
    "adapters", "adapter_errors", "blocked_by",
)  # fmt: skip
_WORKLOAD_FIELDS = (
    "workload", "submitted_at", "gangs", "revision", "model", "answered", "answered_before",
    "wanted_replicas", "scaled_by_user", "next_index", "cancelled",
    "outcome", "finished_at", "message", "artifact", "metrics", "load", "memory", "curves", "season", "handovers",
    "next_run_at", "is_due", "met",
    "unlisted", "usage", "children_gpu_s",
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
        facts.Unlisted,
        facts.Archived,
        decisions.Nominate,
        decisions.LoadAdapter,
        decisions.RequestCapacity,
        decisions.RunAgain,
    }
)
# It may make somebody a victim, or a cheaper one: of those who run already only consolidation takes note, as what a
# policy forbids is asked again anyway. A launch on other places than were promised says so itself.
_ABOUT_VICTIMS = frozenset({facts.Bound, facts.CheckpointPublished, decisions.Launch})

_FOLDS: dict[type, Callable[[World, Any], None]] = {
    facts.Tick: fold_facts.nothing,
    facts.Configured: fold_facts.configured,
    facts.Submitted: fold_facts.submitted,
    facts.Cancelled: fold_facts.cancelled,
    facts.Scaled: fold_facts.scaled,
    facts.RolledBack: fold_facts.rolled_back,
    facts.NodeJoined: fold_facts.node_joined,
    facts.NodeLost: fold_facts.node_lost,
    facts.NodeDraining: fold_facts.node_draining,
    facts.DrainBegun: fold_facts.drain_begun,
    facts.DrainEnded: fold_facts.drain_ended,
    facts.ForeignUse: fold_facts.foreign_use,
    facts.ExcessUse: fold_facts.excess_use,
    facts.Bound: fold_facts.bound,
    facts.LaunchFailed: fold_facts.launch_failed,
    facts.Stalled: fold_facts.stall,
    facts.Resized: fold_facts.resized,
    facts.Finished: fold_facts.finished,
    facts.Released: fold_facts.released,
    facts.Lost: fold_facts.lost,
    facts.CheckpointPublished: fold_facts.checkpoint,
    facts.Estimated: fold_facts.estimated,
    facts.LoadObserved: fold_facts.load_observed,
    facts.Published: fold_facts.published,
    facts.AdapterLoaded: fold_facts.adapter_loaded,
    facts.CommandBegun: fold_facts.command_begun,
    facts.Unlisted: fold_facts.unlisted,
    facts.Archived: fold_facts.archived,
    decisions.Launch: fold_decisions.launch,
    decisions.Nominate: fold_decisions.nominate,
    decisions.Withdraw: fold_decisions.withdraw,
    decisions.Resize: fold_decisions.resize,
    decisions.Preempt: fold_decisions.preempt,
    decisions.Drain: fold_decisions.drain,
    decisions.Stop: fold_decisions.stop,
    decisions.Scale: fold_decisions.scale,
    decisions.LoadAdapter: fold_decisions.load_adapter,
    decisions.RequestCapacity: fold_decisions.request_capacity,
    decisions.ReleaseNode: fold_decisions.release_node,
    decisions.Assign: fold_decisions.assign,
    decisions.RunAgain: fold_decisions.run_again,
    decisions.GiveUp: fold_decisions.give_up,
}
