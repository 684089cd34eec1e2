"""The five protocols of taste, and `Policies`, which holds one of each. What they may look at is in views.py.

Policies rank; stages keep the rules. A policy gets views, never the state, must be a pure function of what it is
given (no clock, no chance), and its answers are checked before a stage sees them (answers.py). Integers where a ledger
is meant, floats only in scores.

Beside its one method a policy may have:

    prepare(view)   called once a pass, before the first question of that pass
    Options         a frozen dataclass: its knobs, with their types and defaults. Then it is made with
                    `options: Knobs[Options]`: `options.common` are those of the cluster file's `policies.options`,
                    `options.of(queue)` the same with what that queue's `policy_options` say instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from llmsched.core import answers
from llmsched.core.resources import Resources
from llmsched.core.views import GangView, NodeView, View, WorkloadView

__all__ = ["CLUSTER_WIDE", "GangView", "Index", "Key", "Knobs", "NodeView", "Policies", "View", "WorkloadView"]

Key = tuple[Any, ...]
OptionsT = TypeVar("OptionsT")
CLUSTER_WIDE = {"of_queue": False}  # metadata of a field of Options: no queue may have a value of its own


class Knobs(Generic[OptionsT]):
    """A policy's options: for all, and for queues that have some of their own."""

    def __init__(self, common: OptionsT, by_queue: Mapping[str, OptionsT] | None = None) -> None:
        self.common = common
        self._by_queue = dict(by_queue or {})

    def of(self, queue: str) -> OptionsT:
        return self._by_queue.get(queue, self.common)


class Ordering(Protocol):
    """Who goes first among those waiting in one queue. Must not look at nodes.

    `static`: the key of a waiting gang does not change while it waits, so that a pass need not ask again. Where keys
    move a policy may have `index()`, which makes an `Index` for each class of gangs, and for each set of classes that
    differ in CPUs, memory or topology alone: a pass need not ask for all then.
    `by_priority` (False where it is left out): its keys begin with -priority, so that nobody is ever ranked before a
    higher priority for having waited long. Small keys go first. Ties are broken by (submitted_at, workload id).
    """

    static: bool

    def key(self, gang: GangView, view: View) -> tuple[Any, ...]: ...


class Index(Protocol):
    """Waiting gangs that ask for the same GPUs, in the same queue, at the same priority.

    `first` gives (key, gang id) of all, best first; `key(gang id)` is (the policy's own key, *age). An index may have
    `bound(now)`, told without asking for a key: the policy's own key of nobody is below it. A pass then looks through
    a class only when its best may be the next."""

    def put(self, gang: GangView) -> None: ...

    def drop(self, gang: str) -> None: ...

    def first(self, now: float, key: Callable[[str], Key]) -> Iterator[tuple[Key, str]]: ...


class Placing(Protocol):
    """Which node. Must not look at queues. `walk`: 1, few free GPUs first; -1, many first; 0, score every node.

    `alike`: nodes of one likeness score the same, so one of them is asked for all."""

    walk: int
    alike: bool

    def score(self, bundle: Resources, node: NodeView, view: View) -> int: ...


class Preemption(Protocol):
    """What is lost by evicting a victim, so that sums can be compared (None: forbidden). The stage chooses the set:
    lower priorities first, and of those the set that loses least.

    With `by_victim = True` (default False) it says that a cost follows from the victim alone: it is asked once a pass
    for each, whoever would begin."""

    def cost(self, victim: GangView, beneficiary: GangView, view: View) -> int | None: ...


class Elasticity(Protocol):
    """Sizes for elastic gangs, waiting and running, out of `capacity` GPUs: a whole number, unless a bundle of one of
    them is a part of a GPU. `period_s`: how often to ask again (0: on events only). The stage keeps [min, max], the
    step, quota and nodes.

    It may have `replicas(serve, low, asked, gangs, capacity, view) -> (replicas, gang or "")`: how many, from `low` to
    `asked`, an endpoint is to have of `capacity` GPUs, where elastic `gangs` of its queue and priority could use them
    too, and which of those makes most of what it does not get. Who has none gives it all that it asks for."""

    period_s: float

    def share(self, gangs: Sequence[GangView], capacity: float, view: View) -> Mapping[str, int]: ...


class Autoscaling(Protocol):
    """Load becomes wanted replicas. `memory` is what the policy said last time. Delays use `view.now`. It may have
    `ask_again(serve, memory, view) -> stamp or None`: when its answer may be another one though nothing is said."""

    def wanted(self, serve: WorkloadView, memory: str, view: View) -> tuple[int, str]: ...


@dataclass(frozen=True, slots=True)
class Policies:
    """One of each family, as stages ask them. Made from policies, or from what is in another one."""

    ordering: answers.Ordering
    placement: answers.Placing
    preemption: answers.Preemption
    elasticity: answers.Elasticity
    autoscaling: answers.Autoscaling

    def __post_init__(self) -> None:
        for family, checked in _CHECKED.items():
            object.__setattr__(self, family, checked.of(getattr(self, family)))

    def begin(self, view: View) -> None:
        """A pass begins."""
        for each in self._all():
            each.begin(view)

    def troubles(self) -> tuple[answers.Trouble, ...]:
        """The wrong answers that stand, at most one of each policy: those of the last pass that asked it anything."""
        return tuple([each.trouble for each in self._all() if each.trouble is not None])

    def _all(self) -> tuple[answers.Checked, ...]:
        return self.ordering, self.placement, self.preemption, self.elasticity, self.autoscaling


_CHECKED: dict[str, type[answers.Checked]] = {
    "ordering": answers.Ordering,
    "placement": answers.Placing,
    "preemption": answers.Preemption,
    "elasticity": answers.Elasticity,
    "autoscaling": answers.Autoscaling,
}
