"""What Prometheus scrapes: the cluster, the loop, and who holds how much, each reader what that reader may see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse

from llmsched.api import bodies, query, views
from llmsched.api.callers import Given, Looker
from llmsched.api.routes import REFUSALS
from llmsched.control.authorization import Permissions
from llmsched.core.records import WorkloadState
from llmsched.core.resources import MILLI
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.usage import MICROS, Amounts
from llmsched.spec import http_models

NAMED_AT_MOST = 200  # users of queues, and workloads, that have figures of their own; the rest is counted together
OTHERS = "others"

router = APIRouter(
    prefix="/api/v1", responses=REFUSALS, dependencies=[Depends(query.only_known)], route_class=bodies.Route
)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(given: Given, who: Looker) -> str:
    """Figures as Prometheus reads them. Names of people and work only of what the reader may see."""
    controller = given.controller
    about = of_cluster(controller.state, controller.health) + str(controller.metrics())
    return about + of_work(controller.state, who.permissions, controller.now)


def of_cluster(state: State, health: http_models.Health) -> str:
    """No names of people or work."""
    by_phase: Counter[str] = Counter(views.phase(found) for found in state.workloads.values())
    for (_, _, outcome), count in state.archived.items():
        by_phase[outcome] += count
    by_reason = Counter(
        one.reason.code for one in state.gangs.values() if one.status is Status.QUEUED and one.reason is not None
    )
    gpus: dict[tuple[str, str], float] = {}
    for found in state.nodes.values():
        for use, amount in (("total", found.node.total), ("used", found.used), ("foreign", found.foreign)):
            key = (found.node.flavor or "none", use)
            gpus[key] = gpus.get(key, 0.0) + amount.gpus_milli / MILLI
    lines = ["# TYPE llmsched_workloads gauge"]
    lines += [f'llmsched_workloads{{phase="{name}"}} {by_phase[name]}' for name in sorted(by_phase)]
    lines += ["# TYPE llmsched_waiting_gangs gauge"]
    lines += [f'llmsched_waiting_gangs{{reason="{code}"}} {by_reason[code]}' for code in sorted(by_reason)]
    lines += ["# TYPE llmsched_gpus gauge"]
    lines += [
        f"llmsched_gpus{_labels(flavor=flavor, use=use)} {value:g}" for (flavor, use), value in sorted(gpus.items())
    ]
    lines += ["# TYPE llmsched_nodes gauge", f"llmsched_nodes {len(state.nodes)}"]
    lines += ["# TYPE llmsched_journal_seq counter", f"llmsched_journal_seq {health.seq}"]
    lines += ["# TYPE llmsched_cluster_connected gauge", f"llmsched_cluster_connected {int(health.cluster.connected)}"]
    return "\n".join(lines) + "\n"


def of_work(state: State, permissions: Permissions, now: float) -> str:
    """Of users in queues since the beginning; of what holds GPUs or serves, now. Of the smallest beyond
    `NAMED_AT_MOST` all together, as "others"."""
    meter = state.ledgers.meter
    sums: dict[tuple[str, str], Amounts] = {}
    for (user, queue), amounts in meter.put_aside.items():
        sums[queue, user] = sums.get((queue, user), Amounts()).plus(amounts)
    held: dict[str, int] = {}
    for name, book in meter.until(now).items():
        user, held[name] = state.workloads[name].workload.user, sum(amounts.held for amounts in book.values())
        for (_, queue, _), amounts in book.items():
            sums[queue, user] = sums.get((queue, user), Amounts()).plus(amounts)
    seen = {key: amounts for key, amounts in sums.items() if permissions.sees_work_of(key[1], key[0])}
    return "\n".join([*_of_users(seen), *_of_workloads(state, permissions, held)]) + "\n"


def _of_users(sums: dict[tuple[str, str], Amounts]) -> Iterator[str]:
    ordered = sorted(sums.items(), key=lambda item: (-item[1].held, item[0]))
    shown: dict[tuple[str, str], Amounts] = dict(ordered[:NAMED_AT_MOST])
    for (queue, _), amounts in ordered[NAMED_AT_MOST:]:
        shown[queue, OTHERS] = shown.get((queue, OTHERS), Amounts()).plus(amounts)
    yield "# TYPE llmsched_gpu_seconds_total counter"
    for (queue, user), amounts in sorted(shown.items()):
        for share in ("own", "borrowed", "starting", "lost", "excess"):
            value = getattr(amounts, share) / MICROS
            yield f"llmsched_gpu_seconds_total{_labels(queue=queue, user=user, share=share)} {value:.6f}"
    yield "# TYPE llmsched_cost_total counter"
    for (queue, user), amounts in sorted(shown.items()):
        yield f"llmsched_cost_total{_labels(queue=queue, user=user)} {amounts.cost / MICROS:.6f}"


def _of_workloads(state: State, permissions: Permissions, held: Mapping[str, int]) -> Iterator[str]:
    """Of endpoints and of what holds GPUs now; `held`: GPU-microseconds of each since its beginning."""
    gpus: Counter[str] = Counter(dict.fromkeys(state.serving, 0))
    for gang in state.holding:
        gpus[state.gangs[gang].workload_id] += state.gangs[gang].gpus_milli()
    ordered = sorted(gpus, key=lambda name: (-gpus[name], name))
    shown = [state.workloads[name] for name in ordered if permissions.sees(state.workloads[name].workload)]
    named, rest = shown[:NAMED_AT_MOST], shown[NAMED_AT_MOST:]
    labels = {
        it.id: _labels(workload=it.id, kind=it.kind, queue=it.queue, user=it.user)
        for it in (record.workload for record in named)
    }
    yield "# TYPE llmsched_workload_gpu_seconds_total counter"
    for name, written in labels.items():
        yield f"llmsched_workload_gpu_seconds_total{written} {held.get(name, 0) / MICROS:.6f}"
    yield "# TYPE llmsched_workload_gpus gauge"
    for name, written in labels.items():
        yield f"llmsched_workload_gpus{written} {gpus[name] / MILLI:g}"
    if rest:
        total = sum(gpus[record.workload.id] for record in rest) / MILLI
        yield f"llmsched_workload_gpus{_labels(workload=OTHERS, kind='', queue='', user='')} {total:g}"
    yield from _of_endpoints(state, [record for record in named if record.workload.kind == "serve"])


def _of_endpoints(state: State, records: Iterable[WorkloadState]) -> Iterator[str]:
    requests, replicas = ["# TYPE llmsched_endpoint_requests gauge"], ["# TYPE llmsched_endpoint_replicas gauge"]
    for record in records:
        name = record.workload.id
        ongoing, queued, _ = record.load or (0.0, 0.0, 0.0)
        answering = sum(gang.status in (Status.RUNNING, Status.RESIZING) for gang in state.gangs_of(record))
        for kind, value in (("ongoing", ongoing), ("queued", queued)):
            requests.append(f"llmsched_endpoint_requests{_labels(endpoint=name, state=kind)} {value:g}")
        for kind, count in (("wanted", record.wanted_replicas), ("answering", answering)):
            replicas.append(f"llmsched_endpoint_replicas{_labels(endpoint=name, state=kind)} {count}")
    yield from (*requests, *replicas)


def _labels(**values: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
