"""A class of waiting gangs: of one queue, asking for the same thing. What is refused to one is refused to all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llmsched.core.explain import Reason
from llmsched.core.resources import MILLI
from llmsched.core.workload import Workload

if TYPE_CHECKING:
    from llmsched.core.answers import Index
    from llmsched.core.quota import QuotaTree

Key = tuple[Any, ...]


class Stamp(NamedTuple):
    """What a refusal depends on: `room`, and where somebody may be evicted or moved, `victims` as well."""

    room: tuple[object, ...]
    victims: tuple[int, ...]


class Shape:
    """One class of waiting gangs. `entries` are (key, gang id), sorted."""

    __slots__ = (
        "entries",
        "examined",
        "flavors",
        "index",
        "least_gpus",
        "least_total",
        "needs_free",
        "possible",
        "queue",
        "reason",
        "sample",
        "serial",
        "since",
        "wake_at",
    )

    def __init__(self, sample: Workload, serial: int) -> None:
        self.sample = sample
        self.queue = sample.queue
        self.serial = serial
        self.entries: list[tuple[Key, str]] = []
        self.since: list[tuple[float, str]] = []  # (since when it waits, gang), longest first
        self.index: Index | None = None  # its order, where keys move and the policy keeps one
        self.reason: Reason | None = None
        self.examined: Stamp | None = None  # of the state when all of the class was refused
        self.wake_at: float | None = None  # that refusal holds until then
        self.possible: tuple[int, QuotaTree, tuple[int, ...]] | None = None  # cache of stages/admit.py
        options = sample.groups[0].options
        self.flavors = tuple(dict.fromkeys(option.flavor for option in options))
        self.least_gpus = min(option.resources.gpus_milli for option in options)  # one bundle of the first group
        self.least_total = self.least_gpus * sample.min_size
        self.needs_free = (
            0 if self.least_gpus % MILLI else self.least_total
        )  # a part of a GPU may be free beside others


def shape_key(workload: Workload, wanted: int | None) -> Key:
    return (
        workload.queue,
        workload.priority,
        workload.groups,
        workload.min_size,
        workload.max_size,
        workload.step,
        workload.sizes,
        workload.topology,
        workload.node_labels,
        workload.use_spot,
        workload.preemptible,
        workload.kind == "serve",
        wanted,
    )
