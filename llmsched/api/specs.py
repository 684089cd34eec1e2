"""The workloads of a request, read one after another: others have their turn of the event loop in between."""

from __future__ import annotations

from llmsched.control.turns import breathe
from llmsched.errors import Problem, SpecError
from llmsched.spec import load
from llmsched.spec.workload import WorkloadSpec


async def read(given: list[object]) -> list[WorkloadSpec]:
    """All of them. Raises SpecError with the problems of all, each with its place: specs[2].queue."""
    specs: list[WorkloadSpec] = []
    problems: list[Problem] = []
    for index, each in enumerate(given):
        try:
            specs.append(load.load_json(each, f"specs[{index}]"))
        except SpecError as error:
            problems += error.problems
        await breathe()
    if problems:
        raise SpecError.of(problems)
    return specs
