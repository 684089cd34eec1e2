"""Who has made way for whom by rank: two gangs exchange a place once.

An eviction by rank names for whom it is (`Preempt.beneficiary`), and the record of who was evicted keeps that name for
as long as both are there (`GangState.made_way_for`). From then on neither is evicted by rank for the other, whatever
the ordering policy says. So each eviction by rank uses up one of the n (n - 1) / 2 pairs of n gangs, and pairs never
come back: without new submissions everybody comes to rest, even under a policy whose order goes round in circles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llmsched.core.records import GangState


def made_way(gang: GangState, beneficiary: str, gangs: Mapping[str, GangState]) -> tuple[str, ...]:
    """Whom it has made way for, now that it does so once more; who has ended is forgotten."""
    there = (name for name in gang.made_way_for if (other := gangs.get(name)) is not None and not other.is_ended())
    return (*there, beneficiary) if beneficiary else tuple(there)


class Exchanges:
    """Of gangs that hold something: which of them stay where they are, as far as somebody else is concerned."""

    def __init__(self, holding: Iterable[GangState]) -> None:
        self._holding = {gang.id: gang for gang in holding}
        self._have_made_way: dict[str, list[GangState]] = {}
        for gang in self._holding.values():
            for name in gang.made_way_for:
                self._have_made_way.setdefault(name, []).append(gang)

    def stay_for(self, gang: GangState) -> list[GangState]:
        """Those that have exchanged a place with it."""
        stay = self._have_made_way.get(gang.id, [])
        if not gang.made_way_for:
            return stay
        return [*stay, *(self._holding[name] for name in gang.made_way_for if name in self._holding)]

    def stay_for_each(self, gangs: Iterable[GangState]) -> set[str]:
        """Those that have exchanged a place with every one of them: nobody of them may have its place."""
        each = iter(gangs)
        stay = {one.id for one in self.stay_for(first)} if (first := next(each, None)) is not None else set()
        while stay and (gang := next(each, None)) is not None:
            stay &= {one.id for one in self.stay_for(gang)}
        return stay
