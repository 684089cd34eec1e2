"""Requests that carry a spec: the model holds the typed spec, so what comes in over HTTP is read once and travels on.

Each is built from specs by the client and from JSON by the API. What is wrong with a spec is a SpecError with every
problem and its place in the request, not an error of pydantic's. Apart from http_models.py, which every command of the
command line imports: the kinds take their time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from llmsched.errors import Problem, SpecError
from llmsched.spec import cluster, load
from llmsched.spec.http_requests import Request
from llmsched.spec.schema import ANY_KIND
from llmsched.spec.section import Section
from llmsched.spec.workload import WorkloadSpec

MOST_SPECS = 1000


def _specs_of(value: Any) -> list[WorkloadSpec]:
    """All of them, or SpecError with the problems of all."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_SPECS:
        raise SpecError(f"expected a list of 1 to {MOST_SPECS} workloads", where="specs", code="invalid_request")
    specs: list[WorkloadSpec] = []
    problems: list[Problem] = []
    for index, each in enumerate(value):
        try:
            specs.append(each if isinstance(each, WorkloadSpec) else load.load_json(each, f"specs[{index}]"))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError.of(problems)
    return specs


def _or_itself(model: type[Section], read: Callable[[Any, str], Section], where: str) -> PlainValidator:
    return PlainValidator(
        lambda value: value if isinstance(value, model) else read(value, where), json_schema_input_type=model
    )


def _dump_all(specs: list[WorkloadSpec]) -> list[dict[str, Any]]:
    return [spec.dump() for spec in specs]


_AS_JSON = Annotated[list[ANY_KIND], Field(min_length=1, max_length=MOST_SPECS)]
Specs = Annotated[
    list[WorkloadSpec], PlainValidator(_specs_of, json_schema_input_type=_AS_JSON), PlainSerializer(_dump_all)
]
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
