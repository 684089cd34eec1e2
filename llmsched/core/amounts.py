"""What a gang takes by its spec, whatever it holds: at a size, with an option. GPUs in thousandths."""

from __future__ import annotations

from llmsched.core.resources import ZERO, Resources
from llmsched.core.workload import Workload


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
