"""`kind: task`: a command on every worker. Lists of words, never a line for a shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmsched.spec.section import Section
from llmsched.spec.workload import Argv, FiniteSpec


class TaskSection(Section):
    run: Annotated[
        Argv,
        Field(
            min_length=1,
            description="The command of every worker. Asked to leave it gets SIGTERM, and has left whatever its exit "
            "code, unless every worker has made the file that LLMSCHED_DONE names. 126 and 127 are never tried again.",
        ),
    ]
    setup: Argv = []


class TaskSpec(FiniteSpec):
    kind: Literal["task"]
    task: TaskSection
