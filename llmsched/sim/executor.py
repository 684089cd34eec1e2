"""Carries decisions out in simulated time: what an executor would report becomes events on a heap.

Each answer is an event of its own and starts a pass, as it does live: a launch binds after the restart cost, whoever is
told to leave or to change its size holds its places until it has left, a job ends when its work is done. What was
decided is never questioned here. Knows no policy and no real clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from math import inf
from typing import Any

from llmsched.core import decisions, facts
from llmsched.core.decisions import Decision
from llmsched.core.facts import Fact
from llmsched.core.nodes import Node
from llmsched.core.state import State
from llmsched.sim.runtimes import CHECKPOINT_S, Runtime


class SimExecutor:
    """`events` holds (time, number, fact, epoch of the gang's attempt or -1). `restart_cost_s`: what a start takes;
    `leave_s`: how long work that is told to leave takes to do so, where its grace is not shorter; it makes no progress
    meanwhile. Both of jobs that have no figure of their own. `nodes` are all known ones."""

    def __init__(
        self, runtimes: dict[str, Runtime], nodes: Mapping[str, Node], restart_cost_s: float, leave_s: float
    ) -> None:
        self.runtimes = runtimes
        self.nodes = nodes
        self.restart_cost_s = restart_cost_s
        self.leave_s = leave_s
        self.events: list[tuple[float, int, Fact, int]] = []
        self.gone: list[str] = []  # gangs that let go of everything since somebody last looked
        self.finished: list[str] = []  # those of them that are done
        self._epoch: dict[str, int] = {}  # raised whenever a gang's pending events become void
        self._starts: dict[str, int] = {}  # how many starts and changes of size each gang has had,
        self._leaves: dict[str, int] = {}  # and how often it was told to leave
        self._number = 0

    def at(self, when: float, fact: Fact, gang: str = "") -> None:
        self._number += 1
        heapq.heappush(self.events, (when, self._number, fact, self._epoch.get(gang, 0) if gang else -1))

    def next_at(self) -> float | None:
        """When the next fact comes."""
        while self.events and self._is_void(self.events[0]):
            heapq.heappop(self.events)
        return self.events[0][0] if self.events else None

    def _is_void(self, event: tuple[float, int, Fact, int]) -> bool:
        return event[3] >= 0 and self._epoch.get(event[2].gang, 0) != event[3]  # type: ignore[union-attr]

    def due(self, now: float) -> list[Fact]:
        """Every fact up to `now`, in order of time."""
        out: list[Fact] = []
        while self.events and self.events[0][0] <= now:
            event = heapq.heappop(self.events)
            if self._is_void(event):
                continue
            fact = event[2]
            if isinstance(fact, (facts.Finished, facts.Released)):
                self.runtimes[fact.gang].stop(fact.at)
                self.gone.append(fact.gang)
            if isinstance(fact, facts.Finished):
                self.runtimes[fact.gang].left = 0.0
                self.finished.append(fact.gang)
            out.append(fact)
        return out

    def carry_out(self, decided: list[Decision], now: float) -> None:
        for decision in decided:
            act = _ACTS.get(type(decision))
            if act is not None:
                act(self, decision, now)

    def _void(self, gang: str) -> None:
        self._epoch[gang] = self._epoch.get(gang, 0) + 1

    def _starts_in(self, gang: str) -> float:
        return _next(self.runtimes[gang].job.start_s, self._starts, gang, self.restart_cost_s)

    def _leaves_in(self, gang: str) -> float:
        return _next(self.runtimes[gang].job.leave_s, self._leaves, gang, self.leave_s)

    def _launch(self, decision: decisions.Launch, now: float) -> None:
        self._void(decision.gang)
        bound = now + self._starts_in(decision.gang)
        self._run(decision, now, bound)
        self.at(bound, facts.Bound(bound, decision.gang, decision.attempt), decision.gang)

    def _run(self, decision: decisions.Launch | decisions.Resize, now: float, warm_until: float) -> None:
        gang, runtime = decision.gang, self.runtimes[decision.gang]
        flavors = dict.fromkeys(self.nodes[placed.node].flavor for placed in decision.placement)
        runtime.start(now, len(decision.placement), warm_until, tuple(flavors))
        ends = runtime.ends_at()
        if ends < inf:
            self.at(ends, facts.Finished(ends, gang, decision.attempt, "succeeded"), gang)

    def _resize(self, decision: decisions.Resize, now: float) -> None:
        gang = decision.gang
        self._void(gang)
        left_at, start_s = now + self._leaves_in(gang), self._starts_in(gang)
        self._run(decision, now, left_at + start_s)
        self.at(left_at, facts.Resized(left_at, gang, decision.attempt, len(decision.placement)), gang)
        runtime = self.runtimes[gang]
        if start_s and runtime.told_factor is not None:  # a restart is known to take its time
            left = runtime.left * runtime.whole_s() * runtime.told_factor + start_s
            self.at(left_at, facts.Estimated(left_at, gang, left), gang)

    def _vacate(self, decision: decisions.Preempt | decisions.Drain | decisions.Stop, now: float) -> None:
        self._void(decision.gang)
        left_at = now + min(self._leaves_in(decision.gang), decision.grace_s)
        self.runtimes[decision.gang].leave(now, left_at)
        self.at(left_at, facts.Released(left_at, decision.gang, decision.attempt), decision.gang)

    def _give_up(self, decision: decisions.GiveUp, now: float) -> None:
        self._void(decision.gang)

    def _release_node(self, decision: decisions.ReleaseNode, now: float) -> None:
        self.at(now, facts.NodeLost(now, decision.node))

    def node_lost(self, state: State, node: str, now: float) -> None:
        """Whatever ran there is gone, and what it did since its last checkpoint."""
        for name in list(state.holding):
            gang = state.gangs[name]
            if all(placed.node != node for placed in gang.held):
                continue
            runtime = self.runtimes[name]
            since = now - max(gang.launched_at or now, gang.resized_at or 0.0)
            if runtime.size:
                runtime.settle(now)
                runtime.left = min(1.0, runtime.left + (since % CHECKPOINT_S) / runtime.whole_s())
            runtime.stop(now)
            self.gone.append(name)
            self._void(name)
            self.at(now, facts.Lost(now, name, gang.attempt, f"node {node} was lost"), name)


def _next(known: tuple[float, ...], counts: dict[str, int], gang: str, otherwise: float) -> float:
    """The figure of this time, or the last that is known."""
    number = counts[gang] = counts.get(gang, 0) + 1
    return known[min(number, len(known)) - 1] if known else otherwise


_ACTS: dict[type, Any] = {
    decisions.Launch: SimExecutor._launch,
    decisions.Resize: SimExecutor._resize,
    decisions.Preempt: SimExecutor._vacate,
    decisions.Drain: SimExecutor._vacate,
    decisions.Stop: SimExecutor._vacate,
    decisions.GiveUp: SimExecutor._give_up,
    decisions.ReleaseNode: SimExecutor._release_node,
}
