"""Requests that carry a spec. What is wrong with a spec is a SpecError with every problem and its place in the request,
not an error of pydantic's.

Each is built from typed specs by the client and from JSON by the API. Of a list of workloads the model looks at the
list alone: the API reads one workload after another (`api/specs.py`), since a thousand would hold the event loop. Apart
from http_models.py, which every command of the command line imports: the kinds take their time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

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


def _or_itself(model: type[Section], read: Callable[[Any, str], Section], where: str) -> PlainValidator:
    return PlainValidator(
        lambda value: value if isinstance(value, model) else read(value, where), json_schema_input_type=model
    )


def _dump_all(specs: list[object]) -> list[object]:
    return [each.dump() if isinstance(each, WorkloadSpec) else each for each in specs]


_AS_JSON = Annotated[list[ANY_KIND], Field(min_length=1, max_length=MOST_SPECS)]
Specs = Annotated[
    list[object], PlainValidator(_listed, json_schema_input_type=_AS_JSON), PlainSerializer(_dump_all)
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
