"""The parcel: a spec as the journal keeps it and as it reaches the code that runs it. JSON, every default filled in.

A parcel is read under today's model of its kind. One of an older version may lack a field, and takes its default: a new
optional field changes nobody's workload. One that today's model refuses stays as it was written: what runs goes on with
it, and `Stored.problem` says what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import Any, NamedTuple

from pydantic import ValidationError

from llmsched.spec import validation
from llmsched.spec.document import from_json
from llmsched.spec.load import KINDS
from llmsched.spec.workload import WorkloadSpec

MOST_KEPT = 1024  # readings,
KEPT_CHARACTERS = 2 << 20  # and of no more text, which one request may bring; data take some ten bytes each


class Stored(NamedTuple):
    """What a parcel says today. `data` is read only: it is shared."""

    data: dict[str, Any]
    model: type[WorkloadSpec] | None  # of its kind, today's; None: it has none
    text: str  # the parcel that today's model would make of it
    problem: str = ""  # why today's model refuses it

    @property
    def spec(self) -> WorkloadSpec | None:
        """Typed, made anew: few ask, and a thousand that are kept weigh more than all their data."""
        return None if self.model is None or self.problem else self.model.model_validate(self.data)


class _Readings:
    """Of parcels, the oldest first: so many and no more are kept, however long they are. In any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Stored] = {}
        self._characters = 0
        self._lock = Lock()

    def get(self, parcel: str) -> Stored | None:
        return self._kept.get(parcel)

    def put(self, parcel: str, reading: Stored) -> Stored:
        with self._lock:
            if self._kept.pop(parcel, None) is None:
                self._characters += len(parcel)
            self._kept[parcel] = reading
            while len(self._kept) > MOST_KEPT or self._characters > KEPT_CHARACTERS:
                oldest = next(iter(self._kept))
                del self._kept[oldest]
                self._characters -= len(oldest)
        return reading


_readings = _Readings()
_NOTHING = Stored({}, None, "")


def parcel_of(spec: WorkloadSpec) -> str:
    """Canonical JSON: specs that mean the same are the same text, however they were written."""
    data = spec.dump()
    text = canonical(data)
    _readings.put(text, Stored(data, type(spec), text))
    return text


def canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def read(parcel: str) -> Stored:
    """Under today's model. Never raises for what an older version wrote: see `problem`. Empty text is no spec."""
    known = _readings.get(parcel)
    if known is not None and known.model is KINDS.get(known.data.get("kind", "")):
        return known
    return _readings.put(parcel, parse(parcel)) if parcel else _NOTHING


def parse(parcel: str) -> Stored:
    data = json.loads(parcel)
    kind = data.get("kind")
    if kind not in KINDS:
        return Stored(data, None, parcel, f'there is no kind "{kind}"')
    try:
        spec = KINDS[kind].model_validate(data)
    except ValidationError as error:
        explained = validation.explain(error, KINDS[kind], f"a {kind} workload", from_json(data, "")[0])
        return Stored(data, KINDS[kind], parcel, "; ".join(each.message for each in explained))
    today = spec.dump()
    return Stored(today, KINDS[kind], canonical(today))


def is_same(one: str, other: str) -> bool:
    """Whether two parcels mean the same today."""
    return one == other or read(one).text == read(other).text


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a spec whose values differ. `True` and `1` do, here as in a file."""
    for key in {**before, **after}:
        if canonical(before.get(key)) != canonical(after.get(key)):
            yield key
