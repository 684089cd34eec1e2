"""The newest run of a name, and the spec that a user wrote, as data."""

from __future__ import annotations

from typing import Any

from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload, run_id
from llmsched.spec import parcel


def spec_of(workload: Workload) -> dict[str, Any]:
    """The user's spec as data, under today's model. Read only: it is shared."""
    return parcel.read(workload.parcel).data


def child_named(state: State, parent: Workload, name: str) -> WorkloadState | None:
    """What this run asked for under that name, also when it has left the state."""
    return state.find(run_id(child_name(parent, name), parent.run))


def child_name(parent: Workload, name: str) -> str:
    """No user can write such a name."""
    return f"{parent.name}.{name}"


def newest_run(state: State, name: str) -> WorkloadState | None:
    """ "name" is the run with the highest number, "name@2" exactly that one."""
    return state.newest(name)
