"""`plan`: what would happen to each workload of a file if it were applied now. Asks the core; changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llmsched.control import calls, data_files, endpoint_names, outputs, prefills, reads, reasons, trials
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.dispatch import artifact_of, is_result
from llmsched.control.drafts import (
    Draft,
    check_change,
    check_outside,
    check_permissions,
    differences,
    draft,
    is_in_place,
    is_same,
    sorted_by_need,
)
from llmsched.control.gpu_memory import Verdict, judge, source_of
from llmsched.control.lookup import newest_run, spec_of
from llmsched.control.refusals import checked
from llmsched.control.turns import breathe
from llmsched.control.vault import Secrets
from llmsched.core import scaling
from llmsched.core.commands import Submit
from llmsched.core.records import amount_of
from llmsched.core.render import Names, text
from llmsched.core.resources import MILLI, ZERO
from llmsched.core.scheduler import rests
from llmsched.core.snapshot import freeze
from llmsched.core.state import State
from llmsched.core.whatif import Forecast, forecast_from
from llmsched.core.workload import Placement, Workload
from llmsched.errors import RequestError
from llmsched.policies import registry
from llmsched.spec import http_models
from llmsched.spec.compile import Compiled


async def plan(
    state: State, specs: Sequence[Compiled], person: Person, reader: Person, secrets: Secrets, now: float
) -> list[http_models.Planned]:
    """One of each spec, in order, as if `person` submitted it at `now`; told to `reader`. What would be refused says
    so; the others are planned as if it were not there."""
    permissions = Permissions(person, state.configuration)
    names = KnownNames(state, Permissions(reader, state.configuration))
    drafts = await draft(state, specs, permissions)
    in_file = {workload.id for workload, _ in drafts}
    refusals: dict[str, RequestError] = {}
    accepted: list[Draft] = []
    file = [each.workload for each in drafts]
    taken = endpoint_names.Taken(state, file)
    for each in drafts:
        await breathe()
        workload = each.workload
        if is_same(each):
            continue  # nothing would be asked of the core
        others = tuple(name for name in workload.after if name not in in_file)
        try:
            check_permissions(state, workload, others, permissions)
            taken.check(workload, permissions)
            check_outside(workload, secrets, state.configuration.notify_hosts)
            calls.check(state, workload, file, permissions)
            prefills.check(state, workload, file)
            reads.check(state, workload, file, permissions)
            outputs.check(state, workload, file, permissions)
            check_change(state, each)
            trials.check(state, workload, names)
            checked(state, Submit(state.now, replace(workload, after=others)), names)
        except RequestError as error:
            refusals[workload.id] = error
        else:
            accepted.append(each)
    ready = [workload for workload, _ in sorted_by_need(accepted)]
    forecasts: dict[str, list[Forecast]] = {workload.id: [] for workload in ready}
    in_place = [each.workload.id for each in accepted if is_in_place(each)]
    ahead: list[Forecast] = []
    if ready:  # in a thread, on a copy: thinking ahead takes its time, and nobody else is to wait for it
        policies = registry.load(state.configuration.policies)
        world, is_quiet = freeze(state), rests(state, policies)
        ahead = await asyncio.to_thread(forecast_from, world, state.archive, ready, policies, in_place, is_quiet, now)
    for gang in ahead:
        forecasts[gang.gang.rpartition("/")[0]].append(gang)
    planned = []
    for each in drafts:
        await breathe()
        name, publish = each.workload.id, each.workload.publish
        endpoint = _endpoint_of(state, drafts, publish.to, permissions) if publish is not None else None
        planned.append(_planned(state, each, refusals.get(name), forecasts.get(name, []), endpoint, names))
        if name not in refusals:
            planned[-1].warnings += prefills.warnings(state, each.workload, file)
    return planned


async def memory_of(state: State, specs: Sequence[Compiled], person: Person, *, again: bool = False) -> list[Verdict]:
    """What each would need of a GPU's memory, and what is wrong with its files. These are read in a thread or a process
    of their own; `state` is read before."""
    asked: list[tuple[int, str, Workload, dict[str, Any], str | None]] = []
    permissions = Permissions(person, state.configuration)
    drafts = await draft(state, specs, permissions, again=again)
    in_file = {workload.id for workload, _ in drafts}
    for index, each in enumerate(drafts):
        await breathe()
        workload, known = each.workload, not is_same(each) and _may(state, each.workload, in_file, permissions)
        # Of a search: what its trials need, and read.
        found = trials.stand_ins(workload) if known and trials.is_search(workload) else [("", workload)]
        for why, made in found:
            made = replace(made, after=workload.after)
            # What is the same was judged when it came; for what will be refused nothing is read.
            data = spec_of(made) if known else {"kind": ""}
            asked.append((index, why, made, data, _place_of(state, made, source_of(data))))
    if any(where for *_, where in asked):
        verdicts = await asyncio.to_thread(lambda: [judge(*each[2:]) for each in asked])
    else:
        verdicts = [judge(*each[2:]) for each in asked]
    judged: list[list[Verdict]] = [[] for _ in drafts]
    for verdict, (index, why, workload, data, _) in zip(verdicts, asked, strict=True):
        seen = await data_files.look(verdict, workload, data, begins=drafts[index].known is None)
        judged[index].append(seen.of_trials(why))
    return [Verdict.of_all(each) for each in judged]


def _may(state: State, workload: Workload, in_file: Collection[str], permissions: Permissions) -> bool:
    try:
        check_permissions(state, workload, [name for name in workload.after if name not in in_file], permissions)
    except RequestError:
        return False
    return True


async def memory_of_known(state: State, workload: Workload) -> Verdict:
    """The same of one that was submitted before."""
    data = spec_of(workload)
    where = _place_of(state, workload, source_of(data)) if data else None
    return await asyncio.to_thread(judge, workload, data, where) if data else Verdict()


def _place_of(state: State, workload: Workload, source: str | None) -> str | None:
    if source is None or not is_result(source):
        return source
    try:
        return artifact_of(state, workload, source)
    except RequestError:
        return None


def tell_memory(planned: http_models.Planned, verdict: Verdict) -> http_models.Planned:
    """With what the memory says; a refusal for another reason stays."""
    planned.memory_needed_bytes = verdict.needed
    planned.warnings += verdict.warnings
    planned.reads += verdict.notes
    if verdict.refusal is not None and planned.outcome not in ("refused", "unchanged"):
        planned.outcome, planned.reason = "refused", _refused(verdict.refusal)
        planned.starts_now, planned.size, planned.placement, planned.others = False, 0, [], []
    return planned


async def check_memory(state: State, specs: Sequence[Compiled], person: Person, *, again: bool) -> None:
    """Raises RequestError for the first that no GPU it asks for can ever hold, or whose files cannot be used."""
    for verdict in await memory_of(state, specs, person, again=again):
        if verdict.refusal is not None:
            raise verdict.refusal


def _refused(error: RequestError) -> http_models.ReasonView:
    return http_models.ReasonView(code=error.code, message=error.message, next_change=error.hint)


def _planned(
    state: State,
    draft: Draft,
    refusal: RequestError | None,
    forecasts: list[Forecast],
    endpoint: Workload | None,
    names: Names,
) -> http_models.Planned:
    """`endpoint` is what it publishes to, if that is known."""
    workload, known = draft
    planned = _sizes(workload)
    if refusal is not None:
        planned.outcome = "refused"
        planned.reason = _refused(refusal)
        return planned
    planned.reads = trials.totals(workload)
    if known is not None:
        planned.outcome = "unchanged" if is_same(draft) else "changed"
        planned.diff = differences(draft)
        planned.in_place = planned.outcome == "changed" and is_in_place(draft)
        planned.rolls_out = planned.outcome == "changed" and workload.kind == "serve" and not is_in_place(draft)
    starting = [gang for gang in forecasts if gang.starts_now]
    planned.starts_now = bool(starting)
    planned.size = len(starting) if workload.kind == "serve" else sum(gang.size for gang in starting)
    planned.placement = [view for gang in starting for view in _placed(state, workload, gang.placement or ())]
    planned.reason = next(
        (reasons.view(gang.reason, names) for gang in forecasts if not gang.starts_now and gang.reason), None
    )
    others = dict.fromkeys(each for gang in forecasts for each in gang.others)
    planned.others = [reasons.sentence(each, names) for each in others]
    if known is not None and workload.slo is not None and not known.outcome:
        said = scaling.about_target(replace(known, workload=workload))
        if said is not None and said.code in scaling.NOT_REACHABLE:
            planned.warnings.append(text(said, names))
    if workload.publish is not None and planned.outcome != "unchanged":
        planned.warnings += _publish_warnings(workload, endpoint)
    return planned


def _endpoint_of(state: State, drafts: Sequence[Draft], name: str, permissions: Permissions) -> Workload | None:
    """The endpoint a publish would reach: one of the same file, or the newest that is known and may be seen."""
    mine = next((workload for workload, _ in drafts if workload.name == name), None)
    known = newest_run(state, name)
    return mine or (known.workload if known is not None and permissions.sees(known.workload) else None)


def _publish_warnings(workload: Workload, endpoint: Workload | None) -> list[str]:
    """What will keep the result from going live, as far as it shows now. A warning: the endpoint may still come."""
    publish = workload.publish
    assert publish is not None
    where = f'publish.to: "{publish.to}"'
    if endpoint is None:
        return [f"{where} is no endpoint of yours yet; its result goes live once a serve workload of that name is"]
    serve = spec_of(endpoint).get("serve") or {}
    if endpoint.kind != "serve":
        return [f"{where} is a {endpoint.kind} workload, not an endpoint: nothing will go live there"]
    if not serve.get("model"):
        return [f"{where} serves an app of its own, not a model: nothing will go live there"]
    train = spec_of(workload).get("train") or {}
    if serve.get("task") and train.get("task") and train.get("base_model") and serve["task"] != train["task"]:
        return [f"{where} serves {serve['task']}, and this trains {train['task']}"]
    if publish.kind == "adapter":
        return _adapter_warnings(where, train, serve["model"].get("source"))
    return []


def _adapter_warnings(where: str, train: Mapping[str, Any], source: str | None) -> list[str]:
    base = train.get("base_model")
    if base is not None and source is not None and source != base and not is_result(source) and not is_result(base):
        return [f"{where} serves {source}, and this is an adapter of {base}: they may not fit together"]
    return []


def _sizes(workload: Workload) -> http_models.Planned:
    first, *rest = (group.options[0].resources.times(group.count) for group in workload.groups)
    each = workload.groups[0].options[0].resources
    beside = ZERO
    for amount in rest:
        beside = beside.plus(amount)
    is_serve = workload.kind == "serve"
    at_min = first.plus(beside).times(workload.min_replicas) if is_serve else each.times(workload.min_size).plus(beside)
    at_max = first.plus(beside).times(workload.max_replicas) if is_serve else each.times(workload.max_size).plus(beside)
    return http_models.Planned(
        id=workload.id,
        name=workload.name,
        kind=workload.kind,
        queue=workload.queue,
        min_size=workload.min_replicas if is_serve else workload.min_size,
        max_size=workload.max_replicas if is_serve else workload.max_size,
        each=reasons.amounts(each),
        at_min=reasons.amounts(at_min),
        at_max=reasons.amounts(at_max),
    )


def _placed(state: State, workload: Workload, placement: Placement) -> list[http_models.PlacedView]:
    views: dict[str, http_models.PlacedView] = {}
    for placed in placement:
        there = state.nodes.get(placed.node)
        if there is None:
            continue  # it left while this was thought through
        node = there.node
        view = views.setdefault(
            node.id, http_models.PlacedView(node=node.id, name=node.name or node.id, flavor=node.flavor, bundles=0)
        )
        view.bundles += 1
        view.gpus += amount_of(workload, placed).gpus_milli / MILLI
    return list(views.values())
