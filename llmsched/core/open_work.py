"""How many gangs each user has in workloads that have not ended: so that nobody fills a queue for all. Kept in step."""

from __future__ import annotations

from llmsched.core.workload import Workload


def gangs_of(workload: Workload) -> int:
    """As many as it may ever have at once."""
    return max(1, workload.max_replicas) if workload.kind == "serve" else 1


class OpenWork:
    def __init__(self) -> None:
        self._of: dict[str, tuple[str, int]] = {}  # workload -> user, gangs
        self._total: dict[str, int] = {}

    def put(self, workload: Workload) -> None:
        """Count it as it is now, in place of what was counted of it."""
        self.drop(workload.id)
        count = gangs_of(workload)
        self._of[workload.id] = workload.user, count
        self._total[workload.user] = self._total.get(workload.user, 0) + count

    def drop(self, workload_id: str) -> None:
        user, count = self._of.pop(workload_id, ("", 0))
        if count:
            self._total[user] -= count
            if not self._total[user]:
                del self._total[user]

    def of_user(self, user: str, but: str = "") -> int:
        """Gangs of `user`, without those of the workload `but`."""
        owner, count = self._of.get(but, ("", 0))
        return self._total.get(user, 0) - (count if owner == user else 0)
