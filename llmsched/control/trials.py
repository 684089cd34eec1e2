"""What is known of a search (`kind: tune`): its totals before it runs, its trials as they stand, and the best of them.

All of it is read from the journal and the last numbers of each trial. Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from llmsched.control.lookup import child_name, child_named, spec_of
from llmsched.control.refusals import checked
from llmsched.core.commands import Submit
from llmsched.core.records import WorkloadState
from llmsched.core.render import Names, text
from llmsched.core.resources import MILLI
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import RequestError
from llmsched.spec import parcel, trial_models
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json
from llmsched.spec.tune import GOES_ON_FROM, TuneSpec, readings, trial, values_of

HOW = {
    "fifo": "each to its end",
    "asha": "poor ones are stopped early (asha)",
    "median": "those below the median are stopped (median)",
    "pbt": "the worst go on from the best (pbt)",
}
_NO_TRIAL = "trial"  # who stands in for all is none of t1, t2 ...: those may be there, and may have ended
_NEEDS = ("resources", "workers")  # what a trial asks of the cluster, of what a space may change
Numbers = Callable[[WorkloadState], Mapping[str, Mapping[str, Any]]]


def is_search(workload: Workload) -> bool:
    return workload.kind == "tune"


def stand_in(search: Workload, values: Mapping[str, Any] = MappingProxyType({})) -> Workload:
    """A trial of it, as far as a trial is like all others; `values` are at these paths of its space."""
    made = compile_workload(load_json(trial(spec_of(search), "t1", values)))
    placed = replace(made, queue=search.queue, user=search.user, priority=search.priority, after=())
    return replace(placed, id=child_name(search, _NO_TRIAL), name=child_name(search, "t1"))


def stand_ins(search: Workload) -> list[tuple[str, Workload]]:
    """A trial for each thing that trials read, with the values that it is because of, in words."""
    spec = parcel.read(search.parcel).spec
    found = readings(spec_of(search), spec.tune.space) if isinstance(spec, TuneSpec) else []
    return [(each.why, stand_in(search, each.values)) for each in found] or [("", stand_in(search))]


def check(state: State, search: Workload, names: Names) -> None:
    """Raises RequestError where no trial could ever start, or none with one of the values for what trials need."""
    if not is_search(search):
        return
    checked(state, Submit(state.now, stand_in(search)), names)
    for (path, value), made in _that_need_other_things(search):
        try:
            checked(state, Submit(state.now, made), names)
        except RequestError as error:
            where = f"tune.space.{path}: {json.dumps(value)}"
            raise RequestError(f"{where}: {error.message}", code=error.code, hint=error.hint) from None


def _that_need_other_things(search: Workload) -> list[tuple[tuple[str, Any], Workload]]:
    """A trial for each value of the space that changes what a trial needs of the cluster."""
    spec = parcel.read(search.parcel).spec
    space = spec.tune.space if isinstance(spec, TuneSpec) else {}
    needs = [(path, one) for path, one in space.items() if path.partition(".")[0] in _NEEDS]
    return [((path, value), stand_in(search, {path: value})) for path, one in needs for value in one.extremes()]


def totals(search: Workload) -> list[str]:
    """How much it is, for people."""
    spec = parcel.read(search.parcel).spec
    if not is_search(search) or not isinstance(spec, TuneSpec):
        return []
    tune, sizes = spec.tune, [stand_in(search), *(made for _, made in _that_need_other_things(search))]
    wanted = [[max(size * option.resources.gpus_milli for option in one.groups[0].options) / MILLI
               for size in (one.min_size, one.max_size)] for one in sizes]  # fmt: skip
    gpus = min(least for least, _ in wanted), max(most for _, most in wanted)
    each = "no GPU" if not gpus[1] else f"{gpus[0]:g} GPU" if gpus[0] == gpus[1] else f"{gpus[0]:g} to {gpus[1]:g} GPUs"
    trials = f"{tune.total} trial{'' if tune.total == 1 else 's'}"
    most = f": at most {gpus[1] * tune.at_once:g} GPUs" if gpus[1] else ""
    lines = [f"{trials}, at most {tune.at_once} at once, each with {each}{most}"]
    if tune.metric is not None:
        lines.append(f"the result is of the one with the {tune.mode}imum {tune.metric}; {HOW[tune.scheduler]}")
    return lines


def table(state: State, search: WorkloadState, numbers: Numbers, names: Names) -> trial_models.TrialTable:
    """The best first, then those without a value. Raises RequestError for what is no search."""
    workload = search.workload
    if not is_search(workload):
        raise RequestError(f"{workload.id} is no search, and has no trials.", code="no_trials", http_status=409)
    spec = spec_of(workload)
    tune = spec["tune"]
    read = parcel.read(workload.parcel).spec
    rows: list[trial_models.TrialView] = []
    while (found := child_named(state, workload, f"t{len(rows) + 1}")) is not None:
        rows.append(_row(f"t{len(rows) + 1}", found, spec, numbers(found), names))
    sign = 1 if tune["mode"] == "min" else -1
    in_order = sorted(rows, key=lambda one: (one.value is None, sign * (one.value or 0.0)))
    ended = [one for one in in_order if one.phase == "succeeded" and one.value is not None]
    return trial_models.TrialTable(
        id=workload.id,
        phase=search.phase,  # type: ignore[arg-type]  # the same words
        metric=tune["metric"],
        mode=tune["mode"],
        total=max(len(rows), read.tune.total if isinstance(read, TuneSpec) else 0),
        paths=list(tune["space"]),
        best=ended[0].name if ended else None,
        trials=in_order if tune["metric"] is not None else rows,
    )


def _row(
    name: str, found: WorkloadState, search: Mapping[str, Any], numbers: Mapping[str, Mapping[str, Any]], names: Names
) -> trial_models.TrialView:
    tune = search["tune"]
    told = next((numbers[gang] for gang in found.gangs if gang in numbers), {})
    value = {**told, **found.metrics}.get(tune["metric"])
    step = told.get(tune["scheduler_args"]["time_attr"])
    donor, _, at = dict(found.workload.labels).get(GOES_ON_FROM, "").partition("/")
    return trial_models.TrialView(
        name=name,
        id=found.workload.id,
        phase=found.phase,  # type: ignore[arg-type]  # the same words
        values=values_of(search, spec_of(found.workload)),
        value=float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None,
        step=float(step) if isinstance(step, (int, float)) and not isinstance(step, bool) else None,
        gpu_hours=sum(gang.served_gpu_s for gang in found.known.values() if gang.id in found.gangs) / 3600,
        message="stopped early" if _is_stopped(found) else text(found.message, names),
        goes_on_from=donor or None,
        goes_on_at=int(at) if donor else None,
    )


def _is_stopped(found: WorkloadState) -> bool:
    """By the search."""
    return found.outcome == "cancelled" and found.message is not None and found.message.code == "ended_by"
