"""Compares what a scenario expects with what the core did: one sentence for each difference.

Looks at a run (scenarios.py) and changes nothing in it. Whatever a scenario does not list must not have happened:
nobody else may have started or been evicted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmsched.core.fair import GUARANTEE, Shares, over_quota_weights
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.status import Status

if TYPE_CHECKING:
    from llmsched.sim.scenarios import Run

Check = Callable[[str, bool, object, object], None]


def compare(run: Run, expect: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(what is wrong, what was got)."""
    state, seen = run.state, run.round
    running: Counter[str] = Counter()
    members: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    for gang in state.gangs.values():
        name = run.base[gang.workload_id]
        if gang.is_active():
            running[name] += 1
            members[name] += gang.size
        elif gang.status is Status.QUEUED:
            waiting[name] += 1
    back = Counter(run.name_of(gang) for gang in seen.moved if state.gangs[gang].is_active())
    evicted = Counter({name: count - back[name] for name, count in seen.evicted.items() if count > back[name]})
    started = Counter({name: count - back[name] for name, count in seen.started.items() if count > back[name]})
    usage = {
        queue.name: _plain(state.use[queue.name].gpus_milli / MILLI) if queue.name in state.use else 0
        for queue in run.configuration.queues
    }
    got: dict[str, Any] = {
        "start": _listed(started), "evict": _listed(evicted), "wait": _listed(waiting), "usage": usage,
        "members": dict(members), "moved": sum(back.values()), "reasons": _codes(run),
    }  # fmt: skip
    wrong: list[str] = []

    def check(what: str, is_right: bool, want: object, have: object) -> None:
        if not is_right:
            wrong.append(f"{what}: expected {want}, got {have}")

    totals = any(key.startswith("final_") for key in expect)
    names_somebody = "wait" in expect or "evict" in expect
    if "start" in expect:
        want = _counted(expect["start"], started)
        check("start", want == started, dict(want), dict(started))
    elif names_somebody and not totals and "total_evictions_max" not in expect:
        check("start", not started, {}, dict(started))
    if (
        "evict" in expect
        or ("start" in expect and not {"migrate_count", "final_usage"} & {*expect})
        or ("wait" in expect and not totals)
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
    for what, have in (("final_usage", usage), ("final_running", running), ("final_members", members)):
        for name, value in (expect.get(what) or {}).items():
            check(f"{what} of {name}", have.get(name, 0) == value, value, have.get(name, 0))
    if "migrate_count" in expect:
        check("moved", sum(back.values()) == expect["migrate_count"], expect["migrate_count"], sum(back.values()))
    if "total_evictions_max" in expect:
        most = expect["total_evictions_max"]
        check("evictions", run.evicted_ever <= most, f"at most {most}", run.evicted_ever)
    _reasons(run, expect, check)
    _shares(run, expect, check)
    _places(run, expect, check, started)
    return wrong, got


def _reasons(run: Run, expect: Mapping[str, Any], check: Check) -> None:
    """Why somebody waits or was evicted, what was counted, and when somebody is planned to start."""
    reason = expect.get("reason")
    if isinstance(reason, str):
        codes = sorted({*run.round.reasons, *_codes(run).values()})
        check("reason", reason in codes, reason, codes)
    elif isinstance(reason, Mapping):
        for name, code in reason.items():
            told = _codes(run).get(name)
            check(f"reason of {name}", told == code or code in run.round.reasons, code, told)
    explain = expect.get("explain") or {}
    counts = {key: value for gang in _waiting(run) if gang.reason for key, value in gang.reason.counts}
    for domain, most in (explain.get("per_domain_max_members") or {}).items():
        have = next((value for key, value in counts.items() if key.split(" ")[-1] == domain), None)
        check(f"explain {domain}", have == most, most, have)
    if "needed" in explain:
        check("explain needed", counts.get("needed") == explain["needed"], explain["needed"], counts.get("needed"))
    for name, seconds in (expect.get("planned_start_in_s") or {}).items():
        gang = next((gang for gang in _waiting(run) if run.base[gang.workload_id] == name), None)
        eta = gang.reason.eta - run.now if gang and gang.reason and gang.reason.eta is not None else None
        check(f"planned start of {name}", eta == seconds, seconds, eta)


def _shares(run: Run, expect: Mapping[str, Any], check: Check) -> None:
    """Shares as a fraction: over-quota weights corrected for past use, or what each queue has of the cluster."""
    if "computed_share" not in expect:
        return
    mode = run.configuration.scheduling.fair_share
    if mode == GUARANTEE:
        shares = over_quota_weights(run.state)
    else:
        held = Shares.of(run.state, mode or "drf_total")
        shares = {queue.name: held.of_queue(queue.name) for queue in run.configuration.queues}
    for name, value in expect["computed_share"].items():
        have = shares.get(name)
        check(f"share of {name}", have is not None and abs(have - value) < 1e-6, value, have)


def _places(run: Run, expect: Mapping[str, Any], check: Check, started: Counter[str]) -> None:
    """Who holds what, where: {job: node, [nodes] or {node: members}}, or {node: members} of the only job."""
    state = run.state
    if "held_gpus" in expect:
        held = sum(gang.gpus_milli() for gang in state.gangs.values() if run.base[gang.workload_id] in run.order)
        check("held GPUs", held / MILLI == expect["held_gpus"], expect["held_gpus"], held / MILLI)
    nodes_of: dict[str, list[str]] = {name: [] for name in (*started, *run.order)}
    for gang in state.gangs.values():
        if run.base[gang.workload_id] in nodes_of or run.base[gang.workload_id] in (expect.get("placement") or {}):
            nodes_of.setdefault(run.base[gang.workload_id], []).extend(placed.node for placed in gang.held)
    for level, domain in (expect.get("placement_domain") or {}).items():
        pairs = domain.items() if isinstance(domain, Mapping) else [(level, domain)]
        names = [level] if isinstance(domain, Mapping) else [*started]
        for kind, wanted in pairs:
            found = sorted({str(state.nodes[n].node.domain(kind)) for name in names for n in nodes_of.get(name, [])})
            check(f"{kind}", found == [str(wanted)], wanted, found)
    for name, where in (expect.get("placement") or {}).items():
        if name not in nodes_of:
            have = Counter(node for nodes in nodes_of.values() for node in nodes)
            check(f"members on {name}", have[name] == where, where, have[name])
            continue
        have = Counter(nodes_of[name])
        if isinstance(where, Mapping):
            check(f"placement of {name}", dict(have) == dict(where), where, dict(have))
        else:
            wanted_nodes = where if isinstance(where, list) else [where]
            check(f"placement of {name}", sorted(have) == sorted(wanted_nodes), where, sorted(have))


def _waiting(run: Run) -> list[GangState]:
    return [gang for gang in run.state.gangs.values() if gang.status is Status.QUEUED]


def _codes(run: Run) -> dict[str, str]:
    return {run.base[gang.workload_id]: gang.reason.code for gang in _waiting(run) if gang.reason}


def _plain(value: float) -> float:
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
