"""What changed between two specs, in the words people write: one line a key, for `apply` and `plan`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from llmsched.spec.document import Path, dotted
from llmsched.spec.parcel import read
from llmsched.spec.section import Section


def diff(old: Section, new: Section) -> list[str]:
    """`train.lora.r: 8 -> 16`, in the order of the spec; empty when nothing changed."""
    return [
        f"{dotted(path)}: {before} -> {after}" for path, before, after in _changes(old.written(), new.written(), ())
    ]


def diff_parcels(before: str, after: str) -> list[str]:
    """The same of two parcels, under today's model. Of one that it refuses the plain values are compared."""
    old, new = read(before), read(after)
    specs = old.spec, new.spec
    if specs[0] is None or specs[1] is None:
        changes = _changes(old.data, new.data, ())
    else:
        changes = _changes(specs[0].written(), specs[1].written(), ())
    return [f"{dotted(path)}: {was} -> {now}" for path, was, now in changes]


def diff_data(old: Any, new: Any) -> list[str]:
    """The same of plain data. What has a name is compared with what has the same name, wherever it stands."""
    return [f"{dotted(path)}: {was} -> {now}" for path, was, now in _changes(_by_name(old), _by_name(new), ())]


def _by_name(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _by_name(value) for key, value in data.items()}
    if isinstance(data, list):
        names = [each.get("name") if isinstance(each, dict) else None for each in data]
        if data and all(names) and len(set(names)) == len(data):
            return {name: _by_name(each) for name, each in zip(names, data, strict=True)}
        return [_by_name(each) for each in data]
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
