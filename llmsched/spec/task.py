"""`kind: task`: a command on every worker. Lists of words, never a line for a shell."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmsched.spec.section import Section
from llmsched.spec.workload import Argv, FiniteSpec


class TaskSection(Section):
    run: Annotated[Argv, Field(min_length=1)]
    setup: Argv = []


class TaskSpec(FiniteSpec):
    kind: Literal["task"]
    task: TaskSection
