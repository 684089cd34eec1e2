"""The next run of each workload that has a schedule."""

from __future__ import annotations

from llmsched.core.decisions import RunAgain
from llmsched.core.message import say
from llmsched.core.plan import Plan
from llmsched.core.records import WorkloadState
from llmsched.core.scheduling_pass import Pass


def run(this: Pass) -> None:
    for name in this.state.scheduled:
        if this.plan.cut():
            return
        _next_run(this.plan, this.state.workloads[name])


def _next_run(plan: Plan, record: WorkloadState) -> None:
    """Begin the next run when its schedule is due; leave it out while the last one goes on, unless they may overlap."""
    due = record.next_run_at
    if due is None:
        return
    if not plan.has_come(due):
        return
    spec = record.workload
    if not record.is_due:
        plan.decisions.append(RunAgain(spec.id, spec.run))
    elif spec.overlap == "skip" and not record.outcome:
        plan.decisions.append(RunAgain(spec.id, spec.run, say("schedule.skipped", run=spec.run)))
    else:
        plan.decisions.append(RunAgain(spec.id, spec.run + 1))
