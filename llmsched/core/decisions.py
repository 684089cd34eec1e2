"""What to do, in the imperative. `decide` proposes them, `State.apply` folds them, an executor carries them out.

`reason` is a code for machines (see `explain`), `why` says more, as data (see `message`); both are made where the
decision is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmsched.core.configuration import Taken
from llmsched.core.message import ArtifactUri, GangName, Message
from llmsched.core.workload import Placement


@dataclass(frozen=True, slots=True)
class Launch:
    """Start attempt `attempt` of a gang on exactly these nodes."""

    gang: str
    attempt: int
    placement: Placement
    why: Message | None = None
    owed_s: float = 0.0  # for how long nobody of its priority evicts it by rank, as it has waited long: see lane.py


@dataclass(frozen=True, slots=True)
class Nominate:
    """Promise capacity to a waiting gang while the victims on it leave."""

    gang: str
    placement: Placement
    victims: tuple[GangName, ...]
    why: Message | None = None
    owed_s: float = 0.0  # what its launch there will say


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take a nomination back: it no longer fits, or the gang no longer waits."""

    gang: str
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class Resize:
    """Change the size of a running gang. `placement` is the whole new one; kept bundles keep their rank order.
    `beneficiary`: for whom it gives."""

    gang: str
    attempt: int
    placement: Placement
    reason: str = ""
    why: Message | None = None
    beneficiary: GangName = ""


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take everything back with grace; the gang goes on waiting. `reason` e.g. quota_reclaim, in_queue_priority.
    `goes_to`: the places that are kept for it until it begins there."""

    gang: str
    attempt: int
    grace_s: float
    reason: str
    beneficiary: GangName = ""
    why: Message | None = None
    goes_to: Placement = ()


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a serve replica finish what it serves, then let go of it; it is not wanted any more."""

    gang: str
    attempt: int
    grace_s: float
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End an attempt for good: cancelled, over budget, over its run time, superseded."""

    gang: str
    attempt: int
    grace_s: float
    reason: str
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """A serve workload wants `replicas` gangs. `memory` is the autoscaler's memory, so that a replay has it. `asked`:
    its load asks for so many, and others make more of the GPUs; 0: it has all it asks for."""

    workload: str
    replicas: int
    memory: str = ""
    why: Message | None = None
    asked: int = 0


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Make a published adapter live on one running replica."""

    gang: str
    attempt: int
    name: str
    uri: ArtifactUri


@dataclass(frozen=True, slots=True)
class RequestCapacity:
    """Nodes the cluster should grow to, as (node type, count); replaces the last request."""

    counts: tuple[tuple[str, int], ...]
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class ReleaseNode:
    node: str
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class Assign:
    """A reservation of so many GPUs takes these from now on."""

    reservation: str
    taken: Taken
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class RunAgain:
    """A `schedule` is due: begin `run` of this workload; with a `why`, leave it out this time."""

    workload: str
    run: int
    why: Message | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A gang that can never start or may not go on: it fails with this reason."""

    gang: str
    reason: str
    why: Message | None = None


Decision = (
    Launch
    | Nominate
    | Withdraw
    | Resize
    | Preempt
    | Drain
    | Stop
    | Scale
    | LoadAdapter
    | RequestCapacity
    | ReleaseNode
    | Assign
    | RunAgain
    | GiveUp
)
