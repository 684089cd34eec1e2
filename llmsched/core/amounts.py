"""What a gang takes: by its spec at a size, and by where it is placed. GPUs in thousandths."""

from __future__ import annotations

from llmsched.core.resources import ZERO, Resources
from llmsched.core.workload import Placed, Placement, Workload


def options_of(spec: Workload) -> range:
    """Numbers of the options there are; a group with fewer has its last one for those beyond."""
    return range(max(len(group.options) for group in spec.groups))


def need_of(spec: Workload, size: int, option: int = 0) -> Resources:
    """What the whole gang takes at `size`."""
    total = ZERO
    for number, group in enumerate(spec.groups):
        amount = group.option(option).resources
        total = total.plus(amount.times(size if number == 0 else group.count))
    return total


def need_milli(spec: Workload, size: int, option: int) -> int:
    """Thousandths of GPUs the whole gang takes at `size`."""
    total = 0
    for number, group in enumerate(spec.groups):
        count = size if number == 0 else group.count
        total += count * group.option(option).resources.gpus_milli
    return total


def least_milli(spec: Workload, size: int) -> int:
    """What it takes at `size` with the option that takes least."""
    return min(need_milli(spec, size, option) for option in options_of(spec))


def bundle_milli(spec: Workload) -> int:
    """Thousandths of GPUs of one bundle of the first group, with the first option."""
    return spec.groups[0].options[0].resources.gpus_milli


def amount_of(workload: Workload, placed: Placed) -> Resources:
    """What one placed bundle takes on its node."""
    for group in workload.groups:
        if group.name == placed.group:
            return group.option(placed.option).resources
    return ZERO


def gpus_of(workload: Workload, placement: Placement) -> int:
    """Thousandths of GPUs of a placement."""
    if len(workload.groups) == 1:
        options = workload.groups[0].options
        if len(options) == 1:
            return options[0].resources.gpus_milli * len(placement)
    return sum(amount_of(workload, placed).gpus_milli for placed in placement)


def size_of(workload: Workload, placement: Placement) -> int:
    """How many bundles of the first (elastic) group a placement has."""
    if len(workload.groups) == 1:
        return len(placement)
    first = workload.groups[0].name
    return sum(placed.group == first for placed in placement)
