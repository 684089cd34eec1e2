"""Since when an endpoint may be another one, so that nobody looks through the replicas of one that is not.

An entry changes the replicas of the workload that it names, or of whose gang, and no others; one that names none may
change those of all.
"""

from __future__ import annotations

from collections.abc import Container

from llmsched.core import decisions, facts

# What tells of load and of time, and changes no replica.
_CHANGES_NONE = (
    facts.Tick, facts.LoadObserved, facts.Estimated, facts.ForeignUse, decisions.RequestCapacity, decisions.Assign,
)  # fmt: skip


class Touched:
    """By the versions of the state (`State.version`)."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._all = 0
        self._settled: dict[str, None] = {}

    def note(self, entry: object, version: int, serving: Container[str]) -> None:
        """After it was applied. `serving`: the endpoints that live."""
        if isinstance(entry, _CHANGES_NONE):
            return
        name = named_by(entry)
        self._settled.pop(name, None)
        if not name:
            self._all = version
            self._settled.clear()
        elif name in serving:
            self._of[name] = version
        else:
            self._of.pop(name, None)

    def since(self, workload: str) -> int:
        """Nothing of this endpoint has changed after that version."""
        return max(self._of.get(workload, 0), self._all)

    def settle(self, workload: str) -> None:
        """Nothing is to be done for this endpoint as it is now."""
        self._settled[workload] = None

    def is_settled(self, workload: str) -> bool:
        return workload in self._settled


def named_by(entry: object) -> str:
    """The id of the workload that an entry is about, or whose gang or endpoint."""
    if isinstance(entry, facts.Submitted):
        return entry.workload.id
    gang: str = getattr(entry, "gang", "")
    about: str = gang.rpartition("/")[0] or getattr(entry, "workload", "") or getattr(entry, "target", "")
    return about
