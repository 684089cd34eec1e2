"""Requests that carry a spec. What is wrong with a spec is a SpecError with every problem and its place in the request,
not an error of pydantic's.

Each is built from typed specs by the client and from JSON by the API. Of a list of workloads the model looks at the
list alone: the API reads one workload after another (`api/specs.py`), since a thousand would hold the event loop. Apart
from http_models.py, which every command of the command line imports: the kinds take their time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from llmsched.errors import SpecError
from llmsched.spec import cluster
from llmsched.spec.http_requests import Request
from llmsched.spec.schema import ANY_KIND
from llmsched.spec.section import Section
from llmsched.spec.workload import WorkloadSpec

MOST_SPECS = 1000


def _listed(value: Any) -> list[object]:
    """As it came. Raises SpecError for what is no list, or too long a one."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_SPECS:
        raise SpecError(f"expected a list of 1 to {MOST_SPECS} workloads", where="specs", code="invalid_request")
    return value


@dataclass(frozen=True)
class _Read:
    """Takes a value with `read`; a JSON Schema of it is that of `described`, which is made when somebody asks for it:
    the models of all kinds take long, and a start needs none."""

    read: Callable[[Any], Any]
    described: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(TypeAdapter(self.described).core_schema)


def _or_itself(model: type[Section], read: Callable[[Any, str], Section], where: str) -> _Read:
    return _Read(lambda value: value if isinstance(value, model) else read(value, where), model)


def _dump_all(specs: list[object]) -> list[object]:
    return [each.dump() if isinstance(each, WorkloadSpec) else each for each in specs]


_AS_JSON = Annotated[list[ANY_KIND], Field(min_length=1, max_length=MOST_SPECS)]
Specs = Annotated[
    list[object], _Read(_listed, _AS_JSON), PlainSerializer(_dump_all)
]  # of type object, so that nobody takes them for workloads that were read
Dumped = PlainSerializer(Section.dump)
Cluster = Annotated[cluster.ClusterSpec, _or_itself(cluster.ClusterSpec, cluster.load_json, "config"), Dumped]
Reservation = Annotated[
    cluster.ReservationSpec,
    _or_itself(cluster.ReservationSpec, cluster.load_reservation, "reservation"),
    Dumped,
]


class ApplyRequest(Request):
    """Several workloads of one file, accepted together or not at all."""

    specs: Specs
    again: bool = False  # make run N+1 even when nothing changed


class PlanRequest(Request):
    specs: Specs


class ConfigRequest(Request):
    """The cluster file as JSON."""

    config: Cluster


class ReserveRequest(Request):
    """One entry of `reservations` of the cluster file."""

    reservation: Reservation
