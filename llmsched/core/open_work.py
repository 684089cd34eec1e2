"""What each user has in workloads that have not ended: so many gangs, in specs of so many bytes. So nobody fills a
queue, or the controller's memory, for all. Kept in step."""

from __future__ import annotations

from typing import NamedTuple

from llmsched.core.workload import Workload


class Open(NamedTuple):
    gangs: int = 0
    spec_bytes: int = 0

    def plus(self, other: Open, times: int = 1) -> Open:
        return Open(self.gangs + times * other.gangs, self.spec_bytes + times * other.spec_bytes)


def open_of(workload: Workload) -> Open:
    return Open(gangs_of(workload), len(workload.parcel))


def gangs_of(workload: Workload) -> int:
    """As many as it may ever have at once."""
    return max(1, workload.max_replicas) if workload.kind == "serve" else 1


class OpenWork:
    def __init__(self) -> None:
        self._of: dict[str, tuple[str, Open]] = {}  # workload -> user, what it has
        self._total: dict[str, Open] = {}

    def put(self, workload: Workload) -> None:
        """Count it as it is now, in place of what was counted of it."""
        self.drop(workload.id)
        mine = open_of(workload)
        self._of[workload.id] = workload.user, mine
        self._total[workload.user] = self._total.get(workload.user, Open()).plus(mine)

    def drop(self, workload_id: str) -> None:
        user, counted = self._of.pop(workload_id, ("", Open()))
        if counted.gangs:
            left = self._total.pop(user).plus(counted, -1)
            if left.gangs:
                self._total[user] = left

    def of_user(self, user: str, but: str = "") -> Open:
        """What `user` has, without the workload `but`."""
        owner, counted = self._of.get(but, ("", Open()))
        return self._total.get(user, Open()).plus(counted, -1 if owner == user else 0)
