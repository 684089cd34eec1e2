"""Snapshots of the state, and workloads that were put aside, to bytes and back: packed JSON, spelled by codec.py.

A spec is written once, however many gangs were made from it. Fields go by name, as in the journal: what an older writer
did not know takes its default, what a newer one wrote is refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_type_hints

from llmsched.core.records import GangState, WorkloadState
from llmsched.core.snapshot import (
    GANG_FIELDS,
    WORKLOAD_FIELDS,
    Snapshot,
    Values,
    gang_of,
    values_of,
    workload_of,
)
from llmsched.core.workload import Workload
from llmsched.store.codec import CodecError, default_of, from_data, to_data

_SPEC = {GangState: "spec", WorkloadState: "workload"}  # the field that is the spec, written as its number
_FIELDS = {GangState: GANG_FIELDS, WorkloadState: WORKLOAD_FIELDS}


def dump(snapshot: Snapshot) -> bytes:
    specs = _Specs()
    workloads = [specs.spelled(WorkloadState, values) for values in snapshot.workloads]
    gangs = [specs.spelled(GangState, values) for values in snapshot.gangs]
    rest = to_data(Snapshot, replace(snapshot, workloads=(), gangs=()))
    return _packed({**specs.written(), "workloads": workloads, "gangs": gangs, "rest": rest})


def load(body: bytes) -> Snapshot:
    """Raises CodecError."""
    data = _unpacked(body)
    specs = [from_data(Workload, spec) for spec in data["specs"]]
    rest: Snapshot = from_data(Snapshot, data["rest"])
    return replace(
        rest,
        workloads=tuple(_read(WorkloadState, data["workload_fields"], data["workloads"], specs)),
        gangs=tuple(_read(GangState, data["gang_fields"], data["gangs"], specs)),
    )


def dump_ended(record: WorkloadState) -> bytes:
    """With its gangs."""
    specs = _Specs()
    workload, gangs = values_of(record)
    spelled = specs.spelled(WorkloadState, workload)
    return _packed(
        {"workload": spelled, "gangs": [specs.spelled(GangState, each) for each in gangs], **specs.written()}
    )


def load_ended(body: bytes) -> WorkloadState:
    """Its `known` holds its gangs. Raises CodecError."""
    data = _unpacked(body)
    specs = [from_data(Workload, spec) for spec in data["specs"]]
    gangs = [gang_of(values) for values in _read(GangState, data["gang_fields"], data["gangs"], specs)]
    (values,) = _read(WorkloadState, data["workload_fields"], [data["workload"]], specs)
    return workload_of(values, {gang.id: gang for gang in gangs})


def _packed(data: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode(), 1)


def _unpacked(body: bytes) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(zlib.decompress(body))
    except (zlib.error, ValueError) as error:
        raise CodecError(f"a snapshot cannot be read: {error}") from None
    return data


class _Specs:
    """Numbers each spec that it meets."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._specs: list[Workload] = []

    def spelled(self, cls: type, values: Values) -> list[Any]:
        return [
            self._number(value) if name == _SPEC[cls] else to_data(hint, value)
            for (name, hint), value in zip(_hints(cls), values, strict=True)
        ]

    def _number(self, spec: Workload) -> int:
        number = self._numbers.get(id(spec))
        if number is None:
            number = self._numbers[id(spec)] = len(self._specs)
            self._specs.append(spec)
        return number

    def written(self) -> dict[str, Any]:
        return {
            "specs": [to_data(Workload, spec) for spec in self._specs],
            "workload_fields": WORKLOAD_FIELDS,
            "gang_fields": GANG_FIELDS,
        }


@cache
def _hints(cls: type) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(cls)
    return tuple((name, hints[name]) for name in _FIELDS[cls])


def _read(cls: type, names: Sequence[str], rows: Iterable[Any], specs: Sequence[Workload]) -> Iterable[Values]:
    strange = ", ".join(sorted(set(names) - set(_FIELDS[cls])))
    if strange:
        raise CodecError(f"a {cls.__name__} has unknown fields: {strange}", hint="Was it written by a newer llmsched?")
    places = {name: place for place, name in enumerate(names)}
    for row in rows:
        yield tuple(
            (specs[row[places[name]]] if name == _SPEC[cls] else from_data(hint, row[places[name]]))
            if name in places
            else default_of(cls, name)
            for name, hint in _hints(cls)
        )
