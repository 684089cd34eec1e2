"""State and progress -> wire models. Pure: the same state gives the same answer, and is left as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isinf
from typing import Any

from llmsched.api import event_text, logs
from llmsched.control import readers, reasons
from llmsched.control.authorization import KnownNames, Permissions
from llmsched.core import decisions, draining, facts, rollout, scaling
from llmsched.core.capacity import NodeState
from llmsched.core.message import GANG, NODE, Message, Quote, Ref, say
from llmsched.core.node_types import accelerator_of, price_of
from llmsched.core.records import GangState, WorkloadState, amount_of, excess_ends, size_of, total_of
from llmsched.core.render import Names, refer, text
from llmsched.core.reservation import window
from llmsched.core.resources import MILLI, Resources
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows, nodes_of_row
from llmsched.core.workload import Placement, Workload
from llmsched.spec import http_models, node_models
from llmsched.spec.decompile import cluster_file_of

Progress = Mapping[str, Mapping[str, Any]]
Entries = Iterable[tuple[int, float, Any]]


# --- workloads --------------------------------------------------------------------------------------------------


def workload(state: State, found: WorkloadState, progress: Progress, names: Names) -> http_models.WorkloadView:
    it = found.workload
    gangs = [found.known[gang_id] for gang_id in found.gangs]
    live = [one for one in gangs if not one.is_ended()]
    is_serve = it.kind == "serve"
    shown = live or gangs[-1:] if is_serve else gangs  # replicas that are gone say nothing about the workload
    leading = next((one for one in live if one.status is not Status.QUEUED), shown[0] if shown else None)
    return http_models.WorkloadView(
        id=it.id,
        name=it.name,
        run=it.run,
        kind=it.kind,
        queue=it.queue,
        user=it.user,
        parent=it.parent,
        labels=dict(it.labels),
        priority=it.priority,
        phase=phase(found),
        message=text(found.message, names) or next(_troubles(state, found, live, names), ""),
        submitted_at=found.submitted_at,
        finished_at=found.finished_at,
        next_run_at=found.next_run_at,
        size=sum(one.status in (Status.RUNNING, Status.RESIZING) for one in live)
        if is_serve
        else sum(size_of(one.spec, one.held) for one in live),
        min_size=it.min_replicas if is_serve else it.min_size,
        max_size=it.max_replicas if is_serve else it.max_size,
        wanted=found.wanted_replicas if is_serve else None,
        revision=found.revision + 1 if is_serve else None,
        answered=found.answered.revision + 1 if found.answered is not None else None,
        back_to=[one.revision + 1 for one in reversed(rollout.answered(found)) if one.revision != found.revision],
        gpus=sum(one.gpus_milli() for one in live) / MILLI,
        restarts=sum(one.restarts for one in shown),
        reason=next((reasons.view(one.reason, names) for one in live if one.reason), None),
        progress=numbers(progress.get(leading.id, {})) if leading else {},
        artifact=found.artifact,
        metrics=dict(found.metrics),
        gangs=[gang(state, one, progress, names) for one in shown],
    )


def _troubles(state: State, found: WorkloadState, live: Iterable[GangState], names: Names) -> Iterator[str]:
    """What is to be said of it and its gangs that run, beside how they run."""
    for one in live:
        if one.stalled:
            yield text(say("event.stalled", message=Quote(one.stalled)), names)
        yield from one.adapter_errors.values()
        if one.excess:
            yield text(event_text.excess(one.excess), names)
    if (unread := readers.trouble(state, found)) is not None:
        yield text(unread, names)


def gang(state: State, one: GangState, progress: Progress, names: Names) -> http_models.GangView:
    return http_models.GangView(
        id=one.id,
        status=one.status.value,
        size=one.size,
        attempt=one.attempt,
        restarts=one.restarts,
        gpus=one.gpus_milli() / MILLI,
        placement=placed(state, one.spec, one.held),
        queued_since=one.queued_since,
        launched_at=one.launched_at,
        started_at=one.started_at,
        message=text(one.message, names),
        stalled=one.stalled,
        reason=reasons.view(one.reason, names),
        progress=numbers(progress.get(one.id, {})),
    )


def phase(found: WorkloadState) -> http_models.Phase:
    return found.phase  # type: ignore[return-value]  # the same words


def numbers(data: Mapping[str, Any]) -> dict[str, http_models.Scalar]:
    return {name: value for name, value in data.items() if isinstance(value, (float, int, str, bool))}


def placed(state: State, it: Workload, placement: Placement) -> list[http_models.PlacedView]:
    views: dict[str, http_models.PlacedView] = {}
    for place in placement:
        node = state.nodes.get(place.node)
        view = views.setdefault(
            place.node,
            http_models.PlacedView(
                node=place.node,
                name=(node.node.name or place.node) if node else place.node,
                flavor=node.node.flavor if node else None,
                bundles=0,
            ),
        )
        view.bundles += 1
        view.gpus += amount_of(it, place).gpus_milli / MILLI
    return list(views.values())


def log_sources(state: State, workload_id: str, index: int | None, attempt: int | None) -> list[tuple[str, int]]:
    """(gang, attempt) whose logs are meant: the newest attempt of every gang that has not been replaced. Of a replica
    that left the state, the newest of which there is a log."""
    found = state.find(workload_id)
    if found is None:
        return []
    gangs = [found.known[gang_id] for gang_id in found.gangs]
    if index is not None:
        asked = f"{workload_id}/{index}"
        if asked not in found.known and index < found.next_index:
            return [(asked, attempt or logs.NEWEST)]
        gangs = [one for one in gangs if one.id == asked]
    elif found.workload.kind == "serve":
        gangs = [one for one in gangs if not one.is_ended()] or gangs[-1:]
    return [(one.id, attempt or one.attempt) for one in gangs]


def has_ended(state: State, workload_id: str) -> bool:
    found = state.find(workload_id)
    return found is None or phase(found) in http_models.ENDED


def why_no_log(state: State, workload_id: str, index: int | None, attempt: int | None, rank: int | None) -> str:
    """For who asked for lines of which there are none."""
    found = state.find(workload_id)
    if found is None:
        return f"{workload_id} is not there any more."
    kind = "replica" if found.workload.kind == "serve" else "gang"
    if index is not None and index >= found.next_index:
        return f"{workload_id} has no {kind} {index}: it has had {found.next_index}, numbered from 0."
    if index is not None and f"{workload_id}/{index}" not in found.known:
        of_it = f"{kind} {index}" if attempt is None else f"attempt {attempt} of {kind} {index}"
        return f"{of_it} has gone, and no log of it is in the storage."
    newest = max((number for _, number in log_sources(state, workload_id, index, None)), default=0)
    if attempt is not None and attempt > newest:
        return f"attempt {attempt} has not been: the newest is {newest}."
    if not newest:
        return f"{'it ended before anything had' if found.outcome else 'nothing has'} started, so there is no log."
    if attempt is None and newest > 1:
        of_it = f"attempt {newest}" if rank is None else f"rank {rank} of attempt {newest}"
        return f"{of_it} has written no log; what an earlier one wrote: --attempt {newest - 1}."
    return "no log has been written." if rank is None else f"no log of rank {rank} has been written."


# --- why and story ----------------------------------------------------------------------------------------------


def _with_excess(state: State, one: GangState, said: Message) -> Message:
    """What it is told of a gang that runs, and of what it has taken beyond what it was given."""
    if not one.excess:
        return said
    left = excess_ends(one, state.configuration) - state.now
    ends: Message | tuple[()] = () if isinf(left) else say("why.excess_ends", seconds=max(left, 0.0))
    return say("why.excess", runs=said, excess=total_of(one.excess), ends=ends)


NOT_LOOKED_AT = say("why.not_looked_at")


def why(state: State, found: WorkloadState, entries: Entries, names: Names) -> http_models.WhyView:
    """`entries` of this workload: where it runs was explained when it was decided."""
    launched: dict[str, Message] = {}
    for _, _, entry in entries:
        if isinstance(entry, (decisions.Launch, decisions.Resize)) and entry.why is not None:
            launched[entry.gang] = entry.why
    it = found.workload
    gangs, waiting = [], []
    for gang_id in found.gangs:
        one = found.known[gang_id]
        if one.is_ended() and it.kind == "serve":
            continue
        said = one.message
        if one.status is Status.QUEUED:
            said = one.reason.message if one.reason else NOT_LOOKED_AT
            waiting.append(one)
        elif one.is_holding():
            said = say("why.runs", where=event_text.where(one.held), why=launched.get(gang_id, ()))
            said = _with_excess(state, one, said)
            node = draining.leaving_node(one, state.nodes)
            if one.status is Status.VACATING and one.message is not None:
                said = say("why.leaves", runs=said, why=one.message)
            elif node is not None and draining.is_moving(one, state.nodes):
                said = say("why.moves", runs=said, node=Ref(NODE, node.node.shown))
            if one.stalled:
                said = say("why.stalled", runs=said, message=Quote(one.stalled))
        gangs.append(
            http_models.GangWhy(
                gang=gang_id,
                status=one.status.value,
                reason=reasons.view(one.reason, names),
                text=text(said, names),
            )
        )
    dominant = next((one for one in waiting if one.reason), waiting[0] if waiting else None)
    now = phase(found)
    if dominant is not None:
        waits = dominant.reason.message if dominant.reason else NOT_LOOKED_AT
        if it.kind == "serve" and len(waiting) < len(gangs):
            waits = say("why.replicas_wait", waiting=len(waiting), all=len(gangs), why=waits)
        words = text(waits, names)
        since: float | None = dominant.queued_since
    elif now in http_models.ENDED:
        words, since = text(found.message, names) or f"it has {now}.", found.finished_at
    else:
        words = "; ".join(one.text for one in gangs) or text(found.message, names)
        words = words or "it holds nothing and wants nothing now."
        if found.is_unproven and found.message is not None:
            words = f"{text(found.message, names)}; {words}"
        since = max((found.known[one.gang].started_at or 0.0 for one in gangs), default=0.0) or None
    return http_models.WhyView(
        id=it.id,
        phase=now,
        since=since,
        reason=reasons.view(dominant.reason, names) if dominant else None,
        text=words,
        gangs=gangs,
        scaling=[reasons.sentence(each, names) for each in _scaling(state, found)],
    )


def _scaling(state: State, found: WorkloadState) -> Iterator[Message]:
    """Of an endpoint: who does not read its prompts, its target, its forecast, and the last time it got a replica."""
    if found.workload.kind != "serve" or found.outcome:
        return
    told = (readers.trouble(state, found), scaling.about_target(found), scaling.about_forecast(found, state.now))
    yield from (each for each in told if each is not None)
    if found.held_back is not None:
        yield say("scale.held_back", why=found.held_back)
    if found.handovers:
        yield say("handover.last", came=event_text.handover(found.handovers[-1]))


def story(found: WorkloadState, entries: Entries, names: Names) -> http_models.StoryView:
    lines = []
    for seq, at, entry in entries:
        if isinstance(entry, decisions.Scale) and entry.why is not None and entry.why.code == "scale.side":
            continue  # nothing was asked for: the policy's memory alone
        _, gang_id, message = _described(at, entry, found)
        if message is not None:
            lines.append(
                http_models.StoryLine(
                    seq=seq,
                    at=at,
                    kind=type(entry).__name__,
                    gang=gang_id,
                    code=message.code,
                    args=reasons.arguments(message, names),
                    text=text(message, names),
                )
            )
    return http_models.StoryView(id=found.workload.id, lines=lines)


def _described(at: float, entry: Any, found: WorkloadState | None) -> event_text.Event:
    """What the entry says; of one that runs now also how long it waited for that, and who gave GPUs for it."""
    told = event_text.describe(entry)
    if told.message is None or found is None or not isinstance(entry, facts.Bound):
        return told
    came = next((one for one in reversed(found.handovers) if (one.gang, one.at) == (told.gang, at)), None)
    if came is None or not (found.workload.kind == "serve" or came.gifts):
        return told
    return told._replace(message=say("event.bound_after", runs=told.message, came=event_text.handover(came)))


def event(seq: int, at: float, entry: Any, names: Names, found: WorkloadState | None = None) -> http_models.EventView:
    """`found`: the workload that it is about, where that is known still."""
    about, gang_id, message = _described(at, entry, found)
    return http_models.EventView(
        seq=seq,
        at=at,
        kind=type(entry).__name__,
        workload=about,
        gang=gang_id,
        text=text(message, names),
        data=event_text.data(entry, names),
    )


def event_for(seq: int, at: float, entry: Any, state: State, permissions: Permissions) -> http_models.EventView | None:
    """None when there is nothing to tell whoever follows: time passed, or it is of work that one may not see."""
    if keeps_time_only(entry):
        return None
    workload = event_text.describe(entry).workload
    about = state.find(workload) if workload is not None else None
    view = event(seq, at, entry, KnownNames(state, permissions), about)
    if view.workload is not None and not permissions.sees_all and not (about and permissions.sees(about.workload)):
        return None
    if isinstance(entry, facts.Configured) and not permissions.sees_all:
        view.data = {}  # who may do what
    return view


def keeps_time_only(entry: Any) -> bool:
    return isinstance(entry, facts.Tick | facts.Archived)


# --- the cluster ------------------------------------------------------------------------------------------------


def nodes(state: State, permissions: Permissions) -> list[node_models.NodeView]:
    """Others see how much is held, and by how many gangs."""
    names = KnownNames(state, permissions)
    gangs: dict[str, list[str]] = {}
    for name in state.holding:
        for node_id in dict.fromkeys(place.node for place in state.gangs[name].held):
            gangs.setdefault(node_id, []).append(refer([Ref(GANG, name)], names))
    excess: dict[str, list[tuple[str, Resources]]] = {}
    for name in state.exceeding:
        for node_id, used in state.gangs[name].excess:
            excess.setdefault(node_id, []).append((refer([Ref(GANG, name)], names), used))
    ordered = sorted(state.nodes.items(), key=lambda item: (item[1].node.name, item[0]))
    return [node(found, permissions, gangs.get(node_id, []), excess.get(node_id, ())) for node_id, found in ordered]


def drained_away(state: State) -> list[str]:
    here = {name for found in state.nodes.values() for name in (found.node.id, found.node.shown)}
    return sorted(state.drains.keys() - here)


def node(
    found: NodeState,
    permissions: Permissions,
    gangs: Sequence[str],
    excess: Sequence[tuple[str, Resources]] = (),
) -> node_models.NodeView:
    it, by = found.node, found.drained.by if found.drained is not None else ""
    beyond = found.foreign.minus(total_of(tuple(excess)))  # the two are not looked at in one moment
    others = Resources(max(0, beyond.gpus_milli), max(0, beyond.cpus_milli), max(0, beyond.memory_bytes))
    return node_models.NodeView(
        id=it.id,
        name=it.name or it.id,
        flavor=it.flavor,
        node_type=it.node_type,
        labels=dict(it.labels),
        total=reasons.amounts(it.total),
        used=reasons.amounts(found.used),
        foreign=reasons.amounts(others),
        excess=[node_models.ExcessView(gang=who, amounts=reasons.amounts(used)) for who, used in excess],
        free=reasons.amounts(found.free),
        draining=found.draining,
        leaves_at=found.deadline,
        drained_by=by if permissions.knows_user(by) else "",
        gangs=sorted(gangs),
    )


def node_types(state: State) -> list[node_models.NodeTypeView]:
    asked = dict(state.fleet.requested)
    here = Counter(found.node.node_type for found in state.nodes.values())
    configuration = state.configuration
    return [
        node_models.NodeTypeView(
            name=one.name,
            flavor=accelerator_of(configuration, one),
            gpus=one.gpus,
            min=one.min,
            max=one.max,
            here=here[one.name],
            asked=asked.get(one.name, 0),
            price_per_hour=price_of(configuration, one),
        )
        for one in configuration.node_types
    ]


def queues(state: State) -> list[http_models.QueueView]:
    used: dict[str, Counter[str]] = {}
    for name in state.holding:
        one = state.gangs[name]
        for place in one.held:
            node_state = state.nodes.get(place.node)
            flavor = node_state.node.flavor if node_state else None
            used.setdefault(one.spec.queue, Counter())[flavor or ""] += amount_of(one.spec, place).gpus_milli
        for node_id, amount in one.excess:
            used.setdefault(one.spec.queue, Counter())[state.nodes[node_id].node.flavor or ""] += amount.gpus_milli
    phases: dict[str, Counter[str]] = {}
    for found in state.workloads.values():
        phases.setdefault(found.workload.queue, Counter())[phase(found)] += 1
    views = []
    for queue in state.configuration.queues:
        mine = used.get(queue.name, Counter())
        total = sum(mine.values())
        counted = phases.get(queue.name, Counter())
        views.append(
            http_models.QueueView(
                name=queue.name,
                cohort=queue.cohort,
                weight=queue.weight,
                quotas=[
                    http_models.QuotaView(
                        flavor=flavor,
                        nominal=quota.nominal_milli / MILLI,
                        borrowing_limit=_gpus(quota.borrowing_limit_milli),
                        lending_limit=_gpus(quota.lending_limit_milli),
                        used=(total if flavor == "*" else mine[flavor]) / MILLI,
                    )
                    for flavor, quota in queue.quotas
                ],
                gpus_used=total / MILLI,
                waiting=counted["waiting"],
                active=sum(n for name, n in counted.items() if name not in ("waiting", *http_models.ENDED)),
            )
        )
    return views


def reservations(state: State, permissions: Permissions) -> list[http_models.ReservationView]:
    """Each with the nodes on which it would lie as things are now. For whom and by whom is for who sees everything."""
    listed = []
    with Trial(state) as trial:
        windows = Windows(trial)
        where = {row.reservation.name: nodes_of_row(trial, row) for row in windows.rows}
    for one in state.configuration.reservations:
        span = window(one, state.now)
        opens, closes = span or (None, None)
        view = http_models.ReservationView(
            name=one.name,
            state="over" if opens is None else "open" if opens <= state.now else "coming",
            opens=opens,
            closes=closes,
            repeat=one.repeat,
            queue=one.queue,
            users=_users(one.users, permissions),
            flavor=one.flavor,
            gpus=one.gpus_milli / MILLI,
            found=sum(count for _, count in windows.taken[one.name].parts) if one.name in windows.taken else None,
            nodes=[state.nodes[name].node.name or name for name in where.get(one.name, ())],
            by=one.by if permissions.sees_all else "",
        )
        listed.append(view)
    return sorted(listed, key=lambda view: (view.opens is None, view.opens or 0.0, view.name))


def secrets(known: Iterable[http_models.SecretView], permissions: Permissions) -> list[http_models.SecretView]:
    return [one if permissions.knows_user(one.set_by) else one.model_copy(update={"set_by": ""}) for one in known]


def configuration(state: State, permissions: Permissions) -> http_models.ConfigView:
    """As a cluster file. Who has which role in a queue is for its admins, and for those who see everything."""
    known = state.configuration
    queues = tuple(
        queue if permissions.leads(queue.name) else replace(queue, viewers=(), submitters=(), admins=())
        for queue in known.queues
    )
    reservations = known.reservations
    if not permissions.sees_all:
        reservations = tuple(replace(one, users=tuple(_users(one.users, permissions))) for one in reservations)
    file = cluster_file_of(replace(known, queues=queues, reservations=reservations))
    return http_models.ConfigView(version=known.version, configuration=file.dump())


def _users(users: Iterable[str], permissions: Permissions) -> list[str]:
    """Oneself alone, for who does not see everything."""
    return [user for user in users if permissions.knows_user(user)]


def _gpus(milli: int | None) -> float | None:
    return None if milli is None else milli / MILLI
