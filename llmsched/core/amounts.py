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


def flavor_of(spec: Workload, option: int) -> str | None:
    """Of the GPUs that a gang takes with an option: of its first group that takes any. Those of the others are the
    same in what users write (`spec/serve.py`); where they are not, `place.over_quota` counts each by its own."""
    if len(spec.groups) > 1:
        for group in spec.groups:
            if (found := group.option(option)).resources.gpus_milli:
                return found.flavor
    return spec.groups[0].option(option).flavor


def flavors_of(spec: Workload) -> list[str | None]:
    """The same with each option."""
    if len(spec.groups) == 1:
        return [option.flavor for option in spec.groups[0].options]
    return [flavor_of(spec, option) for option in options_of(spec)]


def least_milli(spec: Workload, size: int) -> int:
    """What it takes at `size` with the option that takes least."""
    return min(need_milli(spec, size, option) for option in options_of(spec))


def bundle_milli(spec: Workload, option: int) -> int:
    """Thousandths of GPUs of one bundle of the first group."""
    return spec.groups[0].option(option).resources.gpus_milli
