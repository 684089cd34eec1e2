"""Journal entries as messages, for `story`, `events` and whoever watches; what only keeps time says nothing.

Names nobody itself: who is meant goes into a message as a reference, and so does what of an entry's data names others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from llmsched.control import reasons
from llmsched.core import decisions, facts
from llmsched.core.message import (
    ACTOR,
    GANG,
    NODE,
    NODE_TYPE,
    QUEUE,
    RESERVATION,
    USER,
    WORKLOAD,
    Arg,
    Message,
    Quote,
    Ref,
    say,
)
from llmsched.core.records import total_of
from llmsched.core.render import Names, refer, text
from llmsched.core.resources import Resources
from llmsched.core.trade import Handover
from llmsched.core.workload import Option, Placement, Workload


class Event(NamedTuple):
    """Whose story an entry belongs to, and what it says there; None when it says nothing."""

    workload: str | None
    gang: str | None
    message: Message | None


def describe(entry: Any) -> Event:
    message = _fact(entry) or _decision(entry)
    gang = getattr(entry, "gang", None)
    workload = getattr(entry, "workload", None)
    if isinstance(workload, Workload):
        workload = workload.id
    if isinstance(entry, facts.Published):
        workload = entry.origin
    if workload is None and gang is not None:
        workload = gang.rpartition("/")[0]
    return Event(workload, gang, message)


def told(entry: Any, names: Names) -> str:
    """An entry in words; "" for what says nothing."""
    return text(describe(entry).message, names)


def data(entry: Any, names: Names) -> dict[str, Any]:
    """The entry as JSON data, without what users wrote in their specs (it may be long, and it is theirs)."""
    content: dict[str, Any] = plain(entry, names)
    if isinstance(content.get("workload"), dict):
        content["workload"].pop("parcel", None)
    return content


def plain(record: Any, names: Names) -> Any:
    """Records as JSON data, by the names of their fields; fields that name others' work as `names` has it."""
    if isinstance(record, Message):
        return reasons.sentence(record, names).model_dump()
    if is_dataclass(record) and not isinstance(record, type):
        marked = _marked(type(record))
        return {
            field.name: _named(getattr(record, field.name), marked[field.name], names)
            if field.name in marked
            else plain(getattr(record, field.name), names)
            for field in fields(record)
        }
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        return {name: plain(value, names) for name, value in record._asdict().items()}
    if isinstance(record, tuple | list):
        return [plain(item, names) for item in record]
    return record


@cache
def _marked(cls: type) -> dict[str, str]:
    """The fields of a record that are marked as Named, with the kind of what they name."""
    found: dict[str, str] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for part in (hint, *get_args(hint)):
            marks = part.__metadata__ if get_origin(part) is Annotated else ()
            for mark in marks:
                found[name] = mark.kind
    return found


def _named(value: Any, kind: str, names: Names) -> Any:
    if isinstance(value, tuple):
        return [_named(each, kind, names) for each in value]
    return refer([Ref(kind, value)], names) if value else value


def _steps(took: facts.StartCosts) -> Iterator[Message]:
    """What the start of a replica took, in the order of its steps."""
    if took.queue_s is not None:
        yield say("took.queue", seconds=took.queue_s)
    if took.process_s is not None:
        yield say("took.process", seconds=took.process_s)
    if took.fork_s is not None:
        yield say("took.fork", seconds=took.fork_s)
    if took.packages_s is not None:
        yield say("took.packages", seconds=took.packages_s)
    if took.imports_s is not None:
        yield say("took.imports", seconds=took.imports_s)
    if took.load_s is not None:
        yield say("took.load", seconds=took.load_s)
    if took.first_token_s is not None:
        yield say("took.first_token", seconds=took.first_token_s)


def _fact(entry: Any) -> Message | None:
    match entry:
        case facts.Submitted(workload=workload, replaces=replaces):
            code = "event.changed" if replaces else "event.submitted"
            queue = Ref(QUEUE, workload.queue)
            if not workload.user:
                return say(code, queue=queue, wish=wish(workload))
            return say(f"{code}_by", by=Ref(ACTOR, workload.user), queue=queue, wish=wish(workload))
        case facts.Cancelled(by_parent=True):
            return say("event.ended_by_parent")
        case facts.Cancelled(by=by):
            return say("cancelled_by", by=Ref(ACTOR, by)) if by else say("cancelled")
        case facts.Scaled(size=size):
            return say("event.scaled", size=size)
        case facts.RolledBack(adapter=adapter, origin=origin, by=by) if adapter:
            whose = Ref(ACTOR, by) if by else ()
            return say("event.adapter_rolled_back", name=Quote(adapter), origin=Ref(WORKLOAD, origin), by=whose)
        case facts.RolledBack(revision=revision, by=by) if by:
            return say("event.rolled_back_by", revision=revision + 1, by=Ref(ACTOR, by))
        case facts.RolledBack(revision=revision):
            return say("event.rolled_back", revision=revision + 1)
        case facts.Configured(configuration=configuration):
            return say("event.configured", version=configuration.version)
        case facts.NodeJoined(node=node):
            has = (Option(node.flavor, node.total),)
            return say("event.node_joined", node=Ref(NODE, node.name or node.id), has=has)
        case facts.NodeLost(node=lost):
            return say("event.node_lost", node=Ref(NODE, lost))
        case facts.NodeDraining(node=leaving):
            return say("event.node_draining", node=Ref(NODE, leaving))
        case facts.DrainBegun(at=at, node=drained, deadline=deadline, by=by):
            within = say("event.drain_within", seconds=deadline - at) if deadline is not None else ()
            return say("event.drain_begun", by=Ref(USER, by), node=Ref(NODE, drained), within=within)
        case facts.DrainEnded(node=drained, by=by):
            return say("event.drain_ended", by=Ref(USER, by), node=Ref(NODE, drained))
        case facts.ForeignUse(node=where, used=used):
            return say("event.foreign_use", used=used, node=Ref(NODE, where))
        case facts.ExcessUse(used=taken):
            return excess(taken) if taken else say("event.excess_over")
        case facts.Stalled(message=message):
            return say("event.stalled", message=Quote(message)) if message else say("event.stalled_over")
        case facts.Bound(attempt=attempt, took=took):
            runs = say("event.bound_again", attempt=attempt) if attempt > 1 else say("event.bound")
            return runs if took is None else say("event.took", runs=runs, steps=tuple(_steps(took)))
        case facts.LaunchFailed(attempt=attempt, message=message, event=event):
            return say("event.launch_failed", attempt=attempt, event=Quote(event), message=Quote(message))
        case facts.Resized(size=size):
            return say("event.resized", size=size)
        case facts.Finished(outcome=outcome, message=message, metrics=metrics):
            return say("event.finished", outcome=Quote(outcome), message=Quote(message), metrics=_metrics(metrics))
        case facts.Released():
            return say("event.released")
        case facts.Lost(attempt=attempt, message=message):
            return say("event.lost", attempt=attempt, message=Quote(message))
        case facts.CheckpointPublished(step=step, fraction=fraction):
            if fraction is None:
                return say("event.checkpoint", step=step)
            return say("event.checkpoint_of", step=step, fraction=fraction)
        case facts.Published(target=target, origin=origin) if target == origin:
            return say("event.takes_back")
        case facts.Published(target=target, kind=kind, name=name, is_taken=True):  # its owner wrote where it goes
            return say("event.published", kind=Quote(kind), name=Quote(name), target=Quote(target))
        case facts.Published(target=target, kind=kind, name=name):
            return say("event.kept", kind=Quote(kind), name=Quote(name), target=Quote(target))
        case facts.AdapterLoaded(name=name, message=message):
            if message:
                return say("event.adapter_refused", name=Quote(name), message=Quote(message))
            return say("event.adapter_loaded", name=Quote(name))
        case facts.CommandBegun(rank=rank, by=by, words=words):
            return say("event.command", by=Ref(ACTOR, by), rank=rank, words=Quote(words))
        case facts.Unlisted(by=by):
            return say("event.unlisted", by=Ref(ACTOR, by))
    return None


def _decision(entry: Any) -> Message | None:
    why: Arg = getattr(entry, "why", None) or ()
    match entry:
        case decisions.Launch(attempt=attempt, placement=placement):
            if attempt > 1:
                return say("event.launch_again", attempt=attempt, where=where(placement), why=why)
            return say("event.launch", where=where(placement), why=why)
        case decisions.Nominate(placement=placement, victims=victims):
            leaving = tuple(Ref(GANG, name) for name in victims)
            return say("event.nominate", where=where(placement), victims=leaving, why=why)
        case decisions.Withdraw():
            return say("event.withdraw", why=why)
        case decisions.Resize(placement=placement):
            return say("event.resize", size=len(placement), where=where(placement), why=why)
        case decisions.Preempt(reason=reason, beneficiary=beneficiary, grace_s=grace):
            if not beneficiary:
                return say("event.preempt", grace=grace, reason=Quote(reason), why=why)
            return say("event.preempt_for", who=Ref(GANG, beneficiary), grace=grace, reason=Quote(reason), why=why)
        case decisions.Drain(grace_s=grace):
            return say("event.drain", grace=grace, why=why)
        case decisions.Stop(reason=reason):
            return say("event.stop", reason=Quote(reason), why=why)
        case decisions.Scale(replicas=replicas):
            return say("event.scale", replicas=replicas, why=why)
        case decisions.LoadAdapter(name=name):
            return say("event.load_adapter", name=Quote(name))
        case decisions.RequestCapacity(counts=counts):
            wanted = tuple(say("nodes_of", count=count, type=Ref(NODE_TYPE, name)) for name, count in counts)
            return (
                say("event.request_capacity", wanted=wanted, why=why) if wanted else say("event.request_none", why=why)
            )
        case decisions.ReleaseNode(node=node):
            return say("event.release_node", node=Ref(NODE, node), why=why)
        case decisions.Assign(reservation=name, taken=taken):
            return say("event.assign", reserved=Ref(RESERVATION, name), where=on_nodes(taken.parts), why=why)
        case decisions.RunAgain(run=run):
            return say("event.run_skipped", why=why) if why else say("event.run_due", run=run)
        case decisions.GiveUp(reason=reason):
            return say("event.give_up", reason=Quote(reason), why=why)
    return None


def _metrics(metrics: tuple[tuple[str, float], ...]) -> Arg:
    shown = tuple(say("metric", name=Quote(name), value=value) for name, value in metrics[:6])
    return say("metrics", metrics=shown) if shown else ()


def excess(taken: tuple[tuple[str, Resources], ...]) -> Message:
    """What an attempt has taken beyond its gang, by node."""
    return say("event.excess", excess=total_of(taken), nodes=tuple(Ref(NODE, node) for node, _ in taken))


def handover(came: Handover) -> Message:
    """How long a gang waited for what it runs on, and who gave it."""
    gifts = tuple(
        say("gift", gpus=gift.gpus_milli, who=Ref(WORKLOAD, gift.giver), lost=gift.lost_gpu_s) for gift in came.gifts
    )
    return say("handover", seconds=came.seconds, gifts=gifts)


def where(placement: Placement) -> tuple[Message, ...]:
    """`node-a (2), node-b (1)`, in rank order of the first bundle there."""
    return on_nodes(Counter(placed.node for placed in placement).items())


def on_nodes(counts: Iterable[tuple[str, int]]) -> tuple[Message, ...]:
    return tuple(say("on_node", node=Ref(NODE, name), bundles=count) for name, count in counts)


def wish(workload: Workload) -> Message:
    """`2..8 x (1 A100 or 1 L4, 2 CPUs)`"""
    low, high = (
        (workload.min_replicas, workload.max_replicas)
        if workload.kind == "serve"
        else (workload.min_size, workload.max_size)
    )
    each: Arg = tuple(workload.groups[0].options)
    one = say("wish", size=low, each=each) if low == high else say("wish.range", least=low, most=high, each=each)
    if workload.kind != "serve" or len(workload.groups) == 1:
        return one
    beside = tuple(
        say("wish.group", count=group.count, group=Quote(group.name), each=tuple(group.options))
        for group in workload.groups[1:]
    )
    return say("wish.beside", each=one, beside=beside)
