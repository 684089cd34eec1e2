"""A class of waiting gangs: of one queue, asking for the same thing. What is refused to one is refused to all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from llmsched.core.amounts import flavors_of, least_milli, need_milli, options_of
from llmsched.core.explain import Reason
from llmsched.core.resources import MILLI
from llmsched.core.workload import Option, Workload

if TYPE_CHECKING:
    from llmsched.core.answers import Index
    from llmsched.core.quota import QuotaTree

Key = tuple[Any, ...]


class Stamp(NamedTuple):
    """What a refusal depends on: `room`; where somebody may be evicted or moved, `victims` as well; and where places
    held for who has waited long kept it out, on those."""

    room: tuple[object, ...]
    victims: tuple[int, ...]
    held: tuple[object, ...] = ()


class Kin:
    """Classes that differ in nothing but what they ask for beside GPUs, and how near to one another: wherever only
    numbers of GPUs count one answer holds for all of them, and they stand in one order."""

    __slots__ = ("classes", "index", "live")

    def __init__(self) -> None:
        self.classes: list[Shape] = []
        self.live: dict[int, Shape] = {}  # those with somebody in them, by serial
        self.index: Index | None = None  # the order of all of them; of a single one that of the class


class Shape:
    """One class of waiting gangs. `entries` are (key, gang id), sorted."""

    __slots__ = (
        "_ask",
        "_asks_for",
        "_reason",
        "entries",
        "examined",
        "flavors",
        "index",
        "kin",
        "least_total",
        "needs_free",
        "gpus",
        "possible",
        "queue",
        "sample",
        "serial",
        "since",
        "told_alone",
        "wake_at",
    )

    def __init__(self, sample: Workload, serial: int) -> None:
        self.sample = sample
        self.queue = sample.queue
        self.serial = serial
        self.entries: list[tuple[Key, str]] = []
        self.since: list[tuple[float, str]] = []  # (since when it waits, gang), longest first
        self.index: Index | None = None  # its order, where keys move and the policy keeps one
        self.kin = Kin()
        self._reason: Reason | None = None
        self._ask: Callable[[Shape], Reason] | None = None
        self._asks_for: object = None
        self.told_alone: dict[str, None] = {}  # gangs that were told a reason of their own, until all are told one
        self.examined: Stamp | None = None  # of the state when all of the class was refused
        self.wake_at: float | None = None  # that refusal holds until then
        self.possible: tuple[int, QuotaTree, tuple[int, ...]] | None = None  # cache of possible.py
        # What quota and rules see of it: classes that differ in nothing of this may take from the same others.
        needs = (need_milli(sample, sample.min_size, option) for option in options_of(sample))
        self.gpus = (
            sample.queue,
            sample.priority,
            *needs,
            *(o.flavor for group in sample.groups for o in group.options),
        )
        self.flavors = tuple(dict.fromkeys(flavors_of(sample)))
        self.least_total = least_milli(sample, sample.min_size)
        has_parts = any(min(option.resources.gpus_milli for option in group.options) % MILLI for group in sample.groups)
        self.needs_free = 0 if has_parts else self.least_total  # a part of a GPU may be free beside others

    @property
    def reason(self) -> Reason | None:
        """Why all of it wait, as the last pass found it, or else as it is when this is first read."""
        if self._ask is not None:
            ask, self._ask = self._ask, None
            self._reason = ask(self)
        return self._reason

    @reason.setter
    def reason(self, reason: Reason | None) -> None:
        self._reason, self._ask = reason, None

    def answer_with(self, ask: Callable[[Shape], Reason], asks_for: object = None) -> None:
        """Whoever reads why it waits asks that first. Most reasons are read by nobody before the next pass.
        `asks_for`: under these policies any later pass would ask the same; None: it would not."""
        self._ask, self._asks_for = ask, asks_for

    @property
    def is_unread(self) -> bool:
        return self._ask is not None

    def would_ask_the_same(self, policies: object) -> bool:
        """Whether all of it are told already what a pass tells whom nothing but room is known to be missing for."""
        return self._ask is not None and self._asks_for is policies and not self.told_alone


class Entries(Collection[tuple[Key, str]]):
    """Of several classes, one after the other."""

    def __init__(self, classes: list[Shape]) -> None:
        self._classes = classes

    def __contains__(self, row: object) -> bool:
        return any(row in shape.entries for shape in self._classes)

    def __len__(self) -> int:
        return sum(len(shape.entries) for shape in self._classes)

    def __iter__(self) -> Iterator[tuple[Key, str]]:
        for shape in self._classes:
            yield from shape.entries


def kin_key(workload: Workload, wanted: int | None) -> Key:
    """All of `shape_key` but amounts other than of GPUs, and topology."""
    groups = tuple((group.count, tuple(map(_of_gpus, group.options))) for group in workload.groups)
    return (groups, *_plain_key(workload, wanted))


def _of_gpus(option: Option) -> Key:
    return (option.flavor, option.resources.gpus_milli, option.speedup)


def shape_key(workload: Workload, wanted: int | None) -> Key:
    return (workload.groups, workload.topology, *_plain_key(workload, wanted))


def _plain_key(workload: Workload, wanted: int | None) -> Key:
    return (
        workload.queue,
        workload.priority,
        workload.min_size,
        workload.max_size,
        workload.step,
        workload.sizes,
        workload.node_labels,
        workload.use_spot,
        workload.preemptible,
        workload.kind == "serve",
        wanted,
    )
