"""What a policy sees: views of the state and of its records, which can be read and not written.

A view copies nothing and is made where a policy is asked, so it is as true as the ledgers at that moment. What has no
reader here is no policy's business. This guards against mistakes, not against malice: a policy runs inside the
controller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from llmsched.core import latency, scaling
from llmsched.core.amounts import bundle_milli, need_milli
from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Scheduling
from llmsched.core.estimate import Outlook, alike
from llmsched.core.latency import Reach
from llmsched.core.outstanding import SECOND
from llmsched.core.possible import option_of
from llmsched.core.records import GangState, WorkloadState, allowed_sizes, says_speed, speed
from llmsched.core.resources import MILLI, Resources
from llmsched.core.season import Expected
from llmsched.core.status import Status
from llmsched.core.workload import Workload

if TYPE_CHECKING:
    from llmsched.core.state import State


class Frozen:
    """Its attributes are set once, by whoever makes it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a policy cannot change what it sees: {type(self).__name__}.{name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a policy cannot change what it sees: {type(self).__name__}.{name}")


class GangView(Frozen):
    """One gang; `records.GangState` says what each of these means."""

    __slots__ = ("_gang",)
    _gang: GangState

    def __init__(self, gang: GangState) -> None:
        object.__setattr__(self, "_gang", gang)

    @property
    def id(self) -> str:
        return self._gang.id

    @property
    def workload_id(self) -> str:
        return self._gang.workload_id

    @property
    def index(self) -> int:
        return self._gang.index

    @property
    def spec(self) -> Workload:
        return self._gang.spec

    @property
    def status(self) -> Status:
        return self._gang.status

    @property
    def size(self) -> int:
        return self._gang.size

    @property
    def option(self) -> int:
        return self._gang.option

    @property
    def submitted_at(self) -> float:
        return self._gang.submitted_at

    @property
    def queued_since(self) -> float:
        return self._gang.queued_since

    @property
    def launched_at(self) -> float | None:
        return self._gang.launched_at

    @property
    def started_at(self) -> float | None:
        return self._gang.started_at

    @property
    def resized_at(self) -> float | None:
        return self._gang.resized_at

    @property
    def checkpoint_at(self) -> float | None:
        return self._gang.checkpoint_at

    @property
    def served_s(self) -> float:
        return self._gang.served_s

    @property
    def served_gpu_s(self) -> float:
        return self._gang.served_gpu_s

    @property
    def attempt(self) -> int:
        return self._gang.attempt

    @property
    def restarts(self) -> int:
        return self._gang.restarts

    @property
    def preemptions(self) -> int:
        return self._gang.preemptions

    @property
    def wanted_size(self) -> int | None:
        return self._gang.wanted_size

    @property
    def alike(self) -> tuple[object, ...]:
        """All that `View.outlook` depends on while it waits, but for what history learns."""
        return alike(self._gang)

    @property
    def declared_alone_s(self) -> float | None:
        """The declared run time of a gang of which nothing else is known but for how long it has run; None: it is not
        such a gang."""
        gang, spec = self._gang, self._gang.spec
        if spec.model or gang.relative_speed != 1.0 or gang.measured or spec.is_elastic() or says_speed(spec):
            return None
        return spec.estimated_runtime_s or None

    def is_holding(self) -> bool:
        return self._gang.is_holding()

    def is_active(self) -> bool:
        return self._gang.is_active()

    def gpus_milli(self) -> int:
        """Thousandths of GPUs that it holds now."""
        return self._gang.gpus_milli()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GangView) and other._gang is self._gang

    def __hash__(self) -> int:
        return hash(self._gang.id)

    def __reduce__(self) -> tuple[type[GangView], tuple[GangState]]:
        return GangView, (self._gang,)

    def __repr__(self) -> str:
        return f"GangView({self._gang.id})"


class WorkloadView(Frozen):
    """One workload, and if it serves its load: (ongoing, queued, at)."""

    __slots__ = ("_record",)
    _record: WorkloadState

    def __init__(self, record: WorkloadState) -> None:
        object.__setattr__(self, "_record", record)

    @property
    def workload(self) -> Workload:
        return self._record.workload

    @property
    def submitted_at(self) -> float:
        return self._record.submitted_at

    @property
    def wanted_replicas(self) -> int:
        return self._record.wanted_replicas

    @property
    def scaled_by_user(self) -> bool:
        return self._record.scaled_by_user

    @property
    def load(self) -> tuple[float, float, float] | None:
        return self._record.load

    @property
    def answering(self) -> int:
        """Replicas that answer."""
        return scaling.answering(self._record)

    @property
    def reach(self) -> Reach | None:
        """The most load of a replica at which its target holds, by what was measured. None: it has no target."""
        return scaling.reach_of(self._record)

    def within(self, load: float) -> Callable[[int], float] | None:
        """Share of requests that hold its target, by the number of replicas, at such a load in all. None: not known."""
        return scaling.within(self._record, load)

    def mean_s(self, load: float) -> float | None:
        """Seconds that an answer takes in the mean where each replica has that load, as measured."""
        return latency.mean_s(scaling.curve_of(self._record), load)

    def expected(self, now: float) -> Expected | None:
        """The load until a replica that is asked for now answers. None: not known, or it is not to be looked at."""
        return scaling.expected(self._record, now)

    @property
    def starting(self) -> int:
        """Replicas that have been launched and do not answer yet."""
        return len(scaling.starting(self._record))

    @property
    def late_at(self) -> float | None:
        """When all of these will have taken longer than usual while requests wait for the first to answer. None: nobody
        waits, or nothing starts."""
        return scaling.late_at(self._record)

    def load_ahead(self, now: float) -> float:
        """Requests in flight and waiting, now or when a replica that is asked for now would answer: what is more."""
        return scaling.load_ahead(self._record, now)

    def forecast_changes_at(self, now: float) -> float | None:
        """When that may be another one though nothing is said. None: there is none."""
        return scaling.forecast_changes_at(self._record, now)


class NodeView(Frozen):
    """One node, with what is free on it at this moment of the pass."""

    __slots__ = ("_node",)
    _node: NodeState

    def __init__(self, node: NodeState) -> None:
        object.__setattr__(self, "_node", node)

    @property
    def id(self) -> str:
        return self._node.node.id

    @property
    def name(self) -> str:
        return self._node.node.name or self._node.node.id

    @property
    def flavor(self) -> str | None:
        return self._node.node.flavor

    @property
    def total(self) -> Resources:
        return self._node.node.total

    @property
    def used(self) -> Resources:
        return self._node.used

    @property
    def free(self) -> Resources:
        return self._node.free

    @property
    def total_gpus(self) -> int:
        return self._node.total_gpus

    @property
    def free_whole(self) -> int:
        return self._node.free_whole

    @property
    def shares(self) -> tuple[int, ...]:
        """Thousandths taken of each GPU that is shared, least first."""
        return tuple(sorted(self._node.shares.values()))

    @property
    def unshared_milli(self) -> int:
        """Thousandths that are free of GPUs that are shared."""
        return sum(MILLI - taken for taken in self._node.shares.values())

    def label(self, key: str) -> str | None:
        return self._node.node.label(key)

    def domain(self, level: str) -> str | None:
        return self._node.node.domain(level)

    def room(self, bundle: Resources, enough: int = 1) -> int:
        """How many such bundles still fit, counting no further than `enough`."""
        return self._node.room(bundle, enough)

    def likeness(self) -> tuple[object, ...]:
        """Equal on nodes with the same room, whatever the work."""
        return self._node.likeness()

    def after(self, bundle: Resources) -> NodeView:
        """The same node if such a bundle were taken on it; the real one stays as it is."""
        twin = self._node.twin()
        twin.change(bundle, twin.device_for(bundle.gpus_milli), 1)
        return NodeView(twin)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NodeView) and other._node is self._node

    def __hash__(self) -> int:
        return hash(self._node.node.id)

    def __repr__(self) -> str:
        return f"NodeView({self.id})"


Gang = GangView | GangState  # stages ask about the state's own records


def _own(gang: Gang) -> GangState:
    return gang._gang if isinstance(gang, GangView) else gang


class View(Frozen):
    """What a policy may know. Times are seconds, GPUs are counted in whole devices unless a name says `_milli`.

    Stages ask it about the state's own records, policies about views of them."""

    __slots__ = ("_state", "now")
    _state: State
    now: float

    def __init__(self, state: State) -> None:
        object.__setattr__(self, "_state", state)
        object.__setattr__(self, "now", state.now)

    @property
    def scheduling(self) -> Scheduling:
        return self._state.configuration.scheduling

    def age_s(self, gang: Gang) -> float:
        """Since its workload was submitted."""
        return self.now - gang.submitted_at

    def service_s(self, gang: Gang) -> float:
        """Seconds in service so far, over all attempts."""
        gang = _own(gang)
        current = self.now - gang.started_at if gang.started_at is not None and gang.is_holding() else 0.0
        return gang.served_s + current

    def attained_gpu_s(self, gang: Gang) -> float:
        """GPU-seconds held so far, over all attempts; the present attempt at its present size."""
        gang = _own(gang)
        if gang.started_at is None or not gang.is_holding():
            return gang.served_gpu_s
        return gang.served_gpu_s + (self.now - gang.started_at) * gang.gpus_milli() / MILLI

    def unsaved_s(self, gang: Gang) -> float:
        """Seconds of its attempt's work that would be done again if it were evicted now: since its last checkpoint, or
        where it has reported none since it started, but no more than from one to the next as it says."""
        gang = _own(gang)
        if gang.started_at is None or not gang.is_holding():
            return 0.0
        if gang.checkpoint_at is not None:
            return max(0.0, self.now - max(gang.checkpoint_at, gang.started_at))
        ran = max(0.0, self.now - gang.started_at)
        return ran if gang.spec.saves_every_s is None else min(ran, gang.spec.saves_every_s)

    def held_for_s(self, gang: Gang) -> float:
        """Seconds since this attempt was launched or last resized; 0 when it holds nothing."""
        gang = _own(gang)
        if not gang.is_holding() or gang.launched_at is None:
            return 0.0
        return self.now - max(gang.launched_at, gang.resized_at or 0.0)

    def remaining_s(self, gang: Gang, size: int | None = None) -> float | None:
        """Run time left at `size` bundles (default: the present size, or min_size while it waits); None: unknown."""
        gang = _own(gang)
        left = self.work_left(gang)
        if left is None:
            return None
        return left / max(self.speed(gang, size or gang.size or gang.spec.min_size), 1e-9)

    def outlook(self, gang: Gang, low: float, high: float) -> Outlook | None:
        """What is to be believed of its run time, given what it has done: the quantile `low` of the whole run, the mean
        and the quantile `high` of what is left. None: nothing is known. See estimate.py."""
        gang = _own(gang)
        spec, history = gang.spec, self._state.history
        done, started = gang.served_s, gang.started_at
        if started is not None and gang.is_holding():
            done += self.now - started
        if gang.measured or spec.is_elastic():
            left = self.remaining_s(gang) if gang.is_holding() else self.work_left(gang)
            if left is None:
                return None
            left = left if left > 0.0 else max(done, 1.0)  # it was to be over by now: as long again is as good a guess
            return Outlook(done + left, left, left)
        if gang.relative_speed != 1.0 or says_speed(spec):
            done = gang.worked_s + self._since(gang)  # a second is not the same everywhere
        if not spec.model:  # by far the most common
            declared = spec.estimated_runtime_s
            return history.of_declared(declared, done, low, high) if declared else None
        guess = history.guess(spec)
        return None if guess is None else history.outlook(guess, done, low, high)

    def work_left(self, gang: Gang) -> float | None:
        """The same in seconds at min_size. History is asked only if it deserves belief: an order may not go by a
        guess that is far off, as a planned start may."""
        gang = _own(gang)
        left, since = gang.work_left, self._since(gang)
        if gang.basis:
            guess = self._state.history.guess(gang.spec)
            return self._state.history.outlook(guess, gang.worked_s + since, 0.5, 0.5).left_s if guess else None
        if left is not None:
            left -= since
        return None if left is None else max(left, 0.0)

    def worked_s(self, gang: Gang) -> float:
        """Work done so far, over all attempts, in seconds at min_size on the first option."""
        return _own(gang).worked_s + self._since(_own(gang))

    def _since(self, gang: GangState) -> float:
        """Work done since its record was last brought up to date."""
        runs = gang.started_at is not None and gang.is_active()
        return (self.now - gang.progress_at) * gang.pace(gang.size) if runs else 0.0

    def speed(self, gang: Gang, size: int) -> float:
        """Progress per second at `size`, where it is (waiting: on its first option), relative to min_size there."""
        return _own(gang).pace(size) if gang.is_holding() else speed(gang.spec, size)

    def sizes(self, gang: Gang) -> tuple[int, ...]:
        return allowed_sizes(gang.spec)

    def gpus_per_bundle(self, gang: Gang) -> float:
        return bundle_milli(gang.spec, option_of(self._state, _own(gang))) / MILLI

    def gpus_of_replica(self, serve: WorkloadView) -> float:
        options = [option_of(self._state, self._state.gangs[name]) for name in serve._record.gangs[-1:]] or [0]
        return need_milli(serve.workload, serve.workload.min_size, options[0]) / MILLI

    def gpus(self) -> int:
        """GPUs in the cluster."""
        return self._state.capacity.gpus_total

    def free_gpus(self) -> int:
        return self._state.capacity.free_gpus(self._state.capacity.open)

    def free_gpus_beside(self, node: NodeView, level: str) -> int:
        """Free GPUs in the node's domain of that level (on the node itself where it has none)."""
        capacity = self._state.capacity
        domain = node.domain(level)
        mask = capacity.domains(level).get(domain, 0) if domain is not None else 1 << node._node.slot
        return capacity.free_gpus(mask)

    def typical_bundles(self, most: int) -> list[tuple[Resources, int]]:
        """(bundle, about how many gangs of it hold something or wait), the most common first; at most so many kinds.

        Numbers are cut to their three leading bits, so that the answer seldom changes from one pass to the next."""
        counts = dict(self._state.kinds)
        for shape in self._state.waiting.live.values():
            for group in shape.sample.groups:
                resources = group.options[0].resources
                counts[resources] = counts.get(resources, 0) + len(shape.entries)
        about = [
            (shape, count >> cut << cut) for shape, count in counts.items() for cut in (max(count.bit_length() - 3, 0),)
        ]
        return sorted(about, key=lambda row: (-row[1], row[0]))[:most]

    def jobs(self) -> int:
        """Workloads submitted so far."""
        return len(self._state.workloads) + self._state.archived.total()

    def work_ahead(self) -> tuple[float, float]:
        """(seconds of the longest, GPU-seconds in all) known to be left of those who wait or run; gangs of a named
        model are not in it, see `of_models`."""
        longest, total = self._state.outstanding.ahead(self.now)
        return longest / SECOND, total / (SECOND * MILLI)

    def of_declared(self, low: float, high: float) -> Outlook:
        """What `outlook` has for who declares one second, has not run, and tells nothing else."""
        return self._state.history.of_declared(1.0, 0.0, low, high)

    def of_models(self) -> list[tuple[GangView, int]]:
        """Gangs of a named model that wait or run: what is believed of them changes with every run that ends. Of those
        that have not begun, and are believed the same of, the first one, with how many there are."""
        gangs = self._state.gangs
        return [(GangView(gangs[name]), count) for name, count in self._state.outstanding.of_models()]

    def waiting(self) -> list[GangView]:
        """Gangs that may start now, in no useful order of preference but a fixed one."""
        gangs = self._state.gangs
        return [GangView(gangs[name]) for shape in self._state.waiting.shapes.values() for _, name in shape.entries]

    def running(self) -> list[GangView]:
        """Gangs that hold GPUs and are not leaving, oldest launch first."""
        gangs = self._state.gangs
        return [GangView(gangs[name]) for name in self._state.holding if gangs[name].status is not Status.VACATING]

    def workload(self, gang: Gang) -> WorkloadView:
        return WorkloadView(self._state.workloads[gang.workload_id])
