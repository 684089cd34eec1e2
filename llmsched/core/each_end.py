"""Whether who waits has room wherever anybody ends: then the order alone keeps it out, and smaller work does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llmsched.core.planned import has_shares, is_plenty
from llmsched.core.resources import MILLI, Resources
from llmsched.core.shapes import Shape
from llmsched.core.state import State


class EachEnd:
    """As things stand in the state. Of whoever has no room now."""

    def __init__(self, state: State) -> None:
        self._state, self._frees = state, state.ledgers.frees
        self._least: int | None = None  # thousandths of GPUs that one lets go of when it ends
        self._known: dict[tuple[object, ...], bool] = {}

    def has_room_for(self, shape: Shape) -> bool:
        """Whether one of the class has it on the nodes of each one that ends, by itself, with any of its options."""
        spec = shape.sample
        if self._least is None:
            least = min((sum(each.gpus_milli for each in frees) for frees in self._frees), default=0)
            self._least = 0 if has_shares(self._state) else least
        if shape.least_total > self._least or len(spec.groups) > 1:
            return False
        group, required = spec.groups[0], spec.topology.required
        if group.topology is not None or required not in (None, "node"):
            return False
        bundles = tuple(dict.fromkeys(option.resources for option in group.options))
        key = (bundles, spec.min_size, required)
        found = self._known.get(key)
        if found is None:
            together = sum if required is None else max
            found = self._known[key] = all(self._fits(bundle, spec.min_size, together) for bundle in bundles)
        return found

    def _fits(self, bundle: Resources, count: int, together: Callable[[Iterable[int]], int]) -> bool:
        if bundle.custom or not bundle.gpus_milli or bundle.gpus_milli % MILLI:
            return False
        if is_plenty(self._state, [bundle, *self._state.kinds]):
            bundle = Resources(bundle.gpus_milli)
        return all(together(_room(each, bundle) for each in frees) >= count for frees in self._frees)


def _room(amount: Resources, bundle: Resources) -> int:
    """How many of the bundles it is enough for."""
    pairs = zip(amount[:3], bundle[:3], strict=True)
    return min(there // each for there, each in pairs if each)
