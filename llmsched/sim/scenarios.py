"""Runs black-box scenarios (cluster state + queue state -> expected decision) against the real core.

A row says who runs and who waits (scenario_file.py); the runner makes that a state out of facts, repeats turns until
nothing changes (launches bind, evictions and shrinks take effect at once, what is said to end ends then), and has the
outcome compared (verdict.py). It knows no rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmsched.core import decisions, facts, render
from llmsched.core.invariants import violations
from llmsched.core.message import say
from llmsched.core.nodes import Node
from llmsched.core.past_use import weighed_window_s
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduler import turn
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Placed, Topology, Workload
from llmsched.policies.registry import load as load_policies
from llmsched.sim import scenario_file, verdict
from llmsched.sim.scenario_file import PLAIN, PLENTY, START

LONG_AGO_S = 100_000.0  # before START, when running work without a start time began
PASSES = 200  # turns until a scenario must have come to rest


def run_file(path: str | Path) -> dict[str, Any]:
    """{"passed", "failed", "results": [{"id", "passed", "expected", "got", "why"}], "problems": [what is wrong with
    which row]}; SpecError for a file that has no rows. A row with a problem counts as failed."""
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    ids: list[str] = []
    for number, row in enumerate(scenario_file.read(path), 1):
        name = str(row.get("id", f"#{number}")) if isinstance(row, dict) else f"#{number}"
        wrong = scenario_file.problems(row, ids)
        ids.append(name)
        if wrong:
            problems += [f'{path}: scenario "{name}": {text}' for text in wrong]
            results.append({"id": name, "passed": False, "expected": {}, "got": {}, "why": "; ".join(wrong)})
            continue
        results.append(_result(name, row))
        variants = row.get("variant") or []
        for count, variant in enumerate([variants] if isinstance(variants, dict) else variants, 1):
            of = f"{name}/variant{count if count > 1 else ''}"
            results.append(_result(of, scenario_file.varied(row, variant)))
    passed = sum(row["passed"] for row in results)
    return {"passed": passed, "failed": len(results) - passed, "results": results, "problems": problems}


def _result(name: str, scenario: Mapping[str, Any]) -> dict[str, Any]:
    try:
        wrong, got = Run(scenario).play()
    except (KeyError, TypeError, ValueError, AssertionError) as broken:
        wrong, got = [f"cannot be run: {type(broken).__name__}: {broken}"], {}
    expected = scenario.get("expect") or [step.get("expect") for step in scenario.get("steps") or []]
    return {"id": name, "passed": not wrong, "expected": expected, "got": got, "why": "; ".join(wrong)}


@dataclass
class Round:
    """What happened since the last look, by the names of the file."""

    evicted: Counter[str] = field(default_factory=Counter)
    started: Counter[str] = field(default_factory=Counter)
    moved: dict[str, None] = field(default_factory=dict)  # gangs that were evicted, wherever they are now
    reasons: list[str] = field(default_factory=list)


class Run:
    """One scenario from state to verdict."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        self.scenario = scenario
        self.configuration = scenario_file.configuration(scenario)
        self.policies = load_policies(self.configuration.policies)
        self.state = State()
        rows = (*(scenario.get("running") or []), *(scenario.get("pending") or []))
        stamps = [row.get(key, 0) for row in rows for key in ("created_at", "started_at")]
        self.now = START + max(0, *stamps, 0)  # nobody was created after the first pass
        self.count = 0
        self.order: list[str] = []  # pending names as written
        self.round = Round()
        self.evicted_ever = 0
        self.facts: list[facts.Fact] = []
        self.base: dict[str, str] = {}  # workload id -> the name in the file
        self.ends: dict[str, float] = {}  # gangs that are said to end by themselves, and when
        self.lasts: dict[str, float] = {}  # waiting gangs of which it is said how long they run

    def play(self) -> tuple[list[str], dict[str, Any]]:
        """What is wrong, and what was got in the end."""
        scenario = self.scenario
        self._set_up()
        wrong: list[str] = []
        got: dict[str, Any] = {}
        steps = scenario.get("steps")
        if steps:
            for number, step in enumerate(steps, 1):
                failed, got = self._step(step)
                wrong += [f"step {number}: {text}" for text in failed]
        else:
            self._submit(scenario.get("pending") or [])
            failed, got = self._look(scenario.get("expect") or {})
            wrong += failed
        then = scenario.get("then")
        if then:
            self.round = Round()
            self._change(then)
            self._submit(then.get("pending") or [])
            failed, got = self._look(then.get("expect") or {})
            wrong += [f"then: {text}" for text in failed]
        return wrong, got

    # ------------------------------------------------------------------ making the state

    def _set_up(self) -> None:
        began = START - LONG_AGO_S - 10
        self.state.apply(facts.Configured(began, self.configuration))
        for row in self.scenario.get("nodes") or []:
            self._add_node(row, began)
        self._running(self.scenario.get("running") or [])
        self.state.apply(facts.Tick(self.now))
        self._history(self.scenario.get("history") or {})

    def _add_node(self, row: Mapping[str, Any], at: float) -> None:
        for node in scenario_file.nodes(row):
            self.state.apply(facts.NodeJoined(at, node))

    def _running(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Submit and start everybody, in the order in which that must have happened."""
        events: list[tuple[float, int, int, Mapping[str, Any], Workload]] = []
        for row in rows:
            for workload in scenario_file.workloads(row, {**self.state.workloads, **self.base}):
                self.base[workload.id] = row["name"]
                self.count += 1
                began = START - LONG_AGO_S + self.count
                if "created_at" in row:
                    began = max(began, START + row["created_at"])
                if "time_limit_s" in row:  # it has not run longer than it may
                    began = max(began, START - max(0, row["time_limit_s"] - row.get("ends_in_s", row["time_limit_s"])))
                if "started_at" in row:
                    began = START + row["started_at"]
                created = min(began, START + row["created_at"]) if "created_at" in row else began
                events += [(created, 0, self.count, row, workload), (began, 1, self.count, row, workload)]
        for at, kind, _, row, workload in sorted(events, key=lambda event: event[:3]):
            if kind == 0:
                self.state.apply(facts.Submitted(at, workload))
            else:
                self._start(row, workload, at)

    def _start(self, row: Mapping[str, Any], workload: Workload, began: float) -> None:
        state = self.state
        gang = state.gangs[f"{workload.id}/0"]
        members = row.get("members_running", row.get("members", workload.max_size if "gpus" not in row else 1))
        state.apply(facts.Tick(began))
        stale = members < workload.min_size
        placed = self._find(row, gang, members)
        if stale:  # the missing members were on a node that is gone
            lost_at = START - row.get("stale_for_s", 0)
            ghost = Node(f"gone-{workload.id}", Resources(64 * MILLI, PLENTY, PLENTY), None)
            state.apply(facts.NodeJoined(began, ghost))
            missing = workload.min_size - members
            placed = (*placed, *[Placed("workers", ghost.id, 0, -1)] * missing)
        state.apply(decisions.Launch(gang.id, 1, placed, say("launch.before")))
        state.apply(facts.Bound(began, gang.id, 1))
        if stale:
            state.apply(facts.NodeLost(lost_at, ghost.id))
        if "ends_in_s" in row:
            state.apply(facts.Estimated(state.now, gang.id, START - state.now + row["ends_in_s"]))
            self.ends[gang.id] = START + row["ends_in_s"]

    def _find(self, row: Mapping[str, Any], gang: GangState, members: int) -> tuple[Placed, ...]:
        state = self.state
        mask = -1
        named = row.get("node", row.get("nodes"))
        if named is not None:
            names = named if isinstance(named, list) else [named]
            mask = sum(1 << state.nodes[name].slot for name in dict.fromkeys(names))
        chosen = load_policies(PLAIN._replace(placement="spread")) if row.get("spread") else self.policies
        probe = replace(gang.spec, preemptible=True, topology=Topology(), min_size=members, max_size=members)
        original, gang.spec = gang.spec, probe
        queue_quota, state.quota.enforced = state.quota.enforced, False  # what runs, runs: within quota or not
        try:
            with Trial(state) as trial:
                found = find(Pass(trial, chosen), gang, members, mask)
        finally:
            gang.spec, state.quota.enforced = original, queue_quota
        if isinstance(found, Refused):
            raise ValueError(f"running job {gang.workload_id} does not fit: {render.text(found.message)}")
        if "gpu_index" in row:
            return tuple(
                placed._replace(gpu_index=row["gpu_index"]) if placed.gpu_index >= 0 else placed for placed in found
            )
        return found

    def _history(self, history: Mapping[str, Mapping[str, float]]) -> None:
        state = self.state
        scheduling = self.configuration.scheduling
        for queue, past in history.items():
            state.ledgers.account(queue, state.now)
            window = weighed_window_s(scheduling.usage_half_life_s, scheduling.usage_window_s)
            use = state.use[queue]
            use.decayed = use.counted = past["gpu_share_of_window"] * state.capacity.gpus_total * MILLI * window

    def _submit(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        for row in [rows] if isinstance(rows, Mapping) else rows:
            for workload in scenario_file.workloads(row, self.state.workloads, waits=True):
                self.base[workload.id] = row["name"]
                self.count += 1
                if "ends_in_s" in row:  # after its start
                    workload = replace(workload, estimated_runtime_s=float(row["ends_in_s"]))
                    self.lasts[f"{workload.id}/0"] = row["ends_in_s"]
                at = START + row["created_at"] if "created_at" in row else self.now
                # A pass sees one moment; age keeps the order of the file without moving the clock.
                self.state.apply(facts.Submitted(at, workload))
                gang = self.state.gangs[f"{workload.id}/0"]
                self.state.waiting.discard(gang)
                gang.submitted_at = at + self.count * 1e-6
                gang.queued_since = self.now
                self.state.waiting.add(gang)
            if row["name"] not in self.order:
                self.order.append(row["name"])

    # ------------------------------------------------------------------ turns

    def _step(self, step: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        self.round = Round()
        self._change(step)
        return self._look(step.get("expect") or {}, step)

    def _change(self, step: Mapping[str, Any]) -> None:
        """What a step says happens, in the order in which a reader would think of it."""
        if "at_s" in step:
            self._pass_time(START + step["at_s"])
        for row in _several(step.get("add_node")):
            self._add_node(row, self.now)
        for name in _several(step.get("remove_node")):
            self.facts.append(facts.NodeLost(self.now, name))
        if "submit" in step:
            self._submit(step["submit"])
        for _ in range(step.get("run_cycles", 0)):
            self._pass_time(self.now + 1.0)
            self._settle()

    def _pass_time(self, until: float) -> None:
        """Move the clock. Whoever ends on the way ends then, one moment after another."""
        while True:
            due = [(at, gang) for gang, at in self.ends.items() if at <= until and self.state.gangs[gang].is_active()]
            if not due:
                break
            at = min(due)[0]
            self.now = max(self.now, at)
            self.facts.append(facts.Tick(self.now))
            for end, gang in sorted(due):
                if end == at:
                    del self.ends[gang]
                    self.facts.append(facts.Finished(self.now, gang, self.state.gangs[gang].attempt, "succeeded"))
            self._settle()
        self.now = max(self.now, until)
        self.facts.append(facts.Tick(self.now))

    def _look(
        self, expect: Mapping[str, Any], step: Mapping[str, Any] | None = None
    ) -> tuple[list[str], dict[str, Any]]:
        """Come to rest, compare, and see that a further empty pass changes nothing. Outside steps nobody says when it
        is, so a delay before evictions is waited out."""
        self._settle()
        delay = self.configuration.scheduling.preemption_delay_s
        if step is None and delay:
            for _ in range(PASSES):
                before = self._changes()
                self._pass_time(self.now + delay)
                self._settle()
                if before == self._changes():
                    break
        wrong, got = verdict.compare(self, expect)
        if step is not None and not expect.keys() - {"total_evictions_max"}:
            return wrong, got
        self.facts.append(facts.Tick(self.now))
        plan = turn(self.state, self._take(), self.policies)
        if plan.decisions:
            wrong.append(f"a further empty pass decides {[type(d).__name__ for d in plan.decisions]}")
            for decision in plan.decisions:
                self._carry_out(decision)
        return wrong, got

    def _changes(self) -> int:
        return sum(self.round.evicted.values()) + sum(self.round.started.values())

    def _take(self) -> list[facts.Fact]:
        taken, self.facts = self.facts, []
        return taken

    def _settle(self) -> None:
        """Turns at one moment until nothing changes; what was decided takes effect at once."""
        for _ in range(PASSES):
            plan = turn(self.state, self._take(), self.policies)
            broken = violations(self.state)
            assert not broken, broken
            for decision in plan.decisions:
                self._carry_out(decision)
            if not plan.decisions and not self.facts:
                assert plan.reasons is not None  # told as a user would be told, planned starts included
                return
        raise ValueError(f"has not come to rest after {PASSES} passes")

    def _carry_out(self, decision: decisions.Decision) -> None:
        seen = self.round
        if isinstance(decision, decisions.Launch):
            self.facts.append(facts.Bound(self.now, decision.gang, decision.attempt))
            seen.started[self.name_of(decision.gang)] += 1
            if decision.gang in self.lasts:
                self.ends[decision.gang] = self.now + self.lasts[decision.gang]
        elif isinstance(decision, (decisions.Preempt, decisions.Stop, decisions.Drain)):
            self.facts.append(facts.Released(self.now, decision.gang, decision.attempt))
            if isinstance(decision, decisions.Preempt):
                seen.evicted[self.name_of(decision.gang)] += 1
                self.evicted_ever += 1
                seen.reasons.append(decision.reason)
                seen.moved[decision.gang] = None
        elif isinstance(decision, decisions.Resize):
            size = len(decision.placement)
            self.facts.append(facts.Resized(self.now, decision.gang, decision.attempt, size))

    def name_of(self, gang: str) -> str:
        return self.base[gang.rpartition("/")[0]]


def _several(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
