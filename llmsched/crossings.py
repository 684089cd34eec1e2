"""Comparisons of reported numbers, such as `eval.loss < 1.2` of `publish.when` or `notify.when`, and how often one
began to be met.

Reports are merged on their way to the controller: of each number only the newest value arrives. So whoever reports
counts, beside the numbers. A `Crossing` tells of some values, one after the other; of two that follow each other
`joined` makes one, wherever reports are merged. Standard library only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from llmsched import sanitize

NAME = "notify.when"  # among the numbers of a report: {comparison: its Crossing}

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


class Crossing(NamedTuple):
    """`times`: how often the values began to meet the comparison, last with `value`. Whether they did `at_first`, which
    counts, and do `now`."""

    times: int
    value: float | str
    at_first: bool
    now: bool


def is_met(condition: str, metrics: Mapping[str, Any]) -> bool:
    """`eval.loss < 1.2`, as the spec has checked it. A metric that was not reported meets nothing, nor does a word."""
    sign, value = _sign(condition), _value(condition, metrics)
    return value is not None and _COMPARISONS[sign](value, float(condition.partition(sign)[2]))


def comparisons_of(spec: Mapping[str, Any]) -> list[str]:
    """Those of `notify` in a spec as JSON data."""
    targets = [target for target in spec.get("notify") or () if isinstance(target, Mapping)]
    return [str(target["when"]) for target in targets if target.get("when")]


def counted(comparisons: Iterable[str], values: Mapping[str, Any]) -> dict[str, Crossing]:
    """Of one report, for those whose number it has."""
    found = {}
    for each in comparisons:
        if (value := _value(each, values)) is not None:
            met = is_met(each, values)
            found[each] = Crossing(int(met), sanitize.number(value), met, met)
    return found


def merged(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Two reports as one: the newest of each number, and the crossings of both."""
    crossed = joined(of(before.get(NAME)), of(after.get(NAME)))
    return ({NAME: crossed} if crossed else {}) | {
        name: value for name, value in {**before, **after}.items() if name != NAME
    }


def joined(before: Mapping[str, Crossing], after: Mapping[str, Crossing]) -> dict[str, Crossing]:
    """Of what both tell, one after the other: a value that stays beyond counts once."""
    return {**before, **{each: then(before.get(each), later) for each, later in after.items()}}


def then(before: Crossing | None, after: Crossing) -> Crossing:
    if before is None:
        return after
    times = after.times - (before.now and after.at_first)
    return Crossing(before.times + times, after.value if times else before.value, before.at_first, after.now)


def of(found: Any) -> dict[str, Crossing]:
    """From JSON data that anybody may have written: what is none is left out."""
    return {
        str(each): Crossing(data[0], data[1], data[2], data[3])
        for each, data in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(data, list | tuple) and [type(part) for part in data] in _TYPES
    }


_TYPES = [[int, kind, bool, bool] for kind in (int, float, bool, str)]


def _sign(condition: str) -> str:
    return next(sign for sign in _COMPARISONS if sign in condition)


def _value(condition: str, metrics: Mapping[str, Any]) -> float | None:
    value = metrics.get(condition.partition(_sign(condition))[0].strip())
    if value in ("inf", "-inf"):  # as JSON has it
        return float(value)
    return value if isinstance(value, int | float) else None
