"""The nouns that are scheduled: immutable records of what a user asked for.

A `Workload` is one submission. It is made of gangs: one for train, batch, tune and task; one per replica for serve.
A gang is groups of like bundles that start and stop together; a bundle is taken on one node. The records hold only
what deciding needs. Everything else the user wrote travels in `parcel`, which the core never opens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from llmsched.core.resources import Resources


class Option(NamedTuple):
    """One acceptable way to hold one bundle: an accelerator flavor (None: any node) and the amounts there.

    `speedup` are (size, progress per second relative to min_size on the first option), where that is known for this
    flavor; of the first group alone. Empty: the workload's own, as far as history knows nothing better."""

    flavor: str | None
    resources: Resources
    speedup: tuple[tuple[int, float], ...] = ()


class Topology(NamedTuple):
    """Domains by level name: "node", "rack", "zone" or a label key. None: no wish."""

    required: str | None = None
    preferred: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """`count` like bundles. `options` are tried in order; all bundles of one gang take the same option index.

    The first group of a gang is the elastic one: its count follows the gang's size and `count` here is its minimum.
    """

    name: str
    count: int
    options: tuple[Option, ...]
    topology: Topology | None = None

    def option(self, number: int) -> Option:
        """What one bundle is when the gang takes that option: a group that has fewer of them takes its last one."""
        options = self.options
        return options[number if number < len(options) else -1]


class Retry(NamedTuple):
    """What is tried again: events of {"no-capacity", "interruption", "error"}; back-off doubles from `backoff_s`."""

    on_events: tuple[str, ...] = ("no-capacity", "interruption", "error")
    max_restarts: int = 5
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0


class Autoscaling(NamedTuple):
    """Ray Serve's words. `bounds` are (cron, min, max); delays are seconds. `most_ongoing`: requests that one replica
    takes at a time; 0: not known. `forecast`: whether replicas may come before the load. `hold_s`: how long a request
    waits while none answers."""

    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    bounds: tuple[tuple[str, int, int], ...] = ()
    most_ongoing: int = 0
    forecast: bool = True
    hold_s: float = 0.0


class Slo(NamedTuple):
    """What the 95th percentile is to stay under, in seconds: time to first token and time per token after it, or the
    whole answer."""

    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    latency_p95_s: float | None = None


class Publish(NamedTuple):
    """On success, make the artifact of this workload live in serve workload `to`."""

    to: str
    kind: str = "adapter"  # adapter | model
    name: str = ""
    when: str | None = None  # a comparison on metrics, already checked; evaluated by control before it says Published


@dataclass(frozen=True, slots=True)
class Workload:
    """One submission. Times are seconds, `priority` 0..100 and higher wins, sizes count bundles of the first group."""

    id: str  # "name" for run 1, "name@2" for run 2, and so on
    name: str
    kind: str  # train | serve | batch | tune | task
    groups: tuple[Group, ...]
    run: int = 1
    queue: str = "default"
    user: str = ""
    model: str = ""  # what it trains or runs, as far as run times of the past are alike; "": not known
    steps: float | None = None  # how many of whatever it counts, when that is known before it starts
    priority: int = 50
    min_size: int = 1  # bundles of the first group; serve replicas have min_size == max_size
    max_size: int = 1
    step: int = 1
    sizes: tuple[int, ...] = ()  # explicit feasible sizes, when not every min..max by step is feasible
    min_replicas: int = 1  # serve only: gangs
    max_replicas: int = 1
    max_surge: int = 1  # serve only: replicas beyond those wanted while a new spec rolls out; 0: an old one goes first
    packs: bool = False  # serve only: its replicas need not keep clear of each other, see spread.py
    autoscaling: Autoscaling | None = None
    slo: Slo | None = None  # serve only
    topology: Topology = Topology()
    labels: tuple[tuple[str, str], ...] = ()  # the user's own, to find it by
    node_labels: tuple[tuple[str, str], ...] = ()  # placement.labels: nodes must carry them
    use_spot: bool | None = None
    preemptible: bool = True
    grace_s: float = 120.0
    min_runtime_s: float = 0.0
    max_runtime_s: float | None = None
    estimated_runtime_s: float | None = None  # at min_size unless `speedup` says otherwise
    speedup: tuple[tuple[int, float], ...] = ()  # (size, progress per second relative to min_size) on any option that
    # says nothing of its own
    saves_every_s: float | None = None  # how often it saves its work: believed until it has reported a checkpoint
    deadline: float | None = None  # stamp
    after: tuple[str, ...] = ()  # workload ids that must have succeeded
    schedule: str | None = None  # cron
    overlap: str = "skip"
    retry: Retry = Retry()
    budget_gpu_s: float | None = None
    publish: Publish | None = None
    parent: str = ""  # the run that asked for it, with which it ends
    parcel: str = field(default="", repr=False)  # the user's spec, canonical JSON; opaque to the core

    def is_elastic(self) -> bool:
        return self.max_size > self.min_size

    def levels(self, group: Group) -> tuple[str, ...]:
        """At which all bundles of a group have to lie in one domain: for the gang's sake, and for the group's own."""
        wishes = (self.topology, group.topology)
        return tuple(wish.required for wish in wishes if wish is not None and wish.required is not None)


def run_id(name: str, run: int) -> str:
    """The id of a run: "name" of the first one, "name@2" of the second."""
    return name if run == 1 else named_run(name, run)


def named_run(name: str, run: int | str) -> str:
    """How a user names exactly that run, the first one too: "name" alone means the newest."""
    return f"{name}@{run}"


def split_run(text: str) -> tuple[str, str]:
    """("name", "2") of "name@2", whichever of the two it is; the number is "" where there is none."""
    name, _, run = text.partition("@")
    return name, run


def gang_id(workload_id: str, index: int) -> str:
    """`qwen/0`: gang `index` of a workload; replicas count up from 0 and an index is never used twice."""
    return f"{workload_id}/{index}"


def attempt_name(gang: str, attempt: int) -> str:
    """`llms/qwen/0/1`: the name under which Ray knows one attempt (actor, Serve application)."""
    return f"llms/{gang}/{attempt}"


class Placed(NamedTuple):
    """One bundle of an attempt on its node. `gpu_index` is the device of a fractional share, else -1."""

    group: str
    node: str
    option: int  # index into Group.options
    gpu_index: int = -1


Placement = tuple[Placed, ...]  # in rank order
