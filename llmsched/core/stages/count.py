"""Who may be among the best of a ranking, by the number of GPUs and by quota alone: places are looked for later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llmsched.core.amounts import need_milli, options_of
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.state import State
from llmsched.core.workload import Workload


class Count:
    """GPUs and quota by the number, as if nobody of a line held anything."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.quota = state.quota
        capacity = state.capacity
        self.room = {
            flavor: capacity.free_gpus(mask & capacity.open) * MILLI for flavor, mask in capacity.by_flavor.items()
        }
        self.total = sum(self.room.values())
        self._held: dict[str, tuple[str | None, int]] = {}  # (flavor, thousandths of GPUs) of those that run
        self._own: dict[tuple[str, str | None], int] = {}  # of its quota that a queue has not given out yet
        self._charged: dict[tuple[str, str | None], int] = {}

    def wishes(self, gang: GangState) -> list[tuple[str | None, int]]:
        """(flavor, thousandths of GPUs) that would do, best first; flavor None: any."""
        held = self._held.get(gang.id)
        return self._asked(gang.spec) if held is None else [held]

    def _asked(self, spec: Workload) -> list[tuple[str | None, int]]:
        found = []
        for option in options_of(spec):
            flavor = spec.groups[0].option(option).flavor
            if flavor is None and len(self.room) == 1:
                flavor = next(iter(self.room))
            found.append((flavor, need_milli(spec, spec.min_size, option)))
        return found

    def has_no_room(self, spec: Workload) -> bool:
        """Whether none of its wishes would do, whatever quota says. Room only becomes less."""
        return not any(self._has(*wish) for wish in self._asked(spec))

    @contextmanager
    def everybody_gone(self, running: list[GangState]) -> Iterator[None]:
        """While it lasts those who run hold neither room nor quota."""
        held: dict[tuple[str, str | None], int] = {}
        for gang in running:
            node, amount = self.state.nodes.get(gang.held[0].node), gang.gpus_milli()
            flavor = node.node.flavor if node else None
            self._held[gang.id] = flavor, amount
            self.room[flavor] = self.room.get(flavor, 0) + amount
            self.total += amount
            key = (gang.spec.queue, flavor)
            held[key] = held.get(key, 0) + amount
        if self.quota.enforced:
            for key, amount in held.items():
                self.quota.release(*key, amount)
        try:
            yield
        finally:
            if self.quota.enforced:
                for key, amount in self._charged.items():
                    self.quota.release(*key, amount)
                for key, amount in held.items():
                    self.quota.charge(*key, amount)

    @contextmanager
    def kept(
        self, running: Sequence[GangState], gang: GangState, wishes: list[tuple[str | None, int]]
    ) -> Iterator[None]:
        """While it lasts these hold what they have again, as the gang with these wishes sees it."""
        if not running:
            yield
            return
        for flavor, _ in wishes if self.quota.enforced else ():
            self._left_of_own(gang.spec.queue, flavor)  # as it is without them
        held = [(one.spec.queue, *self._held[one.id]) for one in running]
        self._give_back(held, -1)
        try:
            yield
        finally:
            self._give_back(held, 1)

    def _give_back(self, held: list[tuple[str, str | None, int]], sign: int) -> None:
        for queue, flavor, amount in held:
            self.room[flavor] += sign * amount
            self.total += sign * amount
            if self.quota.enforced:
                (self.quota.release if sign > 0 else self.quota.charge)(queue, flavor, amount)
            if (queue, flavor) in self._own:
                self._own[queue, flavor] += sign * amount

    def takes_own(self, queue: str, flavor: str | None, need: int) -> bool:
        """Take it out of what the queue owns, if that is left."""
        key = (queue, flavor)
        if need > self._left_of_own(queue, flavor) or not self._has(flavor, need):
            return False
        self._own[key] -= need
        self._take(key, need)
        return True

    def _left_of_own(self, queue: str, flavor: str | None) -> int:
        left = self._own.get((queue, flavor))
        if left is None:
            branch = self.quota.branch(queue, flavor)
            left = max(0, min(branch.subtree - branch.used, branch.available())) if branch else 0
            self._own[queue, flavor] = left
        return left

    def charge_own(self) -> None:
        """What was taken so far counts against the quota of all from now on."""
        for key, amount in self._charged.items():
            self.quota.charge(*key, amount)

    def takes(self, queue: str, flavor: str | None, need: int) -> bool:
        """Take it, owned or borrowed."""
        if not self._has(flavor, need):
            return False
        if self.quota.enforced:
            if need > self.quota.available(queue, flavor):
                return False
            self.quota.charge(queue, flavor, need)
        self._take((queue, flavor), need)
        return True

    def _has(self, flavor: str | None, need: int) -> bool:
        return need <= (self.room.get(flavor, 0) if flavor is not None else self.total)

    def _take(self, key: tuple[str, str | None], need: int) -> None:
        self._charged[key] = self._charged.get(key, 0) + need
        self.total -= need
        if key[1] is not None:
            self.room[key[1]] -= need
