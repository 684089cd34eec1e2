"""Between the core's words and the executor's: decisions become orders, observations become facts.

Everything here is a function of the state and of what is given, so an order can be made again after a restart and is
the same. Orders may carry secret values: they are never written down, and never logged.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmsched import versions
from llmsched.control import calls, endpoint_names
from llmsched.control.lookup import newest_run, spec_of
from llmsched.control.turns import breathe
from llmsched.control.vault import NoSecrets, Secrets
from llmsched.core import authorization, decisions, draining, facts
from llmsched.core.node_types import accelerator_of
from llmsched.core.nodes import Node
from llmsched.core.records import amount_of
from llmsched.core.resources import MILLI, Resources, parse_gpus_milli
from llmsched.core.state import GangState, State, Status, WorkloadState
from llmsched.core.status import ACTIVE
from llmsched.core.workload import Placement, Workload, named_run, split_run
from llmsched.crossings import is_met
from llmsched.errors import ClusterError, RequestError, SpecError
from llmsched.executors import port
from llmsched.spec.http_models import WORKDIR_PREFIX
from llmsched.spec.quantities import parse_model_source, parse_run_source

log = logging.getLogger("llmsched.control")
NODE_AT_MOST = 100_000  # GPUs or CPUs of one node
ACCELERATOR_LABEL = "ray.io/accelerator-type"
# Of which node type a node is: our own label, or the one that Ray's autoscaler gives the nodes it starts.
NODE_TYPE_LABELS = ("llmsched.io/node-type", "ray.io/node-group")


@dataclass(frozen=True, slots=True)
class Site:
    """What orders need beside the state. `secrets` has the values that specs name."""

    epoch: int
    storage: str
    secrets: Secrets = field(default_factory=NoSecrets, repr=False)


class Send(NamedTuple):
    """One call of the executor. `gang` and `attempt` say who suffers when it cannot be made."""

    method: str  # of executors.port.Executor
    order: Any
    gang: str = ""
    attempt: int = 0


# --- decisions to orders ------------------------------------------------------------------------------------------

Refused = tuple[str, int, Exception]  # gang, attempt and why no order can be made for it


def sends_of(state: State, decided: Sequence[decisions.Decision], site: Site) -> tuple[list[Send], list[Refused]]:
    sends: list[Send] = []
    refused: list[Refused] = []
    for decision in decided:
        try:
            send = send_of(state, decision, site)
        except Exception as error:  # one order that cannot be made must not hold up the others
            log.warning("no order for %s: %r", type(decision).__name__, error)
            refused.append((getattr(decision, "gang", ""), getattr(decision, "attempt", 0), error))
        else:
            sends += [] if send is None else [send]
    return sends, refused


def event_of(error: Exception) -> str:
    """Why no order can be made: what was asked for cannot be had (trying again is no use), or we could not make it."""
    return "input" if isinstance(error, RequestError | SpecError) else "error"


def send_of(state: State, decision: decisions.Decision, site: Site) -> Send | None:
    """None for decisions that only change the state. Raises RequestError when a source has no result."""
    match decision:
        case decisions.Launch():
            gang = state.gangs[decision.gang]
            order = launch_order(state, gang, decision.attempt, decision.placement, site)
            return Send("launch", order, gang.id, decision.attempt)
        case decisions.Resize():
            gang = state.gangs[decision.gang]
            order = launch_order(state, gang, decision.attempt, decision.placement, site)
            return Send("resize", order, gang.id, decision.attempt)
        case decisions.Preempt():
            return _stop(state, decision, "preempt", site)
        case decisions.Drain():
            return _stop(state, decision, "drain", site)
        case decisions.Stop():
            return _stop(state, decision, "stop", site)
        case decisions.LoadAdapter():
            adapter = port.AdapterOrder(decision.gang, decision.attempt, site.epoch, decision.name, decision.uri)
            return Send("load_adapter", adapter, decision.gang, decision.attempt)
        case decisions.RequestCapacity():
            return Send("request_capacity", capacity_bundles(state, decision.counts))
        case _:
            return None


def launch_order(state: State, gang: GangState, attempt: int, placement: Placement, site: Site) -> port.LaunchOrder:
    workload = gang.spec
    spec = with_model(spec_of(workload), gang.model)
    return port.LaunchOrder(
        workload=workload.id,
        gang=gang.id,
        attempt=attempt,
        epoch=site.epoch,
        kind=workload.kind,
        members=tuple(_members(state, workload, placement)),
        spec=spec,
        storage=site.storage,
        inputs=resolve_inputs(state, workload, spec),
        envs=_envs(workload, spec, site.secrets, all_needed=gang.status is Status.LAUNCHING),
        adapters=tuple(sorted(adapters_of(state, workload, spec).items())),
        workdir=_workdir(spec, site.storage),
        grace_s=workload.grace_s,
        version=versions.own(),
        over_memory=state.configuration.over_memory,
        owner=workload.user,
    )


def _members(state: State, workload: Workload, placement: Placement) -> Iterator[port.Member]:
    for rank, placed in enumerate(placement):
        amount = amount_of(workload, placed)
        node = state.nodes.get(placed.node)
        yield port.Member(
            rank=rank,
            node=placed.node,
            group=placed.group,
            gpus=amount.gpus_milli / MILLI,
            cpus=amount.cpus_milli / MILLI,
            memory_bytes=amount.memory_bytes,
            custom={name: value / MILLI for name, value in amount.custom},
            flavor=node.node.flavor if node is not None else None,
        )


def _stop(
    state: State, decision: decisions.Preempt | decisions.Drain | decisions.Stop, mode: str, site: Site
) -> Send | None:
    gang = state.gangs.get(decision.gang)
    if gang is None:
        return None
    order = port.StopOrder(gang.id, decision.attempt, site.epoch, gang.spec.kind, mode, decision.grace_s)
    return Send("stop", order, gang.id, decision.attempt)


def stop_now(gang: GangState, attempt: int, site: Site) -> Send:
    """For an attempt that is given up: it has nothing more to say."""
    return Send("stop", port.StopOrder(gang.id, attempt, site.epoch, gang.spec.kind, "stop", 0.0), gang.id, attempt)


def stop_again(state: State, gang: GangState, site: Site) -> Send:
    """The order under which a gang that is leaving was told to leave, for an executor that may have missed it."""
    if gang.leaving == "released":
        mode = "preempt"
    else:
        mode = "drain" if gang.spec.kind == "serve" else "stop"
    node = draining.leaving_node(gang, state.nodes)
    grace = gang.spec.grace_s if node is None else draining.grace_of(gang, node, state.now)
    order = port.StopOrder(gang.id, gang.attempt, site.epoch, gang.spec.kind, mode, grace)
    return Send("stop", order, gang.id, gang.attempt)


def capacity_bundles(
    state: State, counts: Sequence[tuple[str, int]]
) -> tuple[tuple[dict[str, float], dict[str, str], int], ...]:
    types = {node_type.name: node_type for node_type in state.configuration.node_types}
    bundles = []
    for name, count in counts:
        wanted = types[name]
        resources = {"GPU": float(wanted.gpus), "CPU": float(wanted.cpus), "memory": float(wanted.memory_bytes)}
        accelerator = accelerator_of(state.configuration, wanted)
        labels = {ACCELERATOR_LABEL: accelerator} if accelerator else {}
        bundles.append(({key: value for key, value in resources.items() if value}, labels, count))
    return tuple(bundles)


async def resync(state: State, site: Site) -> tuple[list[Send], list[Refused]]:
    """What an executor must hear after an absence: whom to adopt, who is leaving, who changes size. In a round."""
    live: list[tuple[port.LaunchOrder, bool]] = []
    after: list[Send] = []
    refused: list[Refused] = []
    for name in state.holding:
        await breathe()
        gang = state.gangs[name]
        try:
            order = launch_order(state, gang, gang.attempt, gang.placement or gang.held, site)
        except Exception as error:
            log.warning("no order for %s: %r", gang.id, error)
            refused.append((gang.id, gang.attempt, error))
            continue
        live.append((order, gang.status is not Status.LAUNCHING))
        if gang.status is Status.VACATING:
            after.append(stop_again(state, gang, site))
        elif gang.status is Status.RESIZING:
            after.append(Send("resize", order, gang.id, gang.attempt))
    if state.fleet.requested:
        after.append(Send("request_capacity", capacity_bundles(state, state.fleet.requested)))
    return [Send("adopt", tuple(live)), *after], refused


# --- what a spec refers to ----------------------------------------------------------------------------------------


def resolve_inputs(state: State, workload: Workload, spec: Mapping[str, Any]) -> dict[str, str]:
    """Where each result that the spec names lies. Raises RequestError for one that is not there."""
    return {source: artifact_of(state, workload, source) for source in sorted(set(_strings(spec))) if is_result(source)}


def is_result(source: str) -> bool:
    """Whether a source is what another workload made."""
    return parse_run_source(source) is not None or parse_model_source(source) is not None


def _strings(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)


def artifact_of(state: State, workload: Workload, source: str) -> str:
    """The result that `source` meant when `workload` was submitted, which is in its `after`: so all replicas of an
    endpoint have the same one, also when a newer is made meanwhile. The newest, when nothing was said then."""
    asked = parse_run_source(source) or parse_model_source(source)
    assert asked is not None
    name, run = asked[0], asked[1]
    meant = [each for each in workload.after if split_run(each)[0] == name]
    if run is None and len(meant) == 1:
        run = int(split_run(meant[0])[1] or 1)
    for record in state.results(name):
        if run in (None, record.workload.run) and authorization.may_read(state, workload, record.workload):
            return str(record.artifact)
    silent = newest_run(state, name if run is None else named_run(name, run))
    if (
        silent is not None
        and silent.outcome == "succeeded"
        and authorization.may_read(state, workload, silent.workload)
    ):
        raise RequestError(
            f"{source} has no result: {name} succeeded but saved no artifact",
            code="dependency",
            hint="Its loop must call artifact.save.",
        )
    raise RequestError(f"{source} has no result", code="dependency", hint="Its run must have succeeded first.")


def adapters_of(state: State, workload: Workload, spec: Mapping[str, Any]) -> dict[str, str]:
    """Name -> uri of every adapter a serve workload is to have: those of its spec, and those published since."""
    named = (spec.get("serve") or {}).get("adapters") or ()
    found = {}
    for adapter in named:
        source = adapter["source"]
        found[adapter["name"]] = artifact_of(state, workload, source) if is_result(source) else source
    for name, published in authorization.published_to(state, workload).items():
        if published.kind == "adapter":
            found[name] = published.uri
    return found


def with_model(spec: dict[str, Any], uri: str) -> dict[str, Any]:
    """The spec of an endpoint with the model that was published in place of its own, if one was."""
    serve = spec.get("serve") or {}
    if not uri or not serve.get("model"):
        return spec
    return {**spec, "serve": {**serve, "model": {**serve["model"], "source": uri}}}


def _envs(workload: Workload, spec: Mapping[str, Any], secrets: Secrets, *, all_needed: bool) -> dict[str, str]:
    """Only a launch needs the secrets: what runs has them, also those that were removed since."""
    envs = {name: str(value) for name, value in (spec.get("envs") or {}).items()}
    for name in spec.get("secrets") or ():
        if all_needed or secrets.has(workload.user, name):
            envs[name] = secrets.value(workload.user, name)
    if spec.get("calls"):
        envs = calls.envs_of(workload, secrets) | envs
    return envs


def _workdir(spec: Mapping[str, Any], storage: str) -> str | None:
    workdir = spec.get("workdir")
    if not isinstance(workdir, str) or not workdir.startswith(WORKDIR_PREFIX):
        return None
    return f"{storage.rstrip('/')}/workdirs/{workdir.removeprefix(WORKDIR_PREFIX)}.zip"


# --- observations to facts ----------------------------------------------------------------------------------------


# After these a gang goes on or ends: when one cannot be taken in, its attempt is given up.
_DECISIVE = (port.Started, port.NotStarted, port.ResizeDone, port.Ended, port.Vanished)


def given_up(seen: port.Observation, error: Exception, at: float) -> facts.Lost | None:
    """What is left of an observation that could not be taken in; nothing, when no gang waits for it."""
    if not isinstance(seen, _DECISIVE):
        return None
    why = f"what the cluster said of it ({type(seen).__name__}) could not be taken in ({type(error).__name__})"
    return facts.Lost(at, seen.gang, seen.attempt, why)


def facts_of(state: State, seen: port.Observation, at: float) -> list[facts.Fact]:
    """What an observation means; nothing when the state knows it already, or when it is Connected or no fact at all."""
    match seen:
        case port.NodeSeen():
            return _node_seen(state, seen, at)
        case port.NodeGone():
            return [facts.NodeLost(at, seen.node)] if seen.node in state.nodes else []
        case port.ForeignSeen():
            used = _amounts_of(seen)
            known = state.nodes.get(seen.node)
            return [] if known is None or known.foreign == used else [facts.ForeignUse(at, seen.node, used)]
        case port.ExcessSeen():
            excess = tuple(sorted((one.node, _amounts_of(one)) for one in seen.used))
            gang = state.gangs.get(seen.gang)
            if gang is None or gang.attempt != seen.attempt or gang.excess == excess:
                return []
            return [facts.ExcessUse(at, seen.gang, seen.attempt, excess)]
        case port.Started():
            gang = state.gangs.get(seen.gang)
            if gang is not None and gang.attempt == seen.attempt and gang.status is Status.RUNNING:
                return []  # adopted after a restart: nothing new
            return [facts.Bound(at, seen.gang, seen.attempt, _start_costs(gang, seen.took))]
        case port.NotStarted():
            return [facts.LaunchFailed(at, seen.gang, seen.attempt, seen.event, seen.message)]
        case port.Stalled():
            gang = state.gangs.get(seen.gang)
            if gang is None or gang.attempt != seen.attempt or gang.stalled == seen.message:
                return []
            return [facts.Stalled(at, seen.gang, seen.attempt, seen.message)]
        case port.ResizeDone():
            return [facts.Resized(at, seen.gang, seen.attempt, seen.size)]
        case port.CheckpointSeen():
            return [facts.CheckpointPublished(at, seen.gang, seen.attempt, seen.step, seen.fraction)]
        case port.Ended():
            return _ended(state, seen, at)
        case port.Vanished():
            return [facts.Lost(at, seen.gang, seen.attempt, seen.message, seen.by_others)]
        case port.AdapterAnswer():
            return [facts.AdapterLoaded(at, seen.gang, seen.attempt, seen.name, seen.uri, seen.message)]
        case port.LoadSeen():
            record = state.workloads.get(seen.workload)
            is_as_it_was = record is not None and record.load is not None and record.load[:2] == seen.counts
            if record is None or (is_as_it_was and not seen.latencies):
                return []
            return [facts.LoadObserved(at, seen.workload, *seen.counts, seen.latencies)]
        case _:
            return []


def _start_costs(gang: GangState | None, took: Mapping[str, float]) -> facts.StartCosts | None:
    """None for work that says nothing of it: all but replicas."""
    if gang is None or not took:
        return None
    queue_s = max((gang.launched_at or gang.queued_since) - gang.queued_since, 0.0)
    known = (f"{step}_s" for step in took)
    told = {name: float(took[name.removesuffix("_s")]) for name in known if name in facts.StartCosts._fields}
    return facts.StartCosts(**{**told, "queue_s": queue_s})


def _node_seen(state: State, seen: port.NodeSeen, at: float) -> list[facts.Fact]:
    node = node_of(seen)
    known = state.nodes.get(node.id)
    found: list[facts.Fact] = []
    if known is None or known.node != node:
        found, known = [facts.NodeJoined(at, node)], None
    elif known.leaving and not seen.leaving and node.id not in state.fleet.releasing:
        return [facts.NodeJoined(at, node)]
    told = (known.leaving, known.leaves_at) if known is not None else (False, None)
    if seen.leaving and told != (True, seen.leaves_at):
        found.append(facts.NodeDraining(at, node.id, seen.leaves_at))
    return found


def _amounts_of(seen: port.ForeignSeen) -> Resources:
    return Resources(parse_gpus_milli(seen.gpus), round(seen.cpus * MILLI), seen.memory_bytes)


def node_of(seen: port.NodeSeen) -> Node:
    """Raises ClusterError for a node with more than any has: the ledger counts GPUs one by one."""
    if not (0 <= seen.gpus <= NODE_AT_MOST and 0 <= seen.cpus <= NODE_AT_MOST):
        raise ClusterError(f"node {seen.node} says that it has {seen.gpus:g} GPUs and {seen.cpus:g} CPUs")
    custom = tuple(sorted((name, round(value * MILLI)) for name, value in seen.custom.items()))
    return Node(
        id=seen.node,
        total=Resources(parse_gpus_milli(seen.gpus), round(seen.cpus * MILLI), seen.memory_bytes, custom),
        flavor=seen.labels.get(ACCELERATOR_LABEL) or None,
        labels=tuple(sorted(seen.labels.items())),
        name=seen.name,
        node_type=next((seen.labels[key] for key in NODE_TYPE_LABELS if key in seen.labels), None),
    )


def _ended(state: State, seen: port.Ended, at: float) -> list[facts.Fact]:
    record = current(state, seen.gang, seen.attempt)
    # Whoever cancelled it wants nothing of it: neither is it told as a success, nor does anything come after it.
    if seen.outcome == "released" or (seen.outcome == "succeeded" and record is not None and record.cancelled):
        if seen.outcome == "released" and record is not None and state.gangs[seen.gang].status in ACTIVE:
            return [facts.Lost(at, seen.gang, seen.attempt, "it left, and nobody had told it to")]
        return [facts.Released(at, seen.gang, seen.attempt)]
    metrics = {name: float(value) for name, value in seen.metrics.items() if math.isfinite(value)}
    published = None
    message = seen.message
    if record is not None and seen.outcome == "succeeded" and record.workload.publish is not None:
        published, why_not = publication(state, record, seen.artifact, metrics, at)
        message = message or why_not
    finished = facts.Finished(
        at, seen.gang, seen.attempt, seen.outcome, message, seen.event, seen.artifact, tuple(sorted(metrics.items()))
    )
    return [finished] if published is None else [finished, published]


def current(state: State, gang_id: str, attempt: int) -> WorkloadState | None:
    """The workload of a gang, if this is its open attempt."""
    gang = state.gangs.get(gang_id)
    if gang is None or gang.attempt != attempt or not gang.is_holding():
        return None
    return state.workloads[gang.workload_id]


def publication(
    state: State, record: WorkloadState, artifact: str | None, metrics: Mapping[str, float], at: float
) -> tuple[facts.Published | None, str]:
    """What a success makes live elsewhere; or nothing, and why not. An endpoint that the publisher may not see is as
    one that is not there: nothing of it is told, and nothing reaches it."""
    workload, publish = record.workload, record.workload.publish
    assert publish is not None
    if artifact is None:
        return None, "nothing was published: it left no artifact"
    if publish.when and not is_met(publish.when, metrics):
        return None, f"not published to {publish.to}: {publish.when} is not met"
    target = newest_run(state, publish.to)
    if target is not None and not authorization.may_know(state, workload.user, target.workload):
        target = None
    target_id = publish.to if target is None else target.workload.id
    if target is not None and not authorization.may_publish(state, workload.user, target.workload):
        return None, f"not published: {publish.to} is not of this user, who is no admin of its queue"
    if target is not None and target.outcome:
        kept = named_run(workload.name, workload.run)
        return None, f"not published: the endpoint {publish.to} has ended; it is kept as {kept}"
    if publish.kind == "adapter" and not endpoint_names.is_free(
        state, publish.name or workload.name, workload if target is None else target.workload
    ):
        return None, f"not published: the name {publish.name or workload.name} is of another's endpoint"
    if (
        publish.kind == "model"
        and target is not None
        and not (spec_of(target.workload).get("serve") or {}).get("model")
    ):
        return None, f"not published: {publish.to} serves no model"
    name = publish.name or workload.name
    return facts.Published(at, target_id, publish.kind, name, artifact, workload.id, is_taken=target is not None), ""
