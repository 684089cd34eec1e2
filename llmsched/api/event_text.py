"""Journal entries in words, for `story`, `events` and whoever watches. Pure; what only keeps time says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from llmsched.core import decisions, facts
from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Placement, Workload


class Words(NamedTuple):
    workload: str | None
    gang: str | None
    text: str


def describe(entry: Any, names: Mapping[str, str]) -> Words:
    """`names`: node id -> what people call it."""
    text = _fact(entry, names)
    if text is None:
        text = _decision(entry, names) or ""
    gang = getattr(entry, "gang", None)
    workload = getattr(entry, "workload", None)
    if isinstance(workload, Workload):
        workload = workload.id
    if isinstance(entry, facts.Published):
        workload = entry.origin
    if workload is None and gang is not None:
        workload = gang.rpartition("/")[0]
    return Words(workload, gang, text)


def data(entry: Any) -> dict[str, Any]:
    """The entry as JSON data, without what users wrote in their specs (it may be long, and it is theirs)."""
    content: dict[str, Any] = plain(entry)
    if isinstance(content.get("workload"), dict):
        content["workload"].pop("parcel", None)
    return content


def plain(record: Any) -> Any:
    """Records as JSON data, by the names of their fields."""
    if is_dataclass(record):
        return {field.name: plain(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        return {name: plain(value) for name, value in record._asdict().items()}
    if isinstance(record, tuple | list):
        return [plain(item) for item in record]
    return record


def _fact(entry: Any, names: Mapping[str, str]) -> str | None:
    match entry:
        case facts.Tick() | facts.LoadObserved() | facts.Estimated():
            return ""
        case facts.Submitted(workload=workload, replaces=replaces):
            by = f" by {workload.user}" if workload.user else ""
            return f'{"changed" if replaces else "submitted"}{by} in queue "{workload.queue}": {wish(workload)}'
        case facts.Cancelled(by=by):
            return f"cancelled by {by}" if by else "cancelled"
        case facts.Scaled(size=size):
            return f"asked to hold {size}"
        case facts.Configured(configuration=configuration):
            return f"configuration version {configuration.version} is in force"
        case facts.NodeJoined(node=node):
            return f"node {node.name or node.id} joined: {amounts(node.total, node.flavor)}"
        case facts.NodeLost(node=node):
            return f"node {names.get(node, node)} is lost"
        case facts.NodeDraining(node=node):
            return f"node {names.get(node, node)} will leave: nothing new goes there"
        case facts.ForeignUse(node=node, used=used):
            return f"others use {amounts(used, None)} on node {names.get(node, node)}"
        case facts.Bound(attempt=attempt):
            return f"runs{_again(attempt)}"
        case facts.LaunchFailed(attempt=attempt, message=message, event=event):
            return f"attempt {attempt} did not start ({event}){_after(message)}"
        case facts.Resized(size=size):
            return f"holds {_count(size, 'bundle')} now"
        case facts.Finished(outcome=outcome, message=message, metrics=metrics):
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in metrics[:6])
            return f"{outcome}{_after(message)}{f' [{numbers}]' if numbers else ''}"
        case facts.Released():
            return "let go of everything it held"
        case facts.Lost(attempt=attempt, message=message):
            return f"attempt {attempt} is lost{_after(message)}"
        case facts.CheckpointPublished(step=step, fraction=fraction):
            return f"checkpoint at step {step}" + (f" ({fraction:.0%} of the work)" if fraction is not None else "")
        case facts.Published(target=target, origin=origin) if target == origin:
            return "serves the model that its spec names, in place of the one that was published"
        case facts.Published(target=target, kind=kind, name=name):
            return f'its {kind}{f" {name}" if name else ""} goes live in "{target}"'
        case facts.AdapterLoaded(name=name, message=message):
            return f"could not load adapter {name}: {message}" if message else f"serves adapter {name}"
        case facts.CommandBegun(rank=rank, by=by, words=words):
            return f"{by} runs a command beside rank {rank}: {words}"
    return None


def _decision(entry: Any, names: Mapping[str, str]) -> str | None:
    why = _after(getattr(entry, "why", ""))
    match entry:
        case decisions.Launch(attempt=attempt, placement=placement):
            return f"starts{_again(attempt)} on {where(placement, names)}{why}"
        case decisions.Nominate(placement=placement, victims=victims):
            return f"is promised room on {where(placement, names)} while {', '.join(victims)} make way{why}"
        case decisions.Withdraw():
            return f"is promised no room any more{why}"
        case decisions.Resize(placement=placement):
            return f"is resized to {_count(len(placement), 'bundle')} on {where(placement, names)}{why}"
        case decisions.Preempt(reason=reason, beneficiary=beneficiary, grace_s=grace):
            whom = f" for {beneficiary}" if beneficiary else ""
            return f"must make way{whom} within {grace:g} s ({reason}){why}"
        case decisions.Drain(grace_s=grace):
            return f"finishes what it serves (at most {grace:g} s), then stops{why}"
        case decisions.Stop(reason=reason):
            return f"is stopped ({reason}){why}"
        case decisions.Scale(replicas=replicas):
            return f"wants {_count(replicas, 'replica')}{why}"
        case decisions.LoadAdapter(name=name):
            return f"is asked to load adapter {name}"
        case decisions.RequestCapacity(counts=counts):
            wanted = ", ".join(f"{count} x {name}" for name, count in counts)
            return f"asks for nodes: {wanted or 'none'}{why}"
        case decisions.ReleaseNode(node=node):
            return f"gives node {names.get(node, node)} back{why}"
        case decisions.RunAgain(run=run):
            return f"leaves its schedule out once{why}" if why else f"run {run} is due"
        case decisions.GiveUp(reason=reason):
            return f"is given up ({reason}){why}"
    return None


def where(placement: Placement, names: Mapping[str, str]) -> str:
    """`node-a (2), node-b (1)`, in rank order of the first bundle there."""
    return ", ".join(f"{names.get(node, node)} ({n})" for node, n in Counter(p.node for p in placement).items())


def wish(workload: Workload) -> str:
    """`2..8 x (1 A100 or 1 L4, 2 CPUs)`"""
    first = workload.groups[0]
    each = " or ".join(dict.fromkeys(amounts(option.resources, option.flavor) for option in first.options))
    low, high = (
        (workload.min_replicas, workload.max_replicas)
        if workload.kind == "serve"
        else (workload.min_size, workload.max_size)
    )
    return f"{low if low == high else f'{low}..{high}'} x ({each})"


def amounts(resources: Resources, flavor: str | None) -> str:
    parts = []
    if resources.gpus_milli:
        gpus = resources.gpus_milli / MILLI
        parts.append(f"{gpus:g} {flavor or ('GPU' if gpus <= 1 else 'GPUs')}")
    if resources.cpus_milli:
        cpus = resources.cpus_milli / MILLI
        parts.append(f"{cpus:g} CPU{'' if cpus == 1 else 's'}")
    if resources.memory_bytes:
        parts.append(memory(resources.memory_bytes))
    parts += [f"{amount / MILLI:g} {name}" for name, amount in resources.custom]
    return ", ".join(parts) or "nothing"


def memory(size: int) -> str:
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _again(attempt: int) -> str:
    return f" (attempt {attempt})" if attempt > 1 else ""


def _after(text: str) -> str:
    return f": {text}" if text else ""
