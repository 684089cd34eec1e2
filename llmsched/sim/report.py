"""The figures of a run: one JSON object, one table. Definitions are in the functions; plots are in plots.py.

JCT is finish minus submit; wait is JCT minus the time holding GPUs (restarts included); makespan is last finish minus
first submit. Finish-time fairness (FTF) of a job, after Shockwave (NSDI 2023): JCT / (run time alone x max(1, jobs in
the trace / GPUs)); a job above 1.05 was treated unfairly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llmsched.sim import endpoints
from llmsched.sim.provider import bill
from llmsched.sim.simulator import Run

UNFAIR_ABOVE = 1.05
QUEUES_SHOWN = 20


def figures(run: Run) -> dict[str, Any]:
    """Every figure by name; times in seconds, None where no job finished."""
    options = run.options
    done = [outcome for outcome in run.outcomes if outcome.finished_s is not None]
    jct = sorted(o.finished_s - o.job.submit_s for o in done if o.finished_s is not None)
    wait = sorted(o.finished_s - o.job.submit_s - o.served_s for o in done if o.finished_s is not None)
    first = min((o.job.submit_s for o in run.outcomes), default=0.0)
    makespan = max((o.finished_s for o in done if o.finished_s is not None), default=first) - first
    span = makespan if len(done) == len(run.outcomes) else run.ended_s - first
    there = bill(run.stays, first, first + span)
    gpus = there.peak_gpus
    contention = max(1.0, len(run.outcomes) / max(gpus, 1))
    ftf = [(o.finished_s - o.job.submit_s) / (o.job.duration_s * contention) for o in done if o.finished_s is not None]
    held_s = sum(o.gpu_s for o in run.outcomes) + sum(run.replica_gpu_s.values())
    lost_s = sum(o.lost_gpu_s for o in run.outcomes)
    turns = sorted(run.turn_s)
    estimates = options.estimates
    told = {"error": f"run times times a random factor in {1 - estimates.spread:g}..{1 + estimates.spread:g}"}.get(
        estimates.kind,
        {"exact": "exact run times", "none": "no run times", "column": "the trace's estimates"}.get(estimates.kind, ""),
    )
    if estimates.steps and estimates.kind != "none" and any(o.job.steps for o in run.outcomes):
        told += ", numbers of steps"
    if any(o.job.model for o in run.outcomes):
        told += ", models by name"
    return {
        "jobs": len(run.outcomes),
        "finished": len(done),
        "avg_jct_s": _mean(jct),
        "p50_jct_s": quantile(jct, 0.5),
        "p99_jct_s": quantile(jct, 0.99),
        "avg_wait_s": _mean(wait),
        "p99_wait_s": quantile(wait, 0.99),
        "makespan_s": _round(makespan),
        "gpu_hours": _round(held_s / 3600),
        "lost_gpu_hours": _round(lost_s / 3600),
        "utilisation": _round(held_s / (there.gpu_hours * 3600), 4) if there.gpu_hours > 0 else 0.0,
        "worst_ftf": _round(max(ftf), 4) if ftf else None,
        "unfair_pct": _round(100 * sum(value > UNFAIR_ABOVE for value in ftf) / len(ftf), 2) if ftf else None,
        "preemptions": run.preemptions,
        "resizes": run.resizes,
        "quota_violations": run.quota_violations,
        "node_losses": run.node_losses,
        "nodes_asked": run.nodes_asked,
        "nodes_released": run.nodes_released,
        "peak_nodes": there.peak_nodes,
        "node_hours": _round(there.node_hours),
        "cost": _round(there.cost, 2),
        "peak_price_per_hour": _round(there.peak_price_per_hour, 2),
        "turns": len(turns),
        "turn_p50_ms": _ms(quantile(turns, 0.5)),
        "turn_p95_ms": _ms(quantile(turns, 0.95)),
        "turn_p99_ms": _ms(quantile(turns, 0.99)),
        "turn_max_ms": _ms(turns[-1] if turns else None),
        "wall_s": _round(run.wall_s),
        "gpus": gpus,
        "policies": options.configuration.policies._asdict(),
        "told": told,
        "paid": _paid(run),
        "preemptive": options.configuration.scheduling.preemption.within_queue != "never",
        "quantum_s": options.configuration.scheduling.quantum_s,
        "backfill": options.configuration.scheduling.backfill,
        "seed": options.seed,
        "queues": _queues(run),
        "endpoints": _endpoints(run),
        "used": _used(run, there.gpu_hours * 3600),
        "unfinished": [{"job": o.job.id, "why": o.why} for o in run.outcomes if o.finished_s is None][:20],
        "digest": run.digest,
    }


def _paid(run: Run) -> str:
    options = run.options
    said = f"{options.restart_cost_s:g} s at every start and change of size, {options.leave_s:g} s to leave"
    own = sum(bool(each.job.start_s or each.job.leave_s) for each in run.outcomes)
    return f"{said}; {own:,} jobs have figures of their own in the trace" if own else said


def _endpoints(run: Run) -> dict[str, dict[str, float | int | None]]:
    """What became of the requests to each, and what that took. `late`: waited for longer than their patience; `missed`:
    took longer than its target says, where it has one; `missed_windows`: five minutes whose 95th percentile did;
    `handover`: from asking for a replica until it answers; `busy_gpu_hours`: what the requests in hand filled."""
    found: dict[str, dict[str, float | int | None]] = {}
    for server in run.servers:
        name, handovers = server.endpoint.workload.id, sorted(server.handovers)
        slo = server.endpoint.workload.slo
        found[name] = {
            "requests": server.requests,
            "late": server.late,
            "late_pct": _round(100 * server.late / max(server.requests, 1), 4),
            "missed_windows_pct": None
            if slo is None
            else _round(100 * server.missed_windows / max(server.windows, 1), 4),
            "missed_pct": None if slo is None else _round(100 * server.missed / max(server.requests, 1), 4),
            "wait_p95_s": endpoints.quantile(server.waits, 0.95),
            "wait_p99_s": endpoints.quantile(server.waits, 0.99),
            "gpu_hours": _round(run.replica_gpu_s.get(name, 0.0) / 3600),
            "busy_gpu_hours": _round(server.busy_s / 3600),
            "most_replicas": server.most,
            "new_replicas": len(handovers),
            "handover_p50_s": quantile(handovers, 0.5),
            "handover_p95_s": quantile(handovers, 0.95),
        }
    return found


def _used(run: Run, there_s: float) -> float:
    """The share of the GPUs' time in which they did something that was asked for: jobs that run, without their
    restarts, and the share of each replica that its requests filled."""
    busy_s = sum(o.gpu_s - o.lost_gpu_s for o in run.outcomes) + sum(server.busy_s for server in run.servers)
    return _round(busy_s / there_s, 4) if there_s > 0 else 0.0


def _queues(run: Run) -> dict[str, dict[str, float | int | None]]:
    """The figures people compare between teams, by queue."""
    found: dict[str, dict[str, float | int | None]] = {}
    for name in sorted({each.job.queue for each in run.outcomes}):
        jct, wait = [], []
        mine = [each for each in run.outcomes if each.job.queue == name]
        for each in mine:
            if each.finished_s is not None:
                jct.append(each.finished_s - each.job.submit_s)
                wait.append(each.finished_s - each.job.submit_s - each.served_s)
        found[name] = {
            "jobs": len(mine),
            "finished": len(jct),
            "avg_jct_s": _mean(jct),
            "avg_wait_s": _mean(wait),
            "gpu_hours": _round(sum(each.gpu_s for each in mine) / 3600),
        }
    return found


def quantile(ordered: Sequence[float], q: float) -> float | None:
    """Nearest rank of a sorted list: the smallest value with at least a share q at or below it."""
    if not ordered:
        return None
    return _round(ordered[max(0, math.ceil(q * len(ordered)) - 1)], 6)


def table(found: dict[str, Any]) -> str:
    """The figures people look at first, two columns."""
    rows = [
        ("jobs finished", f"{found['finished']:,} of {found['jobs']:,}"),
        ("average job completion time", duration(found["avg_jct_s"])),
        ("  median, p99", f"{duration(found['p50_jct_s'])}, {duration(found['p99_jct_s'])}"),
        ("average wait, p99", f"{duration(found['avg_wait_s'])}, {duration(found['p99_wait_s'])}"),
        ("makespan", duration(found["makespan_s"])),
        ("GPU hours held", f"{found['gpu_hours']:,.1f} ({found['lost_gpu_hours']:,.1f} of them lost to restarts)"),
        ("utilisation", f"{100 * found['utilisation']:.1f} % of {found['gpus']:,} GPUs"),
        ("worst finish-time fairness", f"{found['worst_ftf']} ({found['unfair_pct']} % of jobs above {UNFAIR_ABOVE})"),
        ("preemptions, resizes", f"{found['preemptions']:,}, {found['resizes']:,}"),
        ("quota violations", str(found["quota_violations"])),
        ("turns", f"{found['turns']:,}: p50 {found['turn_p50_ms']} ms, p99 {found['turn_p99_ms']} ms"),
        ("wall time", f"{found['wall_s']:.1f} s"),
        ("the scheduler was told", found["told"]),
        ("and paid", found["paid"]),
        ("ordering, elasticity", f"{found['policies']['ordering']}, {found['policies']['elasticity']}"),
        ("digest", found["digest"][:16]),
    ]
    if found["nodes_asked"] or found["cost"]:
        asked, given = found["nodes_asked"], found["nodes_released"]
        hours, dearest = found["node_hours"], found["peak_price_per_hour"]
        rows[7:7] = [
            ("nodes", f"at most {found['peak_nodes']:,}; {asked:,} asked for, {given:,} given back"),
            ("cost", f"{found['cost']:,.2f} for {hours:,.1f} node hours; at most {dearest:,.2f} an hour"),
        ]
    for name, each in found["endpoints"].items():
        soon, late = duration(each["handover_p50_s"]), duration(each["handover_p95_s"])
        hours, busy = each["gpu_hours"], each["busy_gpu_hours"]
        missed = "" if each["missed_pct"] is None else f", {each['missed_pct']} % over its target"
        rows += [
            (
                f"endpoint {name}",
                f"{each['requests']:,} requests, {each['late_pct']} % late{missed}; p99 waited {each['wait_p99_s']} s",
            ),
            ("  its replicas", f"at most {each['most_replicas']}; {hours:,.1f} GPU hours, {busy:,.1f} of them filled"),
            ("  a new one answers", f"{soon} after it is asked for, p95 {late} ({each['new_replicas']:,})"),
        ]
    if found["endpoints"]:
        rows.append(("used", f"{100 * found['used']:.1f} % of all GPU hours: jobs less restarts, requests in hand"))
    if len(found["queues"]) > 1:
        rows += [
            (
                f"queue {name}",
                f"{each['jobs']:,} jobs, average {duration(each['avg_jct_s'])}, wait {duration(each['avg_wait_s'])}",
            )
            for name, each in list(found["queues"].items())[:QUEUES_SHOWN]
        ]
    if found["unfinished"]:
        rows.insert(1, ("did not finish", "; ".join(f"{row['job']}: {row['why']}" for row in found["unfinished"][:3])))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def duration(seconds: float | None) -> str:
    """2,584 s (43 min): the exact number, and one people can picture."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:,.1f} s"
    if seconds < 7200:
        return f"{seconds:,.0f} s ({seconds / 60:.0f} min)"
    if seconds < 172_800:
        return f"{seconds:,.0f} s ({seconds / 3600:.1f} h)"
    return f"{seconds:,.0f} s ({seconds / 86_400:.1f} days)"


def _mean(values: Sequence[float]) -> float | None:
    return _round(sum(values) / len(values)) if values else None


def _round(value: float, digits: int = 3) -> float:
    return round(value, digits)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
