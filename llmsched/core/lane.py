"""The lane: by rank, the part of each pool of GPUs that goes to who has waited longest, whatever the policy prefers.

A gang is *behind* once it has been there for longer than what it has run, in all, / PART, and PATIENCE x `hold_after_s`
beside. `due` is when the first of the two was used up. The gangs of a pool that are behind stand in the order of `due`,
and the first is *owed* a start as long as the lane has no debt: for `Launch.owed_s` nobody of its priority evicts it
then. So many seconds of its GPUs are the lane's debt, which is paid off at SHARE x the GPUs of the pool; what the gang
does not use of them is given back. Where quota counts a pool is what one queue owns of a flavor, else all of it; who
stands in which follows the flavors that are there (`Lanes.follow`).

The bound. A gang that has not run is due when it came, so only those that came before it stand before it, each until
it has had PART of its time. All that these are owed is paid at SHARE x GPUs: it is the gang's turn when it has waited
for PATIENCE x `hold_after_s`, and for what they are owed / (SHARE x GPUs), at any load: who comes later adds nothing.
A gang is owed as long again as it has run, and `hold_after_s` at least. So no run time need be known or right: what it
is owed in all is less than twice what it runs, or `hold_after_s`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import TYPE_CHECKING, NamedTuple

from llmsched.core.amounts import flavor_of, need_milli, options_of

if TYPE_CHECKING:
    from llmsched.core.ledgers import Ledgers
    from llmsched.core.records import GangState

SHARE = 0.05  # of the GPUs of a pool that the lane has; the rest is the ordering policy's to give
PART = 0.1  # of its time that a gang has a right to run: who has run for more is not behind
PATIENCE = 2.0  # how long a gang waits in any case, in units of `hold_after_s`
DOUBT = 2.0  # a run time that somebody believes in may be that many times longer
Row = tuple[float, str, int]  # (due, gang, thousandths of GPUs) of one that waits
PoolKey = tuple[str, str | None]  # (queue, "" for all; flavor)


class Stake(NamedTuple):
    """A gang in a pool, since when, and what it asks for there at least, in thousandths of GPUs."""

    pool: PoolKey
    since: float
    milli: int


class FrozenPool(NamedTuple):
    queue: str
    flavor: str | None
    debt: float
    at: float


class Pool:
    """`debt`: what the lane had given at `at` beyond its part, in seconds x thousandths of GPUs."""

    def __init__(self) -> None:
        self.debt = self.at = 0.0
        self.members = 0
        self.waiting: dict[int, list[Row]] = {}  # by priority

    def debt_at(self, at: float, pays: float) -> float:
        return max(0.0, self.debt - pays * max(0.0, at - self.at)) if self.debt else 0.0

    def lend(self, amount: float, at: float, pays: float) -> None:
        self.debt, self.at = max(0.0, self.debt_at(at, pays) + amount), at


class Lanes:
    """Start reading at `put`."""

    def __init__(self) -> None:
        self.pools: dict[PoolKey, Pool] = {}
        self._rows: dict[str, tuple[PoolKey, int, Row]] = {}  # of those that wait: where they stand
        self._gpus: tuple[int, dict[str | None, int]] = (-1, {})
        self._followed: object = None  # what the pools of gangs depend on, as it was when they were looked at last

    def put(self, gang: GangState, at: float, ledgers: Ledgers, *, waits: bool) -> None:
        """It waits from now on, or holds something."""
        if gang.stake is None or waits:
            key, need = self._asks(gang, ledgers)
            self.drop(gang, at)
            gang.stake = Stake(key, at, need)
            self._join(key)
        self._line_up(gang, waits)

    def follow(self, gangs: Iterable[GangState], by_rank: bool, ledgers: Ledgers) -> None:
        """Nodes or quotas have changed: each gang is in the pool of what is there for it now, wherever it came to
        stand. Debt stays in its pool as long as anybody is in it, and goes with the last of them. `by_rank`: whether
        pools are of use to anybody; else they are looked at when they become so."""
        basis = self._basis(by_rank, ledgers)
        if basis == self._followed:
            return
        self._followed = basis
        if not by_rank:
            return
        asked = ((gang, gang.stake, self._asks(gang, ledgers)[0]) for gang in gangs if gang.stake)
        moves = [(gang, key) for gang, stake, key in asked if key != stake.pool]
        left: dict[PoolKey, PoolKey] = {}
        for gang, key in moves:
            assert gang.stake is not None
            old, waits = gang.stake.pool, gang.id in self._rows
            self._line_up(gang, waits=False)
            gang.stake = gang.stake._replace(pool=key)
            self.pools[old].members -= 1
            left[old] = min(left.get(old, key), key, key=_by_name)
            self._join(key)
            self._line_up(gang, waits)
        for old in sorted(left, key=_by_name):
            pool, heir = self.pools[old], self.pools[left[old]]
            if not pool.members:
                at = max(pool.at, heir.at)
                debt = pool.debt_at(at, self.pays(old, ledgers))
                heir.lend(debt, at, self.pays(left[old], ledgers))
                del self.pools[old]

    def drop(self, gang: GangState, at: float) -> None:
        """It competes for nothing any more, or not for now."""
        stake = gang.stake
        if stake is None:
            return
        self._line_up(gang, waits=False)
        gang.there_s += at - stake.since
        gang.stake = None
        pool = self.pools[stake.pool]
        pool.members -= 1
        if not pool.members:
            del self.pools[stake.pool]  # there is nobody whom its debt keeps back

    def _join(self, key: PoolKey) -> Pool:
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool()
        pool.members += 1
        return pool

    def owe(self, gang: GangState, seconds: float, at: float, ledgers: Ledgers) -> None:
        """Its attempt begins, and is owed so many seconds."""
        gang.owed_s = seconds
        self._lend(gang, seconds, at, ledgers)

    def give_back(self, gang: GangState, ran_s: float, at: float, ledgers: Ledgers) -> None:
        """Its attempt is over after so many seconds."""
        left, gang.owed_s = max(0.0, gang.owed_s - ran_s), 0.0
        self._lend(gang, -left, at, ledgers)

    def _lend(self, gang: GangState, seconds: float, at: float, ledgers: Ledgers) -> None:
        if seconds and gang.stake is not None:
            key = gang.stake.pool
            self.pools[key].lend(seconds * gang.stake.milli, at, self.pays(key, ledgers))

    def pays(self, key: PoolKey, ledgers: Ledgers) -> float:
        """Of its debt, a second."""
        return SHARE * self.capacity(key, ledgers)

    def restore(self, gang: GangState, waits: bool) -> None:
        """Count a gang that has a stake already."""
        assert gang.stake is not None
        self._join(gang.stake.pool)
        self._line_up(gang, waits)

    def settle(self, by_rank: bool, ledgers: Ledgers) -> None:
        """Everybody is in the pool where it belongs by these nodes and quotas."""
        self._followed = self._basis(by_rank, ledgers)

    def _basis(self, by_rank: bool, ledgers: Ledgers) -> object:
        gpus = self._gpus_of(ledgers) if by_rank else {}
        if len(gpus) <= 1:
            return by_rank, ledgers.quota.enforced  # one flavor is one pool, however much there is of it
        return (
            by_rank,
            ledgers.quota.enforced,
            ledgers.configuration,
            tuple(sorted(gpus.items(), key=lambda row: row[0] or "")),
        )

    def _line_up(self, gang: GangState, waits: bool) -> None:
        found = self._rows.pop(gang.id, None)
        if found is not None:
            key, priority, row = found
            lines = self.pools[key].waiting
            del lines[priority][bisect_left(lines[priority], row)]
            if not lines[priority]:
                del lines[priority]
        if waits and gang.stake is not None:
            key, priority, row = gang.stake.pool, gang.spec.priority, (due(gang), gang.id, gang.stake.milli)
            self._rows[gang.id] = key, priority, row
            insort(self.pools[key].waiting.setdefault(priority, []), row)

    def behind(
        self, pool: Pool, patience_s: float, by_priority: bool, has_come: Callable[[float], bool]
    ) -> Iterator[Row]:
        """Those of a pool that are, who is due first before the others; of higher priorities before that. `has_come`:
        whether it is that late by now."""
        lines = [pool.waiting[priority] for priority in sorted(pool.waiting, reverse=True)]
        for rows in lines if by_priority else [merge(*lines)]:
            for row in rows:
                if not has_come(row[0] + PATIENCE * patience_s):
                    break
                yield row

    def parts(self) -> tuple[FrozenPool, ...]:
        """All of it that the stakes of gangs do not say: debts."""
        rows = (FrozenPool(*key, self.pools[key].debt, self.pools[key].at) for key in sorted(self.pools, key=_by_name))
        return tuple(rows)

    def set(self, parts: Iterable[FrozenPool]) -> None:
        """The pools and their debts; who is in them comes with `restore`, and `settle` when there are nodes and quotas
        again."""
        for part in parts:
            pool = self.pools[part.queue, part.flavor] = Pool()
            pool.debt, pool.at = part.debt, part.at

    def _asks(self, gang: GangState, ledgers: Ledgers) -> tuple[PoolKey, int]:
        """Its pool, and what it asks for there, by the first of its options that there is enough for."""
        spec = gang.spec
        queue, flavors = spec.queue if ledgers.quota.enforced else "", self._gpus_of(ledgers)
        asks = [((queue, flavor_of(spec, n)), need_milli(spec, spec.min_size, n)) for n in options_of(spec)]
        found = asks[0] if len(asks) == 1 else next((a for a in asks if a[1] <= self.capacity(a[0], ledgers)), asks[0])
        return found if len(flavors) > 1 else ((queue, None), found[1])

    def capacity(self, key: PoolKey, ledgers: Ledgers) -> int:
        """Thousandths of GPUs."""
        queue, flavor = key
        gpus = self._gpus_of(ledgers)
        there = sum(gpus.values()) if flavor is None else gpus.get(flavor, 0)
        if not queue or not ledgers.quota.enforced:
            return there
        flavors = gpus if flavor is None else (flavor,)
        rows = {ledgers.quota.row_of(queue, one): one for one in flavors}
        branches = (ledgers.quota.branch(queue, one) for one in rows.values())
        return min(there, sum(branch.subtree for branch in branches if branch is not None))

    def _gpus_of(self, ledgers: Ledgers) -> dict[str | None, int]:
        """Thousandths of GPUs by flavor."""
        capacity = ledgers.capacity
        if self._gpus[0] != capacity.version:
            found: dict[str | None, int] = {}
            for (flavor, total), count in capacity.kinds.items():
                found[flavor] = found.get(flavor, 0) + count * total.gpus_milli
            self._gpus = capacity.version, found
        return self._gpus[1]


def _by_name(key: PoolKey) -> tuple[str, bool, str]:
    return key[0], key[1] is not None, key[1] or ""


def due(gang: GangState) -> float:
    """When it had been there for as long as what it has run in ended attempts gives it a right to."""
    assert gang.stake is not None
    return gang.stake.since - gang.there_s + gang.served_s / PART


def is_owed(gang: GangState, has_come: Callable[[float], bool]) -> bool:
    """Whether its attempt has run for less than it was owed when it began. `has_come`: is it that late by now?"""
    if not gang.owed_s or not gang.is_holding():
        return False
    return gang.started_at is None or not has_come(gang.started_at + gang.owed_s)


def part_s(gang: GangState, patience_s: float) -> float:
    """For how long it may run when it is owed a start: as long as it seems to need, and as long again as it has run."""
    most = max(patience_s, gang.served_s)
    return min(most, DOUBT * gang.work_left) if gang.work_left else most
