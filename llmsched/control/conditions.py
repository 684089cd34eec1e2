"""Comparisons of reported numbers, such as `eval.loss < 1.2`: of `publish.when` and `notify`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


def is_met(condition: str, metrics: Mapping[str, float]) -> bool:
    """`eval.loss < 1.2`, as the spec has checked it. A metric that was not reported meets nothing."""
    sign = next(sign for sign in _COMPARISONS if sign in condition)
    name, _, number = condition.partition(sign)
    value = metrics.get(name.strip())
    return value is not None and _COMPARISONS[sign](value, float(number))
