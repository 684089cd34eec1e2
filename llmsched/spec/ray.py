"""`kind: ray`: an unmodified Ray program, in a Ray of its own that the members of its gang make up."""

from __future__ import annotations

import hashlib
import re
import shlex
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from llmsched.spec.quantities import NAME_PATTERN, Size, parse_accelerator
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.workload import KEY_HINT, KEY_VALUE, Argv, FiniteSpec

LEAST_MEMORY = 500_000_000
LEAST_STORE = 80_000_000  # Ray's own bound, and a little
SHELL = ("/bin/sh", "-c")  # how Ray runs the entrypoint of a job


def name_of_job(submission_id: str) -> str:
    """The name of the workload that is this job: its id, where that can be a name."""
    if re.fullmatch(NAME_PATTERN, submission_id, re.ASCII):
        return submission_id
    plain = re.sub("[^a-z0-9]+", "-", submission_id.lower(), flags=re.ASCII).strip("-")
    return f"{plain[:40]}-{hashlib.sha256(submission_id.encode()).hexdigest()[:12]}".lstrip("-")


def _holds_no_key(metadata: dict[str, str]) -> dict[str, str]:
    for name, value in metadata.items():
        if KEY_VALUE.search(name) or KEY_VALUE.search(value):
            raise ValueError(f"has a value that looks like a key; {KEY_HINT}")
    return metadata


Words = Annotated[str, Field(max_length=4096)]


class Job(Section):
    """What `ray job submit` said of it beside all else, and Ray's Jobs API answers: its id there, and its metadata."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    metadata: Annotated[dict[Words, Words], Field(max_length=64), AfterValidator(_holds_no_key)] = {}


class RaySection(Section):
    run: Annotated[
        Argv,
        Field(
            min_length=1,
            description="The program. It runs once, on the first worker, with RAY_ADDRESS set to its own Ray.",
        ),
    ]
    setup: Annotated[Argv, Field(description="Runs before it, once on every machine, in the workdir.")] = []
    object_store_memory: Annotated[
        Size, Field(description="Of each worker's memory, what its Ray keeps objects in. 0: 30 %.")
    ] = 0
    job: Annotated[
        Job | None, Field(description="As it was submitted through Ray's Jobs API, which fills this in.")
    ] = None

    @property
    def entrypoint(self) -> str:
        """As one line of a shell."""
        return self.run[2] if tuple(self.run[:-1]) == SHELL else shlex.join(self.run)


class RaySpec(FiniteSpec):
    kind: Literal["ray"]
    ray: RaySection

    @model_validator(mode="after")
    def _is_named_as_its_job(self) -> RaySpec:
        job = self.ray.job
        if job is not None and self.name != name_of_job(job.id):
            raise WrongAt(f'of a workload of this id the name is "{name_of_job(job.id)}"', "ray", "job", "id")
        return self

    @model_validator(mode="after")
    def _can_be_a_ray_node(self) -> RaySpec:
        needs = self.resources
        if needs.cpus < 1 or needs.cpus != int(needs.cpus):
            raise WrongAt("a node of a Ray has a whole number of CPUs, and at least 1", "resources", "cpus")
        for index, each in enumerate(map(parse_accelerator, needs.accelerators)):
            if each.gpus_milli % 1000:
                raise WrongAt(f"a node of a Ray has whole GPUs, got {each}", "resources", "accelerators", index)
        if needs.memory and needs.memory < LEAST_MEMORY:
            raise WrongAt("a node of a Ray needs at least 500MB; 0 does not count it", "resources", "memory")
        store = self.ray.object_store_memory
        if store and store < LEAST_STORE:
            raise WrongAt("expected at least 80MB", "ray", "object_store_memory")
        if store and needs.memory and store >= needs.memory:
            raise WrongAt("is part of resources.memory, and must be less", "ray", "object_store_memory")
        return self
