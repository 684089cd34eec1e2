"""Runs black-box scenarios (cluster state + queue state -> expected decision) against the real core.

The file says who runs and who waits; the runner makes that a state out of facts, repeats turns until nothing changes
(launches bind, evictions and shrinks take effect at once), and compares. It knows the words of the format, no rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from llmsched.core import decisions, facts
from llmsched.core.configuration import (
    Cohort,
    Configuration,
    PolicyNames,
    PreemptionRules,
    Queue,
    Quota,
    Reservation,
    Scheduling,
)
from llmsched.core.fair import GUARANTEE, decayed, over_quota_weights, weighed_window_s
from llmsched.core.invariants import violations
from llmsched.core.lifecycle import Status
from llmsched.core.nodes import Node
from llmsched.core.policy import View
from llmsched.core.records import GangState, size_of
from llmsched.core.resources import MILLI, Resources, parse_gpus_milli
from llmsched.core.scheduler import turn
from llmsched.core.stages.place import Refused, find
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placed, Topology, Workload
from llmsched.errors import SpecError
from llmsched.policies.registry import load as load_policies

PLAIN = PolicyNames(ordering="priority", elasticity="even")  # scenarios test rules; taste is measured elsewhere
START = 1_000_000.0  # the stamp that a scenario calls 0
LONG_AGO_S = 100_000.0  # before START, when running work without a start time began
PASSES = 200  # turns until a scenario must have come to rest
PLENTY = 1 << 50  # CPUs and memory of a node that does not say


def run_file(path: str | Path) -> dict[str, Any]:
    """{"passed", "failed", "results": [{"id", "passed", "expected", "got", "why"}]}; SpecError for a bad file."""
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as wrong:
        raise SpecError(f"cannot read scenarios: {wrong}", where=str(path)) from wrong
    if not isinstance(document, dict) or not isinstance(document.get("scenarios"), list):
        raise SpecError('a scenario file has a list called "scenarios"', where=str(path))
    results = []
    for scenario in document["scenarios"]:
        results.append(_result(scenario.get("id", "?"), scenario))
        variants = scenario.get("variant") or []
        for number, variant in enumerate([variants] if isinstance(variants, dict) else variants, 1):
            name = f"{scenario.get('id', '?')}/variant{number if number > 1 else ''}"
            results.append(_result(name, _varied(scenario, variant)))
    passed = sum(row["passed"] for row in results)
    return {"passed": passed, "failed": len(results) - passed, "results": results}


def _result(name: str, scenario: Mapping[str, Any]) -> dict[str, Any]:
    try:
        wrong, got = _Run(scenario).play()
    except (KeyError, TypeError, ValueError, AssertionError) as broken:
        wrong, got = [f"cannot be run: {type(broken).__name__}: {broken}"], {}
    expected = scenario.get("expect") or [step.get("expect") for step in scenario.get("steps", [])]
    return {"id": name, "passed": not wrong, "expected": expected, "got": got, "why": "; ".join(wrong)}


def _varied(scenario: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """The same scenario with the named changes and the variant's own expectation."""
    changed = {key: value for key, value in scenario.items() if key not in ("variant", "then", "expect")}
    changes = dict(variant)
    if "if_running_preemptible" in changes:
        flag = changes.pop("if_running_preemptible")
        changed["running"] = [{**job, "preemptible": flag} for job in scenario.get("running", [])]
    if "at_s" in changes:  # the change happens on the way: keep the steps before it
        at = changes.pop("at_s")
        before = [step for step in scenario.get("steps", []) if step.get("at_s", 0) < at]
        step = {"at_s": at, "expect": changes.pop("expect", {})}
        step.update({key: changes.pop(key) for key in ("add_node", "submit", "run_cycles") if key in changes})
        changed["steps"] = [*before, step]
    if isinstance(changes.get("policy"), dict):
        changes["policy"] = {**(scenario.get("policy") or {}), **changes["policy"]}
    changed.update(changes)
    return changed


class _Run:
    """One scenario from state to verdict."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        self.scenario = scenario
        self.policy = dict(scenario.get("policy") or {})
        self.configuration = _configuration(scenario, self.policy)
        self.policies = load_policies(self.configuration.policies)
        self.state = State()
        self.now = START
        self.count = 0
        self.order: list[str] = []  # pending names as written
        self.evicted: Counter[str] = Counter()  # in the present round, by base name
        self.evicted_ever = 0
        self.reasons: list[str] = []
        self.started: Counter[str] = Counter()
        self.facts: list[facts.Fact] = []
        self.base: dict[str, str] = {}  # workload id -> the name in the file
        self.moved: dict[str, None] = {}

    # ------------------------------------------------------------------ making the state

    def play(self) -> tuple[list[str], dict[str, Any]]:
        state = self.state
        state.apply(facts.Configured(START - LONG_AGO_S - 10, self.configuration))
        for node in self.scenario.get("nodes", []):
            self._add_node(node, START - LONG_AGO_S - 10)
        self._running(self.scenario.get("running") or [])
        state.apply(facts.Tick(START))
        self._history(self.scenario.get("history") or {})
        wrong: list[str] = []
        got: dict[str, Any] = {}
        steps = self.scenario.get("steps")
        if steps:
            for number, step in enumerate(steps, 1):
                failed, got = self._step(step)
                wrong += [f"step {number}: {text}" for text in failed]
        else:
            self._submit(self.scenario.get("pending") or [])
            failed, got = self._round(self.scenario.get("expect") or {})
            wrong += failed
        then = self.scenario.get("then")
        if then:
            self._submit(then.get("pending") or [])
            failed, got = self._round(then.get("expect") or {})
            wrong += [f"then: {text}" for text in failed]
        return wrong, got

    def _add_node(self, row: Mapping[str, Any], at: float) -> None:
        copies = row.get("copies", 1)
        labels = tuple((key, str(row[key])) for key in ("rack", "zone", "region") if key in row)
        labels += tuple((str(k), str(v)) for k, v in (row.get("labels") or {}).items())
        total = Resources(
            parse_gpus_milli(row.get("gpus", 0)),
            row["cpu"] * MILLI if "cpu" in row else PLENTY,
            row["memory_gib"] << 30 if "memory_gib" in row else PLENTY,
        )
        for copy in range(copies):
            name = row["name"] if copies == 1 and "copies" not in row else f"{row['name']}-{copy}"
            self.state.apply(facts.NodeJoined(at, Node(name, total, row.get("flavor"), labels, name)))

    def _workloads(self, row: Mapping[str, Any]) -> list[Workload]:
        """The workloads of one row: `copies` of them, the first one called as in the file when there is one only."""
        copies = row.get("copies", 1)
        per_bundle = Resources(
            parse_gpus_milli(row.get("gpus_per_member", row.get("gpus", 0))),
            int(row.get("cpu", 0) * MILLI),
            int(row.get("memory_gib", 0) * (1 << 30)),
        )
        flavors = row.get("flavor", row.get("flavors"))
        flavors = flavors if isinstance(flavors, list) else [flavors]
        group = Group("workers", 1, tuple(Option(flavor, per_bundle) for flavor in flavors))
        most = row.get("max_members", row.get("members", row.get("min_members", 1)))
        least = row.get("min_members", row.get("members", most))
        wish = row.get("topology") or {}
        required = "node" if row.get("single_node") else wish.get("required")
        made = []
        for copy in range(copies):
            name = row["name"] if "copies" not in row else f"{row['name']}-{copy}"
            known = [w for w in self.state.workloads if w == name]
            if known:  # the same name again in another role (C1 calls a queue's jobs after it)
                name = f"{name}.{len(self.state.workloads)}"
            self.base[name] = row["name"]
            made.append(
                Workload(
                    id=name,
                    name=name,
                    kind="train",
                    groups=(group,),
                    queue=row["queue"],
                    user=row.get("user", ""),
                    priority=row.get("prio", 0),
                    min_size=least,
                    max_size=most,
                    topology=Topology(required, wish.get("preferred")),
                    preemptible=row.get("preemptible", True),
                    max_runtime_s=row.get("time_limit_s"),
                    grace_s=0.0,
                )
            )
        return made

    def _running(self, rows: Sequence[Mapping[str, Any]]) -> None:
        made: list[tuple[float, float, Mapping[str, Any], Workload]] = []
        for row in rows:
            for workload in self._workloads(row):
                self.count += 1
                began = START - LONG_AGO_S + self.count
                if "started_at" in row:
                    began = START + row["started_at"]
                created = min(began, START + row["created_at"] if "created_at" in row else began)
                made.append((created, began, row, workload))
        for created, _, _, workload in sorted(made, key=lambda item: item[0]):
            self.state.apply(facts.Submitted(created, workload))
        for _, began, row, workload in sorted(made, key=lambda item: item[1]):
            self._start(row, workload, began)

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
        state.apply(decisions.Launch(gang.id, 1, placed, "it ran before"))
        state.apply(facts.Bound(began, gang.id, 1))
        if stale:
            state.apply(facts.NodeLost(lost_at, ghost.id))
        if "ends_in_s" in row:
            state.apply(facts.Estimated(state.now, gang.id, START - state.now + row["ends_in_s"]))

    def _find(self, row: Mapping[str, Any], gang: GangState, members: int) -> tuple[Placed, ...]:
        state = self.state
        mask = -1
        named = row.get("node", row.get("nodes"))
        if named is not None:
            names = named if isinstance(named, list) else [named]
            mask = sum(1 << state.nodes[name].slot for name in names)
        chosen = load_policies(PLAIN._replace(placement="spread")) if row.get("spread") else self.policies
        probe = replace(gang.spec, preemptible=True, topology=Topology(), min_size=members, max_size=members)
        original, gang.spec = gang.spec, probe
        queue_quota, state.quota.enforced = state.quota.enforced, False  # what runs, runs: within quota or not
        try:
            with Trial(state) as trial:
                found = find(trial, gang, members, chosen.placement, View(state), mask)
        finally:
            gang.spec, state.quota.enforced = original, queue_quota
        if isinstance(found, Refused):
            raise ValueError(f"running job {gang.workload_id} does not fit: {found.message}")
        if "gpu_index" in row:
            return tuple(
                placed._replace(gpu_index=row["gpu_index"]) if placed.gpu_index >= 0 else placed for placed in found
            )
        return found

    def _history(self, history: Mapping[str, Mapping[str, float]]) -> None:
        state = self.state
        scheduling = self.configuration.scheduling
        for queue, past in history.items():
            state._account(queue)
            window = weighed_window_s(scheduling.usage_half_life_s, scheduling.usage_window_s)
            use = state.use[queue]
            use.decayed = past["gpu_share_of_window"] * state.capacity.gpus_total * MILLI * window
            assert decayed(use, state.now, scheduling.usage_half_life_s) >= 0

    def _submit(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        for row in [rows] if isinstance(rows, Mapping) else rows:
            for workload in self._workloads(row):
                self.count += 1
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
        if "at_s" in step:
            self.now = START + step["at_s"]
            self.facts.append(facts.Tick(self.now))
        if "add_node" in step:
            added = step["add_node"]
            for row in added if isinstance(added, list) else [added]:
                self._add_node(row, self.now)
        if "submit" in step:
            self._submit(step["submit"])
        if "run_cycles" in step:
            self._clear()
            for _ in range(step["run_cycles"]):
                self.now += 1.0
                self.facts.append(facts.Tick(self.now))
                self._settle()
            return self._compare(step.get("expect") or {})
        return self._round(step.get("expect") or {}, patient=False)

    def _clear(self) -> None:
        self.evicted.clear()
        self.started.clear()
        self.reasons.clear()
        self.moved.clear()

    def _round(self, expect: Mapping[str, Any], patient: bool = True) -> tuple[list[str], dict[str, Any]]:
        self._clear()
        self._settle()
        delay = self.configuration.scheduling.preemption_delay_s
        if patient and delay:  # nobody says when: wait it out
            for _ in range(PASSES):
                before = sum(self.evicted.values()) + sum(self.started.values())
                self.now += delay
                self.facts.append(facts.Tick(self.now))
                self._settle()
                if before == sum(self.evicted.values()) + sum(self.started.values()):
                    break
        wrong, got = self._compare(expect)
        self.facts.append(facts.Tick(self.now))
        plan = turn(self.state, self._take(), self.policies)
        if plan.decisions:
            wrong.append(f"a further empty pass decides {[type(d).__name__ for d in plan.decisions]}")
        return wrong, got

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
            if not plan.decisions:
                return
        raise ValueError(f"has not come to rest after {PASSES} passes")

    def _carry_out(self, decision: decisions.Decision) -> None:
        if isinstance(decision, decisions.Launch):
            self.facts.append(facts.Bound(self.now, decision.gang, decision.attempt))
            self.started[self._base(decision.gang)] += 1
        elif isinstance(decision, (decisions.Preempt, decisions.Stop, decisions.Drain)):
            self.facts.append(facts.Released(self.now, decision.gang, decision.attempt))
            if isinstance(decision, decisions.Preempt):
                self.evicted[self._base(decision.gang)] += 1
                self.evicted_ever += 1
                self.reasons.append(decision.reason)
                self.moved[decision.gang] = None
        elif isinstance(decision, decisions.Resize):
            gang = self.state.gangs[decision.gang]
            size = size_of(gang.spec, decision.placement)
            self.facts.append(facts.Resized(self.now, decision.gang, decision.attempt, size))

    def _base(self, gang: str) -> str:
        return self.base[gang.rpartition("/")[0]]

    # ------------------------------------------------------------------ the verdict

    def _compare(self, expect: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        state = self.state
        running: Counter[str] = Counter()
        members: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for gang in state.gangs.values():
            name = self.base[gang.workload_id]
            if gang.is_active():
                running[name] += 1
                members[name] += gang.size
            elif gang.status is Status.QUEUED:
                waiting[name] += 1
        back = Counter(self.base[state.gangs[g].workload_id] for g in self.moved if state.gangs[g].is_active())
        evicted = Counter({name: count - back[name] for name, count in self.evicted.items() if count > back[name]})
        started = Counter({name: count - back[name] for name, count in self.started.items() if count > back[name]})
        usage = {q.name: self._number(state.use[q.name].gpus_milli / MILLI) if q.name in state.use else 0
                 for q in self.configuration.queues}  # fmt: skip
        got: dict[str, Any] = {
            "start": _listed(started), "evict": _listed(evicted), "wait": _listed(waiting), "usage": usage,
            "members": dict(members), "moved": sum(back.values()), "reasons": self._codes(),
        }  # fmt: skip
        wrong: list[str] = []

        def check(what: str, is_right: bool, want: object, have: object) -> None:
            if not is_right:
                wrong.append(f"{what}: expected {want}, got {have}")

        totals = {key for key in expect if key.startswith("final_")}
        if "start" in expect:
            want = _counted(expect["start"], started)
            check("start", want == started, dict(want), dict(started))
        elif not totals and ("wait" in expect or "evict" in expect) and "total_evictions_max" not in expect:
            check("start", not started, {}, dict(started))
        if (
            "evict" in expect
            or ("start" in expect and "migrate_count" not in expect)
            or "wait" in expect
            and not totals
        ):
            want = _counted(expect.get("evict") or [], evicted)
            check("evict", want == evicted, dict(want), dict(evicted))
        for name in expect.get("keep") or []:
            base, _, count = str(name).partition(":")
            kept = running[base] - started[base]
            check(f"keep {base}", kept >= int(count or 1) and not evicted[base], "running", f"{kept} running")
        for name in expect.get("wait") or []:
            base, _, count = str(name).partition(":")
            check(f"wait {base}", waiting[base] == int(count or waiting[base] or 1), count or "waiting", waiting[base])
        for name, value in (expect.get("final_usage") or {}).items():
            check(f"usage of {name}", usage.get(name, 0) == value, value, usage.get(name, 0))
        for name, value in (expect.get("final_running") or {}).items():
            check(f"running {name}", running[name] == value, value, running[name])
        for name, value in (expect.get("final_members") or {}).items():
            check(f"members of {name}", members[name] == value, value, members[name])
        if "migrate_count" in expect:
            check("moved", sum(back.values()) == expect["migrate_count"], expect["migrate_count"], sum(back.values()))
        if "total_evictions_max" in expect:
            most = expect["total_evictions_max"]
            check("evictions", self.evicted_ever <= most, f"at most {most}", self.evicted_ever)
        self._compare_words(expect, check, started)
        return wrong, got

    def _compare_words(self, expect: Mapping[str, Any], check: Any, started: Counter[str]) -> None:
        state = self.state
        have: Any
        reason = expect.get("reason")
        if isinstance(reason, str):
            codes = sorted(set(self.reasons)) if self.reasons else sorted(set(self._codes().values()))
            check("reason", reason in codes, reason, codes)
        elif isinstance(reason, Mapping):
            for name, code in reason.items():
                have = self._codes().get(name)
                check(f"reason of {name}", have == code or code in self.reasons, code, have)
        explain = expect.get("explain") or {}
        if explain:
            counts = {key: value for g in self._waiting() if g.reason for key, value in g.reason.counts}
            for domain, most in (explain.get("per_domain_max_members") or {}).items():
                have = next((v for key, v in counts.items() if key.split(" ")[-1] == domain), None)
                check(f"explain {domain}", have == most, most, have)
            if "needed" in explain:
                check(
                    "explain needed", counts.get("needed") == explain["needed"], explain["needed"], counts.get("needed")
                )
        if "held_gpus" in expect:
            held = sum(g.gpus_milli() for g in state.gangs.values() if self.base[g.workload_id] in self.order) / MILLI
            check("held GPUs", held == expect["held_gpus"], expect["held_gpus"], held)
        for name, seconds in (expect.get("planned_start_in_s") or {}).items():
            gang = next((g for g in self._waiting() if self.base[g.workload_id] == name), None)
            eta = gang.reason.eta - START if gang and gang.reason and gang.reason.eta is not None else None
            check(f"planned start of {name}", eta == seconds, seconds, eta)
        if "computed_share" in expect:
            shares = over_quota_weights(state) if self.configuration.scheduling.fair_share == GUARANTEE else {}
            for name, value in expect["computed_share"].items():
                have = shares.get(name)
                check(f"share of {name}", have is not None and abs(have - value) < 1e-6, value, have)
        nodes_of = {
            name: [p.node for g in state.gangs.values() if self.base[g.workload_id] == name for p in g.held]
            for name in (*started, *self.order)
        }  # fmt: skip
        for level, domain in (expect.get("placement_domain") or {}).items():
            pairs = domain.items() if isinstance(domain, Mapping) else [(level, domain)]
            names = [level] if isinstance(domain, Mapping) else [*started]
            for kind, wanted in pairs:
                have = sorted({str(state.nodes[n].node.domain(kind)) for name in names for n in nodes_of.get(name, [])})
                check(f"{kind}", have == [wanted], wanted, have)
        for name, where in (expect.get("placement") or {}).items():
            have = Counter(nodes_of[name]) if name in nodes_of else Counter(n for ns in nodes_of.values() for n in ns)
            if name not in nodes_of:  # {node: members} of the only job
                check(f"members on {name}", have[name] == where, where, have[name])
            elif isinstance(where, Mapping):
                check(f"placement of {name}", dict(have) == dict(where), where, dict(have))
            else:
                wanted_nodes = where if isinstance(where, list) else [where]
                check(f"placement of {name}", sorted(have) == sorted(wanted_nodes), where, sorted(have))

    def _waiting(self) -> list[GangState]:
        return [gang for gang in self.state.gangs.values() if gang.status is Status.QUEUED]

    def _codes(self) -> dict[str, str]:
        return {self.base[gang.workload_id]: gang.reason.code for gang in self._waiting() if gang.reason}

    @staticmethod
    def _number(value: float) -> float:
        return int(value) if value == int(value) else value


def _listed(counts: Mapping[str, int]) -> list[str]:
    return [name if count == 1 else f"{name}:{count}" for name, count in sorted(counts.items()) if count]


def _counted(names: Sequence[str], have: Counter[str]) -> Counter[str]:
    """ "job" is all of it that there is (at least one), "job:2" two of it."""
    counts: Counter[str] = Counter()
    for name in names:
        base, _, count = str(name).partition(":")
        counts[base] += int(count) if count else max(have[base], 1)
    return counts


def _configuration(scenario: Mapping[str, Any], policy: Mapping[str, Any]) -> Configuration:
    rows = scenario.get("queues") or [{"name": "default"}]
    parents = {row["parent"] for row in rows if row.get("parent")}
    listed = {row["name"] for row in rows}
    limited = any(key in row for row in rows for key in ("guaranteed", "max", "borrow_limit", "lend_limit"))
    queues = tuple(_queue(row, limited) for row in rows if row["name"] not in parents)
    cohorts = tuple(
        Cohort(row["name"], row.get("parent"), _quotas(row)) for row in rows if row["name"] in parents
    ) + tuple(Cohort(name) for name in sorted(parents - listed))
    reservations = tuple(_reservation(row) for row in scenario.get("reservations") or [])
    shorthand = "lower_priority" if policy.get("preempt") not in (None, False, "never", "off") else "never"
    rules = PreemptionRules(
        policy.get("preempt_within_queue", shorthand),
        policy.get("reclaim", shorthand),
        policy.get("preempt_while_borrowing", "never"),
        policy.get("preempt_while_borrowing_max_victim_prio"),
    )
    scheduling = Scheduling(
        order=policy.get("order", "priority"),
        fifo_scope=policy.get("fifo_scope", "per_queue"),
        backfill=_word(policy.get("backfill", "off")),
        preemption=rules,
        preemption_delay_s=policy.get("preemption_delay_s", 0.0),
        reclaim_min_runtime_s=policy.get("reclaim_min_runtime_s", 0.0),
        stale_gang_grace_s=policy.get("stale_gang_grace_s", 0.0),
        fair_share=policy.get("fair_share"),
        fair_preempt_rule=policy.get("fair_preempt_rule"),
        preempt_to_fair_share=policy.get("preempt_to_fair_share", False),
        protected_fraction=policy.get("protected_fraction", 0.0),
        drf_resources=tuple(policy.get("drf_resources", ("gpu",))),
        usage_half_life_s=policy.get("usage_half_life_s", 0.0),
        usage_k=policy.get("k", 0.0),
        usage_window_s=policy.get("window_s", 0.0),
        elastic=policy.get("elastic", False),
        consolidation=policy.get("consolidation", False),
        time_resolution_s=policy.get("time_resolution_s", 1.0),
    )
    return Configuration(1, queues, cohorts, reservations, scheduling=scheduling, policies=PLAIN)


def _word(value: Any) -> str:
    return "off" if value in (False, None) else str(value)  # YAML reads a bare `off` as false


def _queue(row: Mapping[str, Any], limited: bool) -> Queue:
    evictable = row.get("evictable", "yes")
    evictable = {True: "yes", False: "no"}.get(evictable, evictable)
    return Queue(
        row["name"],
        row.get("parent"),
        _quotas(row) if limited else (),
        weight=float(row.get("weight", 1.0)),
        overquota_weight=float(row["overquota_weight"]) if "overquota_weight" in row else None,
        evictable=evictable,
    )


def _quotas(row: Mapping[str, Any]) -> tuple[tuple[str, Quota], ...]:
    nominal = row.get("guaranteed", 0)
    flavors = list(nominal) if isinstance(nominal, Mapping) else ["*"]

    def of(key: str, flavor: str) -> int | None:
        value = row.get(key)
        value = value.get(flavor) if isinstance(value, Mapping) else value
        return None if value is None else parse_gpus_milli(value)

    made = []
    for flavor in flavors:
        own = of("guaranteed", flavor) or 0
        borrow = of("borrow_limit", flavor)
        most = of("max", flavor)
        if most is not None:
            borrow = min(most - own, borrow) if borrow is not None else most - own
        made.append((flavor, Quota(own, borrow, of("lend_limit", flavor))))
    return tuple(made)


def _reservation(row: Mapping[str, Any]) -> Reservation:
    return Reservation(
        row["name"],
        START + row.get("starts_in_s", 0),
        row.get("duration_s", 0),
        queue=row.get("queue"),
        users=tuple(row.get("users") or ()),
        flavor=row.get("flavor"),
        gpus_milli=parse_gpus_milli(row.get("gpus", 0)),
        nodes=tuple(row.get("nodes") or ()),
    )
