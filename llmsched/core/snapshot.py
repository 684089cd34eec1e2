"""The whole state as plain, immutable values, and back: `thaw(freeze(state))` is that state.

Used to start without folding all of history, and to think ahead on a copy of the world (`whatif`). What other parts of
the state determine is not in it, but worked out again: ledgers of nodes and quota, classes of those who wait. Orders
that a pass may see are kept. A test holds the two functions against every attribute of `State`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsched.core.archive import Archive
from llmsched.core.configuration import Configuration, Taken
from llmsched.core.draining import OperatorDrain, drain_of
from llmsched.core.exchanges import Exchange
from llmsched.core.facts import Published
from llmsched.core.lane import FrozenPool
from llmsched.core.lives import count_quota, park
from llmsched.core.nodes import Node
from llmsched.core.records import GangState, HoldingGroup, QueueUse, WorkloadState
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.usage import FrozenMeter, thawed
from llmsched.core.world import NOTES_KEPT

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Values = tuple[Any, ...]
Numbers = tuple[float, ...]


class _Record:
    """The fields of one kind of record, and the values of one: what the state goes on changing is copied."""

    def __init__(self, kind: type[DataclassInstance], left_out: Collection[str]) -> None:
        kept = [one for one in fields(kind) if one.name not in left_out]
        self.fields = tuple(one.name for one in kept)
        self._changing = tuple(at for at, one in enumerate(kept) if str(one.type).startswith(("dict[", "list[")))
        self._read: Callable[[Any], Values] = attrgetter(*self.fields)

    def values(self, record: Any) -> Values:
        return self.own(self._read(record))

    def own(self, values: Iterable[Any]) -> Values:
        found = list(values)
        for at in self._changing:
            found[at] = found[at].copy()
        return tuple(found)


# Every field but those that are worked out again, or that mean the state itself.
_GANG = _Record(GangState, ("shape", "own_reason", "weighed"))
_WORKLOAD = _Record(WorkloadState, ("known",))
GANG_FIELDS, WORKLOAD_FIELDS = _GANG.fields, _WORKLOAD.fields


class FrozenNode(NamedTuple):
    node: Node
    slot: int
    foreign: Resources
    leaving: bool
    leaves_at: float | None
    idle_since: float


class Runs(NamedTuple):
    """Of one name: the number of its newest run, and how many of its runs are in the state."""

    name: str
    newest: int
    here: int


class Ended(NamedTuple):
    """How many workloads were put aside."""

    user: str
    queue: str
    outcome: str
    how_many: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`workloads` and `gangs` are the values of WORKLOAD_FIELDS and GANG_FIELDS. The rest is named as in `State`."""

    now: float
    configuration: Configuration
    nodes: tuple[FrozenNode, ...]
    workloads: tuple[Values, ...]
    gangs: tuple[Values, ...]
    publications: tuple[tuple[str, Published], ...]  # with its user
    drains: tuple[OperatorDrain, ...]
    requested: tuple[tuple[str, int], ...]
    overdue_since: tuple[tuple[str, float], ...]
    shunned_until: tuple[tuple[str, float], ...]
    releasing: tuple[tuple[str, float], ...]
    records: tuple[tuple[str, Numbers], ...]  # of the history of run times
    kinds: tuple[tuple[tuple[Any, ...], Numbers], ...]  # of the same
    runs: tuple[Runs, ...]
    archived: tuple[Ended, ...]
    ended: tuple[str, ...]
    waiting: tuple[str, ...]  # class by class
    lines: tuple[str, ...]  # one of each class that has somebody in it, in their order
    parked: tuple[str, ...]
    holding: tuple[str, ...]
    nominated: tuple[str, ...]
    vacating: tuple[str, ...]
    elastic: tuple[str, ...]
    movable: tuple[str, ...]
    moved: tuple[str, ...]
    serving: tuple[str, ...]
    timed: tuple[str, ...]
    scheduled: tuple[str, ...]
    troubled: tuple[str, ...]
    exceeding: tuple[str, ...]
    groups: tuple[tuple[str, int, bool], ...]
    dependents: tuple[tuple[str, tuple[str, ...]], ...]
    use: tuple[tuple[str, QueueUse], ...]
    meter: FrozenMeter
    end_of: tuple[tuple[str, float], ...]
    timers: tuple[tuple[float, str], ...]
    ranked_at: float
    starts: int
    starts_before: int
    lanes: tuple[FrozenPool, ...]
    exchanges: tuple[Exchange, ...]
    taken: tuple[tuple[str, Taken], ...]
    notes: tuple[str, ...]
    version: int
    causes: int
    victims: int
    of_models: tuple[str, ...] = ()  # written until 0.1 and read no more: it follows from the rest


def freeze(state: State) -> Snapshot:
    """Costs about two microseconds for each gang, so that it can be done between two rounds."""
    history = state.history
    waiting = state.waiting
    return Snapshot(
        now=state.now,
        configuration=state.configuration,
        nodes=tuple(
            FrozenNode(node.node, node.slot, node.foreign, node.leaving, node.leaves_at, node.idle_since)
            for node in state.nodes.values()
        ),
        workloads=tuple(map(_WORKLOAD.values, state.workloads.values())),
        gangs=tuple(map(_GANG.values, state.gangs.values())),
        publications=tuple((user, one) for named in state.publications.values() for (user, _), one in named.items()),
        drains=tuple(state.drains.values()),
        requested=state.fleet.requested,
        overdue_since=tuple(state.fleet.overdue_since.items()),
        shunned_until=tuple(state.fleet.shunned_until.items()),
        releasing=tuple(state.fleet.releasing.items()),
        records=tuple((source, sample.parts()) for source, sample in history.records.items()),
        kinds=tuple((kind, sample.parts()) for kind, sample in history.kinds.items()),
        runs=tuple(Runs(name, newest, here) for name, (newest, here) in state.runs.items()),
        archived=tuple(Ended(*key, count) for key, count in sorted(state.archived.items())),
        ended=tuple(state.ended),
        waiting=tuple(name for shape in waiting.shapes.values() for _, name in shape.entries),
        lines=tuple(shape.entries[0][1] for shape in waiting.live.values()),
        parked=tuple(state.parked),
        holding=tuple(state.holding),
        nominated=tuple(state.nominated),
        vacating=tuple(state.vacating),
        elastic=tuple(state.elastic),
        movable=tuple(state.movable),
        moved=tuple(state.moved),
        serving=tuple(state.serving),
        timed=tuple(state.timed),
        scheduled=tuple(state.scheduled),
        troubled=tuple(state.troubled),
        exceeding=tuple(state.exceeding),
        groups=tuple(state.groups),
        dependents=tuple((name, tuple(ids)) for name, ids in state.dependents.items()),
        use=tuple((name, replace(use)) for name, use in state.use.items()),
        meter=state.ledgers.meter.frozen(),
        end_of=tuple(state.ends.of.items()),
        timers=tuple(state.timers),
        ranked_at=state.ranked_at,
        starts=state.starts,
        starts_before=state.starts_before,
        lanes=state.lanes.parts(),
        exchanges=state.exchanges.parts(),
        taken=tuple(state.taken.items()),
        notes=tuple(state.notes),
        version=state.version,
        causes=state.causes,
        victims=state.victims,
    )


def thaw(snapshot: Snapshot, archive: Archive | None = None) -> State:
    """A state of its own. `archive` has what was put aside before."""
    state = State(archive=archive)
    state.now = snapshot.now
    state.configuration = snapshot.configuration
    state.drains.update((drain.name, drain) for drain in snapshot.drains)
    for frozen in snapshot.nodes:
        node = state.capacity.add(frozen.node, frozen.slot)
        node.foreign, node.leaving, node.leaves_at = frozen.foreign, frozen.leaving, frozen.leaves_at
        node.drained = drain_of(frozen.node, state.drains)
        state.capacity.reindex(node)
    for values in snapshot.workloads:
        record = workload_of(values, state.gangs)
        state.workloads[record.workload.id] = record
        if not record.outcome:
            state.open_work.put(record.workload)
            if record.workload.parent:
                state.children.setdefault(record.workload.parent, {})[record.workload.id] = None
    for values in snapshot.gangs:
        gang = gang_of(values)
        state.gangs[gang.id] = gang
    for user, one in snapshot.publications:
        state.publications.setdefault(one.target, {})[user, one.name] = one
    _remember(state, snapshot)
    _index(state, snapshot)
    _charge(state, snapshot)
    _wait(state, snapshot)
    for frozen in snapshot.nodes:
        state.nodes[frozen.node.id].idle_since = frozen.idle_since
    state.version, state.causes, state.victims = snapshot.version, snapshot.causes, snapshot.victims
    return state


def gang_of(values: Iterable[Any]) -> GangState:
    return GangState(**dict(zip(GANG_FIELDS, _GANG.own(values), strict=True)))


def workload_of(values: Iterable[Any], known: dict[str, GangState]) -> WorkloadState:
    return WorkloadState(known=known, **dict(zip(WORKLOAD_FIELDS, _WORKLOAD.own(values), strict=True)))


def values_of(record: WorkloadState) -> tuple[Values, tuple[Values, ...]]:
    """Of a workload, and of its gangs."""
    return _WORKLOAD.values(record), tuple(_GANG.values(record.known[name]) for name in record.gangs)


def _remember(state: State, snapshot: Snapshot) -> None:
    state.fleet.requested = snapshot.requested
    state.ranked_at = snapshot.ranked_at
    state.starts, state.starts_before = snapshot.starts, snapshot.starts_before
    state.lanes.set(snapshot.lanes)
    state.exchanges.set(snapshot.exchanges)
    state.taken = dict(snapshot.taken)
    state.fleet.overdue_since = dict(snapshot.overdue_since)
    state.fleet.shunned_until = dict(snapshot.shunned_until)
    state.fleet.releasing = dict(snapshot.releasing)
    for source, values in snapshot.records:
        for value in values:
            state.history.records[source].add(value)
    for kind, values in snapshot.kinds:
        for value in values:
            state.history.sample(*kind).add(value)
    state.runs = {name: (newest, here) for name, newest, here in snapshot.runs}
    state.archived.update({(one.user, one.queue, one.outcome): one.how_many for one in snapshot.archived})
    state.notes = deque(snapshot.notes, NOTES_KEPT)


def _index(state: State, snapshot: Snapshot) -> None:
    state.ended = dict.fromkeys(snapshot.ended)
    state.holding = dict.fromkeys(snapshot.holding)
    state.nominated = dict.fromkeys(snapshot.nominated)
    state.vacating = dict.fromkeys(snapshot.vacating)
    state.elastic = dict.fromkeys(snapshot.elastic)
    state.movable = dict.fromkeys(snapshot.movable)
    for name in snapshot.moved:
        if state.gangs[name].status is Status.VACATING:
            state.moved[name] = None
        else:
            state.gangs[name].goes_to = ()  # of a version that went on keeping them without a promise
    state.serving = dict.fromkeys(snapshot.serving)
    state.timed = dict.fromkeys(snapshot.timed)
    state.scheduled = dict.fromkeys(snapshot.scheduled)
    state.troubled = dict.fromkeys(snapshot.troubled)
    state.exceeding = dict.fromkeys(snapshot.exceeding)
    state.dependents = {name: list(ids) for name, ids in snapshot.dependents}
    state.ends.of = dict(snapshot.end_of)
    state.ends.soonest = sorted((end, name) for name, end in snapshot.end_of)
    state.timers = list(snapshot.timers)


def _charge(state: State, snapshot: Snapshot) -> None:
    """What is held and promised, in the ledgers of nodes, quota and queues."""
    state.ledgers.groups = {key: HoldingGroup() for key in snapshot.groups}
    held = [state.gangs[name] for name in state.holding]
    state.ledgers.graces = {gang.id: gang.spec.grace_s for gang in held if gang.held}
    promised = [state.gangs[name] for name in state.nominated]
    for gang in (*held, *promised):  # on nodes first: the tree of quotas is then made with all of it
        placement = gang.held if gang.held or gang.nomination is None else gang.nomination.placement
        state.ledgers.charge(gang, placement, 1, promise=not gang.held)
        state.ledgers.keep(gang, gang.goes_to, 1)
        state.ledgers.show(gang)
    count_quota(state)
    for gang in held:
        if gang.held:
            spec = gang.spec
            group = state.groups[spec.queue, spec.priority, spec.preemptible]
            group.gangs[gang.id] = None
            group.gpus_milli += gang.gpus_milli()
            for each in spec.groups:
                shape = each.options[0].resources
                state.kinds[shape] = state.kinds.get(shape, 0) + 1
            state.ledgers.count_frees(gang, 1)
    state.ledgers.use = {name: replace(use) for name, use in snapshot.use}
    state.ledgers.configuration, state.ledgers.meter = snapshot.configuration, thawed(snapshot.meter)


def _wait(state: State, snapshot: Snapshot) -> None:
    rules = state.configuration.scheduling.preemption
    for gang in state.gangs.values():
        if gang.stake is not None:
            state.lanes.restore(gang, waits=gang.status is Status.QUEUED)
    state.lanes.settle(rules.within_queue == "by_rank", state.ledgers)
    for name in snapshot.waiting:
        state.waiting.add(state.gangs[name])
    shapes = [state.gangs[name].shape for name in snapshot.lines]
    state.waiting.stand([shape for shape in shapes if shape is not None])
    for name in snapshot.parked:
        gang = state.gangs[name]
        park(state, gang, gang.blocked_by)
    for name in state.holding:
        if state.gangs[name].is_active():
            state.outstanding.put(state.gangs[name])
