"""What changed between two specs, in the words people write: one line a key, for `apply` and `plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llmsched.spec.document import Path, dotted
from llmsched.spec.load import KINDS
from llmsched.spec.section import Section


def diff(old: Section, new: Section) -> list[str]:
    """`train.lora.r: 8 -> 16`, in the order of the spec; empty when nothing changed."""
    return [
        f"{dotted(path)}: {before} -> {after}" for path, before, after in _changes(old.written(), new.written(), ())
    ]


def diff_parcels(before: str, after: str) -> list[str]:
    """The same of two parcels. One that an older version wrote may not be a spec any more: then its plain values."""
    return [f"{dotted(path)}: {old} -> {new}" for path, old, new in _changes(_written(before), _written(after), ())]


def _written(parcel: str) -> Any:
    data = json.loads(parcel)
    try:
        return KINDS[data["kind"]].model_validate(data).written()
    except (KeyError, TypeError, ValueError):
        return data


def _changes(old: Any, new: Any, at: Path) -> Iterator[tuple[Path, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _changes(old.get(key), new.get(key), (*at, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _changes(before, after, (*at, index))
    elif old != new or isinstance(old, bool) is not isinstance(new, bool):
        yield at, _show(old), _show(new)


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
