"""What happened, in the past tense. Facts come in; `State.apply` folds them; the journal keeps them.

Every fact has `at`, a stamp in seconds. A fact never raises: one that is stale or impossible is noted and ignored.
`attempt` numbers tries of a gang from 1; a fact of an older attempt changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llmsched.core.configuration import Configuration
from llmsched.core.latency import Latency
from llmsched.core.message import ArtifactUri, GangName, UserName, WorkloadName
from llmsched.core.nodes import Node
from llmsched.core.resources import ByNode, Resources
from llmsched.core.workload import Workload


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    at: float


@dataclass(frozen=True, slots=True)
class Configured:
    at: float
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class Submitted:
    at: float
    workload: Workload
    replaces: bool = False  # a changed spec under the same id: roll out
    in_place: bool = False  # what runs goes on under it
    met: tuple[WorkloadName, ...] = ()  # of `after`: what has succeeded and left the state


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`by_parent`: by the work that asked for it, not by a person."""

    at: float
    workload: str
    by: str = ""
    by_parent: bool = False


@dataclass(frozen=True, slots=True)
class Scaled:
    """A user asked for `size` bundles (elastic gang) or replicas (serve), within what the spec allows."""

    at: float
    workload: str
    size: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """An endpoint goes back to a version of it that answered: that of `revision`, as a new one. With an `adapter` that
    one alone goes back, to `uri`, which `origin` made: a run, or the endpoint itself by its spec."""

    at: float
    workload: str
    revision: int
    by: UserName = ""
    met: tuple[WorkloadName, ...] = ()  # as in Submitted
    adapter: str = ""
    uri: ArtifactUri = ""
    origin: WorkloadName = ""


@dataclass(frozen=True, slots=True)
class NodeJoined:
    at: float
    node: Node


@dataclass(frozen=True, slots=True)
class NodeLost:
    at: float
    node: str


@dataclass(frozen=True, slots=True)
class NodeDraining:
    """The cluster will take the node away: nothing new goes there, what runs moves before `deadline`. Ends with the
    node, or when it joins again."""

    at: float
    node: str
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class DrainBegun:
    """An operator wants every node of this name (or the one with this id) empty, by `deadline`. In place of what was
    said before; a node that leaves and joins again is still drained."""

    at: float
    node: str
    deadline: float | None = None
    by: UserName = ""


@dataclass(frozen=True, slots=True)
class DrainEnded:
    at: float
    node: str  # as DrainBegun had it
    by: UserName = ""


@dataclass(frozen=True, slots=True)
class ForeignUse:
    """What is taken on a node beyond what gangs were given, by whomever. Shrinks capacity; replaces the last report."""

    at: float
    node: str
    used: Resources


@dataclass(frozen=True, slots=True)
class ExcessUse:
    """What an attempt has taken through Ray beyond what its gang was given, by node; part of the nodes' ForeignUse.

    Replaces the attempt's last report; () when it is within its gang again."""

    at: float
    gang: str
    attempt: int
    used: ByNode


class StartCosts(NamedTuple):
    """Seconds of the start of a replica, by its steps (runtime/start_costs.py); None: not known, or not done."""

    queue_s: float | None = None
    process_s: float | None = None
    fork_s: float | None = None
    packages_s: float | None = None
    imports_s: float | None = None
    load_s: float | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """The attempt runs on its nodes (a serve replica: answers)."""

    at: float
    gang: str
    attempt: int
    took: StartCosts | None = None


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """It never ran. `event` is one of no-capacity, interruption, error, input; retried when the workload's retry has
    it, and input is in none: what the user gave cannot work."""

    at: float
    gang: str
    attempt: int
    event: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Stalled:
    """The attempt is there and does not move, as far as can be seen. `message` empty: it moves again."""

    at: float
    gang: str
    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class Resized:
    """A running gang holds its new size now, in bundles; what it gave up is free."""

    at: float
    gang: str
    attempt: int
    size: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The work ended by itself. `outcome`: succeeded | failed. A failed one is tried again when `event` allows."""

    at: float
    gang: str
    attempt: int
    outcome: str
    message: str = ""
    event: str = "error"
    artifact: str | None = None  # where the result lies
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Released:
    """A preempted, drained or stopped attempt has let go of everything."""

    at: float
    gang: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt is gone without a receipt: its node, its process, its Ray cluster. `by_others`: somebody took it
    away, so it is tried again in any case, and does not count as a restart."""

    at: float
    gang: str
    attempt: int
    message: str = ""
    by_others: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointPublished:
    """A complete checkpoint exists; a victim's cost counts work since `at`. `fraction` of all work done, if known."""

    at: float
    gang: str
    attempt: int
    step: int
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Estimated:
    """A better idea of the run time that is left, at the size the gang has now (or at min_size while it waits)."""

    at: float
    gang: str
    remaining_s: float


@dataclass(frozen=True, slots=True)
class LoadObserved:
    """Requests of a serve workload in flight and waiting, merged over its gateways, and how slow those were that ended,
    where enough did since that was told last."""

    at: float
    workload: str
    ongoing: float
    queued: float = 0.0
    latencies: tuple[Latency, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """Artifact `uri` of workload `origin` is to be live in serve workload `target` under `name`. Not `is_taken`: there
    is no such endpoint yet; it is kept for the first one of that name."""

    at: float
    target: str
    kind: str  # adapter | model
    name: str
    uri: str
    origin: str
    is_taken: bool = True


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """A running replica has loaded (or refused, with `message`) a published adapter."""

    at: float
    gang: str
    attempt: int
    name: str
    uri: ArtifactUri
    message: str = ""


@dataclass(frozen=True, slots=True)
class CommandBegun:
    """A person runs a command beside rank `rank`. `words` are for people: cut, and without secret values."""

    at: float
    gang: str
    attempt: int
    rank: int
    by: str
    words: str


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A person took a job that has ended off the list of Ray's Jobs API. It stays in the history."""

    at: float
    workload: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class Archived:
    """Workloads that ended a while ago, and replicas that are gone, leave the state; see archive.py."""

    at: float
    workloads: tuple[WorkloadName, ...]
    replicas: tuple[GangName, ...] = ()


Fact = (
    Tick
    | Configured
    | Submitted
    | Cancelled
    | Scaled
    | RolledBack
    | NodeJoined
    | NodeLost
    | NodeDraining
    | DrainBegun
    | DrainEnded
    | ForeignUse
    | ExcessUse
    | Bound
    | LaunchFailed
    | Stalled
    | Resized
    | Finished
    | Released
    | Lost
    | CheckpointPublished
    | Estimated
    | LoadObserved
    | Published
    | AdapterLoaded
    | CommandBegun
    | Unlisted
    | Archived
)
