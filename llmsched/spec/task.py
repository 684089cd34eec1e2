"""`kind: task`: a command on every worker. Lists of words, never a line for a shell."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from llmsched.spec import launchers
from llmsched.spec.quantities import Duration, parse_accelerator
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.workload import Argv, FiniteSpec

MOST_PROCESSES = 1024
LONGEST_INACTIVITY_S = 30 * 24 * 3600.0


def _parse_processes(value: Any) -> Any:
    if value == "gpus" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_PROCESSES):
        return value
    raise ValueError(f'expected "gpus" (one for each GPU of a worker) or a whole number from 1 to {MOST_PROCESSES}')


Processes = Annotated[
    Literal["gpus"] | int,
    BeforeValidator(_parse_processes),
    WithJsonSchema({"anyOf": [{"const": "gpus"}, {"type": "integer", "minimum": 1, "maximum": MOST_PROCESSES}]}),
]


def _at_least_a_minute(seconds: float) -> float:
    if not 60 <= seconds <= LONGEST_INACTIVITY_S:
        raise ValueError("expected a time from 1m to 30d")
    return seconds


class Interactive(Section):
    inactivity: Annotated[
        Duration,
        AfterValidator(_at_least_a_minute),
        Field(
            description="It ends, as succeeded, once nobody has used it for so long: no exec, port-forward or cp, and "
            "less than a fifth of a core computed."
        ),
    ] = 2 * 3600.0


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
    interactive: Annotated[
        Interactive | None,
        Field(description="It is for work by hand, such as a notebook, and ends when that is over."),
    ] = None
    processes_per_worker: Annotated[
        Processes,
        Field(
            description="How often a worker runs the command, each with a RANK of its own. A launcher (torchrun, "
            "accelerate launch) is started once a worker and starts that many itself."
        ),
    ] = 1


class TaskSpec(FiniteSpec):
    kind: Literal["task"]
    task: TaskSection

    @model_validator(mode="after")
    def _has_whole_gpus_for_its_processes(self) -> TaskSpec:
        if self.task.processes_per_worker == "gpus":
            wanted = [parse_accelerator(each) for each in self.resources.accelerators]
            if not wanted:
                raise WrongAt('"gpus" needs resources.accelerators; write a number', "task", "processes_per_worker")
            if part := next((each for each in wanted if each.gpus_milli % 1000), None):
                message = f'"gpus" needs whole GPUs, and resources.accelerators has {part}'
                raise WrongAt(message, "task", "processes_per_worker")
        return self

    @model_validator(mode="after")
    def _is_one_gang(self) -> TaskSpec:
        if why := launchers.cannot_meet(self.task.run, self.workers.min, self.workers.max):
            raise WrongAt(why, "task", "run")
        return self
