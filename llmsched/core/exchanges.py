"""Who has made way for whom: between two changes from outside two gangs exchange a place once, whatever the reason.

Every eviction for somebody else (`Preempt.beneficiary`: by priority, age, quota, shares, rank, or to be moved together)
goes through one door, stages/evict.py, and each uses up a pair of gangs. From then on neither is evicted for the other:

  by rank             for as long as both are there, as the order of a policy may go round in circles by the clock alone
  for another reason  until something happens from outside (`begin_anew`), or the clock gives others a right (turns.py)
  either              of a gang that itself begins anew: it has failed, was lost, lost its node or got another spec

Why evictions end. Let n gangs be there, and look at the time between two changes from outside. Submissions, ends,
cancellations, failures, nodes that come, go or are drained, another configuration and another size or spec of somebody
are changes from outside; a start, an eviction, a promise, a change of size that was decided here, progress and the
clock are not. The number of pairs that have not exchanged a place is at most n (n - 1) / 2, and each eviction for
somebody takes one away. None comes back but at a turn of the clock: twice for each window of a reservation, and once
for each count of past use (past_use.py: at most once an hour, or once a half-life that is shorter), where shares
depend on that. An eviction for nobody is one of these:

  stages/migrate.py    makes who moves faster, so that it happens once for each of its flavors between two others: it
                       begins on places that are kept for it, or where it is faster still
  stages/clear.py      once a window: nobody may start on what is reserved
  stages/reconcile.py  is itself a change from outside

So between two changes from outside evictions end, under every policy and every mixture of rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Exchange(NamedTuple):
    """`gang` was evicted for `beneficiary`."""

    gang: str
    beneficiary: str
    at: float
    by_rank: bool


_NONE: Mapping[str, Exchange] = {}


class Exchanges:
    """The pairs that have exchanged a place, in the order in which they did so."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Exchange] = {}
        self._passing: dict[tuple[str, str], None] = {}  # of them those that the next change from outside ends
        self._with: dict[str, dict[str, Exchange]] = {}

    def note(self, made: Exchange) -> None:
        if made.gang == made.beneficiary:
            return  # whatever a journal says, nobody is somebody else
        pair, turned = (made.gang, made.beneficiary), (made.beneficiary, made.gang)
        known = self._made.get(pair) or self._made.get(turned)
        if known is not None:
            made = made._replace(by_rank=made.by_rank or known.by_rank)
            self._forget(known)
        self._made[pair] = made
        if not made.by_rank:
            self._passing[pair] = None
        self._with.setdefault(made.gang, {})[made.beneficiary] = made
        self._with.setdefault(made.beneficiary, {})[made.gang] = made

    def of(self, gang: str) -> Mapping[str, Exchange]:
        """Those with whom it has exchanged a place, by their names."""
        return self._with.get(gang, _NONE)

    def begin_anew(self) -> bool:
        """Something has happened from outside. Whether that has ended an exchange."""
        passing = [self._made[pair] for pair in self._passing]
        for made in passing:
            self._forget(made)
        return bool(passing)

    def forget(self, gang: str) -> None:
        """It has ended, or begins anew."""
        for made in [*self.of(gang).values()]:
            self._forget(made)

    def parts(self) -> tuple[Exchange, ...]:
        return tuple(self._made.values())

    def set(self, parts: Iterable[Exchange]) -> None:
        for made in parts:
            self.note(made)

    def _forget(self, made: Exchange) -> None:
        del self._made[made.gang, made.beneficiary]
        self._passing.pop((made.gang, made.beneficiary), None)
        for one, other in ((made.gang, made.beneficiary), (made.beneficiary, made.gang)):
            left = self._with[one]
            del left[other]
            if not left:
                del self._with[one]
