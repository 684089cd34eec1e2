"""The parcel: a spec as the journal keeps it and as it reaches the code that runs it. JSON, every default filled in.

A parcel is read under today's model of its kind. One of an older version may lack a field, and takes its default: a new
optional field changes nobody's workload. One that today's model refuses stays as it was written: what runs goes on with
it, and `Stored.problem` says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from llmsched.spec import validation
from llmsched.spec.document import from_json
from llmsched.spec.load import KINDS
from llmsched.spec.workload import WorkloadSpec

MOST_KEPT = 1024  # readings kept: a kilobyte or ten each


class Stored(NamedTuple):
    """What a parcel says today. `data` is read only: it is shared."""

    data: dict[str, Any]
    spec: WorkloadSpec | None
    text: str  # the parcel that today's model would make of it
    problem: str = ""  # why today's model refuses it, and then `spec` is None


_readings: dict[str, Stored] = {}  # by parcel, the oldest first
_NOTHING = Stored({}, None, "")


def parcel_of(spec: WorkloadSpec) -> str:
    """Canonical JSON: specs that mean the same are the same text, however they were written."""
    data = spec.dump()
    text = canonical(data)
    _keep(text, Stored(data, spec, text))
    return text


def canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read(parcel: str) -> Stored:
    """Under today's model. Never raises for what an older version wrote: see `problem`. Empty text is no spec."""
    known = _readings.get(parcel)
    if known is not None and (known.spec is None or type(known.spec) is KINDS.get(known.spec.kind)):
        return known
    return _keep(parcel, parse(parcel)) if parcel else _NOTHING


def parse(parcel: str) -> Stored:
    data = json.loads(parcel)
    kind = data.get("kind")
    if kind not in KINDS:
        return Stored(data, None, parcel, f'there is no kind "{kind}"')
    try:
        spec = KINDS[kind].model_validate(data)
    except ValidationError as error:
        explained = validation.explain(error, KINDS[kind], f"a {kind} workload", from_json(data, "")[0])
        return Stored(data, None, parcel, "; ".join(each.message for each in explained))
    today = spec.dump()
    return Stored(today, spec, canonical(today))


def is_same(one: str, other: str) -> bool:
    """Whether two parcels mean the same today."""
    return one == other or read(one).text == read(other).text


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a spec whose values differ. `True` and `1` do, here as in a file."""
    for key in {**before, **after}:
        if canonical(before.get(key)) != canonical(after.get(key)):
            yield key


def _keep(parcel: str, reading: Stored) -> Stored:
    _readings.pop(parcel, None)
    while len(_readings) >= MOST_KEPT:
        _readings.pop(next(iter(_readings)), None)
    _readings[parcel] = reading
    return reading
