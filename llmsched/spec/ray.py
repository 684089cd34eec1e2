"""`kind: ray`: an unmodified Ray program, in a Ray of its own that the members of its gang make up."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmsched.spec.quantities import Size, parse_accelerator
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.workload import Argv, FiniteSpec

LEAST_MEMORY = 500_000_000
LEAST_STORE = 80_000_000  # Ray's own bound, and a little


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


class RaySpec(FiniteSpec):
    kind: Literal["ray"]
    ray: RaySection

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
