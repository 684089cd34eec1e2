"""From the options of `llmsched sim run` to a configuration: what a flag means is said here and nowhere else.

Without a file the cluster has one queue per name in the trace and no quota. Rules that a flag does not touch stay as
the file has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmsched.core.configuration import Configuration, PolicyNames, PreemptionRules, Scheduling
from llmsched.errors import SpecError
from llmsched.sim.simulator import with_queues
from llmsched.sim.traces.job import Job
from llmsched.spec.cluster import load
from llmsched.spec.compile import compile_configuration
from llmsched.spec.document import MAX_BYTES

QUANTUM_S = 120.0  # between two rankings of who runs, when nothing else is said
IN_ORDER = ("fifo", "priority")  # orderings that start work in turn and, unless told so, evict nobody


def configuration(
    jobs: Sequence[Job],
    *,
    file: Path | None = None,
    ordering: str | None = None,
    elasticity: str | None = None,
    backfill: str | None = None,
    preempt: bool | None = None,
    quantum_s: float | None = None,
    restart_cost_s: float = 0.0,
) -> Configuration:
    """The file's configuration, or the default one, under the flags. Raises SpecError for a bad file."""
    base = _of_file(file) if file is not None else Configuration(policies=PolicyNames(), scheduling=Scheduling())
    names = base.policies
    if ordering is not None:
        names = names._replace(ordering=ordering)
    if elasticity is not None:
        names = names._replace(elasticity=elasticity)
    scheduling = base.scheduling
    ranked = preempt if preempt is not None else names.ordering not in IN_ORDER
    if file is None or preempt is not None or ordering is not None:
        scheduling = _ranked(scheduling, quantum_s) if ranked else _in_turn(scheduling, names.ordering)
    if preempt is False:  # nobody is evicted for anything; work stays preemptible, or it could not borrow
        scheduling = replace(scheduling, preemption=PreemptionRules())
    if quantum_s is not None:
        scheduling = replace(scheduling, quantum_s=quantum_s)
    if backfill is not None:
        scheduling = replace(scheduling, backfill=backfill)
    scheduling = replace(scheduling, restart_cost_s=restart_cost_s)
    return with_queues(replace(base, policies=names, scheduling=scheduling), jobs)


def _ranked(scheduling: Scheduling, quantum_s: float | None) -> Scheduling:
    """Whoever ranks higher runs: re-ranked every quantum, and whoever does not fit lets others pass."""
    rules = scheduling.preemption._replace(within_queue="by_rank")
    return replace(scheduling, order="best_effort", preemption=rules, quantum_s=scheduling.quantum_s or QUANTUM_S)


def _in_turn(scheduling: Scheduling, ordering: str) -> Scheduling:
    """Nobody is evicted inside a queue; with fifo nobody overtakes either, but for what backfill allows."""
    order = "strict_fifo" if ordering == "fifo" else scheduling.order
    never: PreemptionRules = scheduling.preemption._replace(within_queue="never")
    return replace(scheduling, order=order, preemption=never)


def _of_file(file: Path) -> Configuration:
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)  # a longer one is refused by whoever reads it
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}.", where=str(file)) from None
    return compile_configuration(load(text, str(file)), 1)
