"""What the state keeps about each workload, gang and queue. Plain records; only `State.apply` writes to them.

Times are stamps in seconds, amounts thousandths of a GPU. Fields that are caches (never part of the digest) say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from llmsched.core.configuration import Configuration
from llmsched.core.explain import Reason
from llmsched.core.lane import Stake
from llmsched.core.latency import Curve
from llmsched.core.message import Message
from llmsched.core.resources import ZERO, ByNode, Resources
from llmsched.core.season import Season
from llmsched.core.shapes import Shape
from llmsched.core.status import ACTIVE, HOLDING, TERMINAL, Status
from llmsched.core.trade import Gift, Handover
from llmsched.core.usage import Used
from llmsched.core.workload import Placed, Placement, Workload

if TYPE_CHECKING:
    from llmsched.core.capacity import NodeState


@dataclass(frozen=True, slots=True)
class Nomination:
    """Capacity promised to a waiting gang while `victims` leave."""

    placement: Placement
    victims: tuple[str, ...]
    at: float
    moves: bool = False  # it has left for these places, which were kept meanwhile


class Version(NamedTuple):
    """What the replicas of an endpoint are made from: a spec, and the model that was published in place of its own."""

    revision: int  # from 0; people count from 1
    spec: Workload
    model: str = ""  # uri; "": the one that the spec names


class Weighed(NamedTuple):
    """What a placement takes: (node, amount, device), like bundles side by side as one."""

    spec: Workload
    placement: Placement
    amounts: tuple[tuple[str, Resources, int], ...]


@dataclass(slots=True)
class GangState:
    """One gang. `spec` is the version of the workload it was made from; `held` is what it holds on nodes right now."""

    id: str
    workload_id: str
    index: int
    spec: Workload
    submitted_at: float
    revision: int = 0
    model: str = ""  # of its version
    status: Status = Status.QUEUED
    size: int = 0
    placement: Placement | None = None
    held: Placement = ()  # the union of old and new while it resizes
    attempt: int = 0
    restarts: int = 0  # failures and losses, not preemptions
    failures: int = 0  # in a row without running: lengthens the back-off
    preemptions: int = 0
    evicted_at: tuple[float, ...] = ()  # of the last hour
    stake: Stake | None = None  # while it waits or holds something, see lane.py
    there_s: float = 0.0  # seconds that it waited or held something, before it had that stake
    owed_s: float = 0.0  # seconds that its attempt was owed when it began
    queued_since: float = 0.0
    launched_at: float | None = None
    started_at: float | None = None  # first fact that this attempt runs
    resized_at: float | None = None
    not_before: float = 0.0
    wanted_size: int | None = None  # a user's `scale`
    message: Message | None = None
    nomination: Nomination | None = None
    leaving: str = ""  # while VACATING: the event that follows Released ("released", "ended", "stopped")
    vacate_reason: str = ""
    beneficiary: str = ""
    goes_to: Placement = ()  # while VACATING: the places that are kept for it, then promised to it
    lost_members: bool = False
    home: tuple[str, ...] = ()  # nodes on which members were when others of them were lost, until it starts again
    lost_at: float = 0.0
    checkpoint_at: float | None = None
    fraction: float | None = None
    work_left: float | None = None  # seconds at min_size, as of `progress_at`
    progress_at: float = 0.0
    measured: bool = False  # work_left comes from its own progress, not from what was said before it ran
    basis: Message | None = None  # cache: of work_left, when history said it
    option: int = 0  # that its last attempt was launched with
    flavor: str | None = None  # of the nodes of that attempt
    relative_speed: float = 1.0  # of that flavor, where its option says nothing and history does
    faster: tuple[tuple[float, int], ...] = ()  # (speed, option) of flavors that are faster, at its largest size
    worked_s: float = 0.0  # seconds of work done, at min_size on the first option
    served_s: float = 0.0  # seconds in service of ended attempts
    served_gpu_s: float = 0.0  # GPU-seconds of the same
    stalled: str = ""  # why its attempt does not move, if it does not
    excess: ByNode = ()  # taken beyond what it was given, and charged to its queue
    excess_since: float | None = None
    excess_s: float = 0.0  # for how long its attempt exceeded before
    gifts: tuple[Gift, ...] = ()  # GPUs that others gave for its attempts, see trade.py
    adapters: dict[str, str] = field(default_factory=dict)
    adapter_errors: dict[str, str] = field(default_factory=dict)
    blocked_by: str = ""  # why it is parked: "dependency", "schedule" or "backoff"
    shape: Shape | None = field(default=None, repr=False)  # cache: its class among the waiting
    own_reason: Reason | None = field(default=None, repr=False)  # beside the journal, not in the digest
    weighed: Weighed | None = field(default=None, repr=False, compare=False)  # cache of ledgers.py: its last placement

    @property
    def reason(self) -> Reason | None:
        """Why it waits; gangs of one shape share the answer."""
        if self.status is not Status.QUEUED:
            return None
        return self.own_reason or (self.shape.reason if self.shape is not None else None)

    def is_active(self) -> bool:
        return self.status in ACTIVE

    def is_holding(self) -> bool:
        return self.status in HOLDING

    def is_ended(self) -> bool:
        return self.status in TERMINAL

    def is_late(self, at: float) -> bool:
        """Whether its deadline has passed."""
        return self.spec.deadline is not None and self.spec.deadline <= at

    def gpus_milli(self) -> int:
        return gpus_of(self.spec, self.held)

    def pace(self, size: int) -> float:
        """Progress per second at `size` where it is, or was last, relative to min_size on the first option."""
        return speed(self.spec, size, self.option) * self.relative_speed


@dataclass(slots=True)
class WorkloadState:
    workload: Workload
    submitted_at: float
    gangs: list[str]  # live and ended, in order of index
    known: Mapping[str, GangState] = field(repr=False)
    revision: int = 0
    model: str = ""  # published in place of the one that the spec names
    answered: Version | None = None  # the newest version of which a replica has answered
    answered_before: tuple[Version, ...] = ()  # the last of those that had, before it
    wanted_replicas: int = 1
    scaled_by_user: bool = False
    next_index: int = 0
    cancelled: bool = False
    outcome: str = ""  # succeeded | failed | cancelled, once ended
    finished_at: float | None = None
    message: Message | None = None
    artifact: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    load: tuple[float, float, float] | None = None  # ongoing, queued, at
    curves: tuple[Curve, ...] = ()  # how slow it answers at which load, see latency.py
    season: Season | None = None  # its load of the last week, where replicas may come before the load
    handovers: tuple[Handover, ...] = ()  # the last, see trade.py
    memory: str = ""  # the autoscaler's
    held_back: Message | None = None  # why it has fewer replicas than its load asks for
    next_run_at: float | None = None  # of its schedule, which the newest run of a name carries
    is_due: bool = False  # its schedule has let it begin
    unlisted: bool = False  # by Ray's Jobs API
    usage: tuple[Used, ...] = ()  # once it is put aside: before, its book is the meter's
    met: tuple[str, ...] = ()  # of `after`: what had succeeded, and left the state, before this was submitted
    children_gpu_s: float = 0.0  # GPU-seconds of what it asked for and has ended

    @property
    def version(self) -> Version:
        """The newest."""
        return Version(self.revision, self.workload, self.model)

    @property
    def is_unproven(self) -> bool:
        """Whether replicas of an older version have answered, and none of the newest has."""
        return self.answered is not None and self.answered.revision != self.revision

    @property
    def phase(self) -> str:
        if self.outcome:
            return self.outcome
        if self.cancelled:
            return "stopping"
        gangs = [self.known[gang] for gang in self.gangs]
        if self.workload.kind == "serve":
            running = sum(gang.status in (Status.RUNNING, Status.RESIZING) for gang in gangs)
            if running >= max(self.workload.min_replicas, 1 if self.wanted_replicas else 0):
                return "running"
            if running or any(gang.status is Status.LAUNCHING for gang in gangs):
                return "starting"
            is_leaving = any(gang.status is Status.VACATING for gang in gangs)
            return "stopping" if is_leaving and all(gang.status is not Status.QUEUED for gang in gangs) else "waiting"
        words = {
            Status.QUEUED: "waiting",
            Status.LAUNCHING: "starting",
            Status.RUNNING: "running",
            Status.RESIZING: "resizing",
            Status.VACATING: "stopping",
        }
        return next((words[gang.status] for gang in gangs if gang.status in words), "waiting")


@dataclass(slots=True)
class QueueUse:
    """What a queue holds now, and its use in the past decayed by half-lives (GPU-milli-seconds; scores only)."""

    gpus_milli: int = 0
    cpus_milli: int = 0
    memory_bytes: int = 0
    fixed_milli: int = 0  # of gpus_milli, held by work that may not be preempted
    promised_milli: int = 0  # of gpus_milli, promised to who waits: what nobody uses yet is no use in the past later
    decayed: float = 0.0
    decayed_at: float = 0.0
    counted: float = 0.0  # the same when it was counted last, by which shares are corrected (past_use.py)


@dataclass(slots=True)
class HoldingGroup:
    """The gangs of one queue and priority that hold something: most questions about victims end here."""

    gangs: dict[str, None] = field(default_factory=dict)
    gpus_milli: int = 0


def amount_of(workload: Workload, placed: Placed) -> Resources:
    """What one placed bundle takes on its node."""
    for group in workload.groups:
        if group.name == placed.group:
            return group.option(placed.option).resources
    return ZERO


def weigh(spec: Workload, placement: Placement) -> Weighed:
    amounts = []
    at, end = 0, len(placement)
    plain = len(spec.groups) == 1  # by far the most common: no need to look for the group of each bundle
    while at < end:
        placed = placement[at]
        amount = spec.groups[0].option(placed.option).resources if plain else amount_of(spec, placed)
        run = at + 1
        if placed.gpu_index < 0:  # like bundles side by side are one change
            while run < end and (placement[run] is placed or placement[run] == placed):
                run += 1
        amounts.append((placed.node, amount.times(run - at) if run - at > 1 else amount, placed.gpu_index))
        at = run
    return Weighed(spec, placement, tuple(amounts))


def lets_go(weighed: Weighed) -> tuple[Resources, ...]:
    """What each node has again when one ends, least first; (): none of it is of GPUs, or it has no end."""
    there: dict[str, Resources] = {}
    for name, amount, _ in weighed.amounts if weighed.spec.kind != "serve" else ():
        there[name] = there[name].plus(amount) if name in there else amount
    return tuple(sorted(each for each in there.values() if each.gpus_milli))


def total_of(by_node: ByNode) -> Resources:
    total = ZERO
    for _, used in by_node:
        total = total.plus(used)
    return total


def excess_ends(gang: GangState, configuration: Configuration) -> float:
    """When an attempt that takes more than it was given is ended, if it goes on; inf when it does not or never is."""
    if configuration.excess != "end" or gang.excess_since is None:
        return inf
    return gang.excess_since + configuration.excess_after_s - gang.excess_s


def gpus_of(workload: Workload, placement: Placement) -> int:
    """Thousandths of GPUs of a placement."""
    if len(workload.groups) == 1:
        options = workload.groups[0].options
        if len(options) == 1:
            return options[0].resources.gpus_milli * len(placement)
    return sum(amount_of(workload, placed).gpus_milli for placed in placement)


def flavor_held(nodes: Mapping[str, NodeState], workload: Workload, placement: Placement) -> str | None:
    """Of the GPUs of a placement: where its first bundle lies that has any."""
    if len(workload.groups) > 1:
        placement = tuple(placed for placed in placement if amount_of(workload, placed).gpus_milli) or placement
    node = nodes.get(placement[0].node) if placement else None
    return node.node.flavor if node is not None else None


def size_of(workload: Workload, placement: Placement) -> int:
    """How many bundles of the first (elastic) group a placement has."""
    if len(workload.groups) == 1:
        return len(placement)
    first = workload.groups[0].name
    return sum(placed.group == first for placed in placement)


def says_speed(workload: Workload) -> bool:
    """Whether one of its options says how fast it is there."""
    options = workload.groups[0].options
    return bool(options[0].speedup) if len(options) == 1 else any(option.speedup for option in options)


def speed(workload: Workload, size: int, option: int = 0) -> float:
    """Progress per second at `size` on an option, relative to min_size on the first; linear where nothing is known,
    between known sizes too."""
    curve = workload.groups[0].option(option).speedup or workload.speedup
    if not curve:
        return size / workload.min_size
    below: tuple[int, float] | None = None
    for known, rate in curve:
        if known == size:
            return rate
        if known > size:
            if below is None:
                return rate * size / known
            low, low_rate = below
            return low_rate + (rate - low_rate) * (size - low) / (known - low)
        below = (known, rate)
    return below[1] if below else 1.0  # beyond the last known size nothing more is gained


def expected_end(gang: GangState) -> float:
    """When an attempt should end by itself: at its declared limit or when its estimated work is done, whichever comes
    first; infinite when nobody said."""
    spec = gang.spec
    end = inf
    if gang.work_left is not None:
        end = gang.progress_at + gang.work_left / max(gang.pace(gang.size or spec.min_size), 1e-9)
    if spec.max_runtime_s is not None:
        begun = gang.started_at if gang.started_at is not None else (gang.launched_at or 0.0)
        end = min(end, begun - gang.served_s + spec.max_runtime_s)
    return end


def allowed_sizes(workload: Workload) -> tuple[int, ...]:
    """Every size this gang may have, ascending."""
    if workload.sizes:
        return workload.sizes
    return tuple(range(workload.min_size, workload.max_size + 1, max(1, workload.step)))
