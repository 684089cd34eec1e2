"""The newest run of a name, and the spec that a user wrote, as data."""

from __future__ import annotations

from typing import Any

from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.spec import parcel


def spec_of(workload: Workload) -> dict[str, Any]:
    """The user's spec as data, under today's model. Read only: it is shared."""
    return parcel.read(workload.parcel).data


def newest_run(state: State, name: str) -> WorkloadState | None:
    """ "name" is the run with the highest number, "name@2" exactly that one."""
    return state.newest(name)
