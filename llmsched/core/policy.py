"""The five protocols of taste, what they may look at, and `Policies`, which holds one of each.

Policies rank; stages keep the rules. A policy gets a `View`, never the state, and must be a pure function of what it
is given: no clock, no chance. Integers where a ledger is meant, floats only in scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmsched.core.capacity import NodeState
from llmsched.core.configuration import Scheduling
from llmsched.core.estimate import Outlook
from llmsched.core.lifecycle import Status
from llmsched.core.outstanding import SECOND
from llmsched.core.records import GangState, WorkloadState, allowed_sizes, speed
from llmsched.core.resources import MILLI, Resources

if TYPE_CHECKING:
    from llmsched.core.state import State


class View:
    """What a policy may know. Times are seconds, GPUs are counted in whole devices unless a name says `_milli`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.now = state.now

    @property
    def scheduling(self) -> Scheduling:
        return self._state.configuration.scheduling

    def age_s(self, gang: GangState) -> float:
        """Since its workload was submitted."""
        return self.now - gang.submitted_at

    def service_s(self, gang: GangState) -> float:
        """Seconds in service so far, over all attempts."""
        current = self.now - gang.started_at if gang.started_at is not None and gang.is_holding() else 0.0
        return gang.served_s + current

    def attained_gpu_s(self, gang: GangState) -> float:
        """GPU-seconds held so far, over all attempts; the present attempt at its present size."""
        if gang.started_at is None or not gang.is_holding():
            return gang.served_gpu_s
        return gang.served_gpu_s + (self.now - gang.started_at) * gang.gpus_milli() / MILLI

    def held_for_s(self, gang: GangState) -> float:
        """Seconds since this attempt was launched or last resized; 0 when it holds nothing."""
        if not gang.is_holding() or gang.launched_at is None:
            return 0.0
        return self.now - max(gang.launched_at, gang.resized_at or 0.0)

    def remaining_s(self, gang: GangState, size: int | None = None) -> float | None:
        """Run time left at `size` bundles (default: the present size, or min_size while it waits); None: unknown."""
        left = self.work_left(gang)
        if left is None:
            return None
        return left / max(self.speed(gang, size or gang.size or gang.spec.min_size), 1e-9)

    def outlook(self, gang: GangState, low: float, high: float) -> Outlook | None:
        """What is to be believed of its run time, given what it has done: the quantile `low` of the whole run, the mean
        and the quantile `high` of what is left. None: nothing is known. See estimate.py."""
        holds = gang.is_holding()
        done = self.service_s(gang) if holds else gang.served_s
        if gang.measured or gang.spec.is_elastic():
            left = self.remaining_s(gang) if holds else self.work_left(gang)
            if left is None:
                return None
            left = left if left > 0.0 else max(done, 1.0)  # it was to be over by now: as long again is as good a guess
            return Outlook(done + left, left, left)
        guess = self._state.history.guess(gang.spec)
        if gang.relative_speed != 1.0 or any(option.speedup for option in gang.spec.groups[0].options):
            done = gang.worked_s + self._since(gang)  # a second is not the same everywhere
        return None if guess is None else self._state.history.outlook(guess, done, low, high)

    def work_left(self, gang: GangState) -> float | None:
        """The same in seconds at min_size. History is asked only if it deserves belief: an order may not go by a
        guess that is far off, as a planned start may."""
        left, since = gang.work_left, self._since(gang)
        if gang.basis:
            guess = self._state.history.guess(gang.spec)
            return self._state.history.outlook(guess, gang.worked_s + since, 0.5, 0.5).left_s if guess else None
        if left is not None:
            left -= since
        return None if left is None else max(left, 0.0)

    def _since(self, gang: GangState) -> float:
        """Work done since its record was last brought up to date."""
        runs = gang.started_at is not None and gang.is_active()
        return (self.now - gang.progress_at) * gang.pace(gang.size) if runs else 0.0

    def speed(self, gang: GangState, size: int) -> float:
        """Progress per second at `size`, where it is (waiting: on its first option), relative to min_size there."""
        return gang.pace(size) if gang.is_holding() else speed(gang.spec, size)

    def sizes(self, gang: GangState) -> tuple[int, ...]:
        return allowed_sizes(gang.spec)

    def gpus_per_bundle(self, gang: GangState) -> float:
        return gang.spec.groups[0].options[0].resources.gpus_milli / MILLI

    def gpus(self) -> int:
        """GPUs in the cluster."""
        return self._state.capacity.gpus_total

    def free_gpus(self) -> int:
        return self._state.capacity.free_gpus(self._state.capacity.open)

    def free_gpus_beside(self, node: NodeState, level: str) -> int:
        """Free GPUs in the node's domain of that level (on the node itself where it has none)."""
        capacity = self._state.capacity
        domain = node.node.domain(level)
        mask = capacity.domains(level).get(domain, 0) if domain is not None else 1 << node.slot
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

    def of_models(self) -> list[GangState]:
        """Gangs of a named model that wait or run: what is believed of them changes with every run that ends."""
        return [self._state.gangs[name] for name in self._state.outstanding.of_models]

    def waiting(self) -> list[GangState]:
        """Gangs that may start now, in no useful order of preference but a fixed one."""
        gangs = self._state.gangs
        return [gangs[name] for shape in self._state.waiting.shapes.values() for _, name in shape.entries]

    def running(self) -> list[GangState]:
        """Gangs that hold GPUs and are not leaving, oldest launch first."""
        gangs = self._state.gangs
        return [gang for name in self._state.holding if (gang := gangs[name]).status is not Status.VACATING]

    def workload(self, gang: GangState) -> WorkloadState:
        return self._state.workloads[gang.workload_id]


class Ordering(Protocol):
    """Who goes first among those waiting in one queue. Must not look at nodes.

    `static`: the key of a waiting gang does not change while it waits, so that a pass need not ask again.
    Small keys go first. Ties are broken by (submitted_at, workload id).
    """

    static: bool

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]: ...


class Placing(Protocol):
    """Which node. Must not look at queues. `walk`: 1, few free GPUs first; -1, many first; 0, score every node.

    `alike`: nodes of one likeness score the same, so one of them is asked for all."""

    walk: int
    alike: bool

    def score(self, bundle: Resources, node: NodeState, view: View) -> int: ...


class Preemption(Protocol):
    """What is lost by evicting a victim, so that sums can be compared (None: forbidden). The stage chooses the set:
    lower priorities first, and of those the set that loses least."""

    def cost(self, victim: GangState, beneficiary: GangState, view: View) -> int | None: ...


class Elasticity(Protocol):
    """Sizes for elastic gangs, waiting and running, out of `capacity` GPUs. `period_s`: how often to ask again (0: on
    events only). The stage keeps [min, max], the step, quota and nodes."""

    period_s: float

    def share(self, gangs: Sequence[GangState], capacity: int, view: View) -> Mapping[str, int]: ...


class Autoscaling(Protocol):
    """Load becomes wanted replicas. `memory` is what the policy said last time. Delays use `view.now`."""

    def wanted(self, serve: WorkloadState, memory: str, view: View) -> tuple[int, str]: ...


@dataclass(frozen=True, slots=True)
class Policies:
    ordering: Ordering
    placement: Placing
    preemption: Preemption
    elasticity: Elasticity
    autoscaling: Autoscaling
