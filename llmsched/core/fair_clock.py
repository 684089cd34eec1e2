"""How long each gang would have run by now, had all that compete shared the GPUs: by it nobody is left far behind.

Each pool of GPUs has a clock that goes at 1 / contention: the GPUs that the work in it asks for, over those that there
are for it, and never faster than time. So its advance while a gang is there is how long the gang would have run had
all been served at once, each a part of the time (generalized processor sharing; the virtual time of fair queueing).
Where quota counts a pool is what one queue owns of a flavor, else all of that flavor.

A gang has waited long when the clock has advanced by more than what it has run, in all, / SHARE + PATIENCE x
`hold_after_s`. `due` is what the clock shows when the first of the two is used up; while a gang waits it stands still,
so those of a pool are kept in that order, and the first one, once it is first, stays so. What must be known of the past
is two numbers for each gang and two for each pool: nothing is added up over gangs or over time. A larger SHARE bounds
waiting more tightly; under a load that lasts it takes as large a part of the GPUs from those that the policy prefers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from llmsched.core.amounts import need_milli

if TYPE_CHECKING:
    from llmsched.core.ledgers import Ledgers
    from llmsched.core.records import GangState

SHARE = 0.15  # of its fair time that a gang has for sure; the rest is the ordering policy's to give
PATIENCE = 2.0  # fair time that it waits beyond that, in units of `hold_after_s`
Row = tuple[float, str, int]  # (due, gang, thousandths of GPUs) of one that waits
PoolKey = tuple[str, str | None]  # (queue, "" for all; flavor)


class Stake(NamedTuple):
    """A gang in a pool: what it asks for there, in thousandths of GPUs, and what the clock showed when it came."""

    pool: PoolKey
    since: float
    milli: int
    is_fixed: bool  # it holds them and may not be evicted: they are none that others could share


class FrozenPool(NamedTuple):
    queue: str
    flavor: str | None
    reading: float
    at: float
    capacity: int


class Pool:
    """A clock, and what it depends on. `needs`: thousandths of GPUs of one gang -> of all that ask for so many."""

    def __init__(self, at: float) -> None:
        self.reading, self.at = 0.0, at
        self.capacity = 0  # when a gang came or went last
        self.fixed = self.members = 0
        self.needs: dict[int, int] = {}
        self.waiting: dict[int, list[Row]] = {}  # by priority

    @property
    def there(self) -> int:
        """What those that come and go may share. Who asks for more competes with nobody, and is owed nothing."""
        return self.capacity - self.fixed

    def now(self, at: float) -> float:
        """What the clock shows."""
        there = self.there
        if there <= 0:
            return self.reading
        asked = sum(milli for need, milli in self.needs.items() if need <= there)
        return self.reading + (at - self.at) / max(1.0, asked / there)

    def change(self, stake: Stake, sign: int, at: float, capacity: int) -> None:
        self.reading, self.at, self.capacity = self.now(at), at, capacity
        self.members += sign
        if stake.is_fixed:
            self.fixed += sign * stake.milli
            return
        left = self.needs.get(stake.milli, 0) + sign * stake.milli
        if left:
            self.needs[stake.milli] = left
        else:
            self.needs.pop(stake.milli, None)


class FairClocks:
    """Start reading at `put`."""

    def __init__(self) -> None:
        self.pools: dict[PoolKey, Pool] = {}
        self._rows: dict[str, tuple[PoolKey, int, Row]] = {}  # of those that wait: where they stand
        self._gpus: tuple[int, dict[str | None, int]] = (-1, {})

    def put(self, gang: GangState, at: float, ledgers: Ledgers, *, waits: bool) -> None:
        """It waits from now on, or holds something. What it has a right to goes on where it goes on in its pool."""
        key = self._key(gang, ledgers)
        old = gang.stake
        if old is not None and old.pool != key:
            self.drop(gang, at, ledgers)
            old = None
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool(at)
        capacity = self._capacity(key, ledgers)
        if old is not None:
            pool.change(old, -1, at, capacity)
        spec = gang.spec
        need, is_fixed = need_milli(spec, spec.min_size, 0), not waits and not spec.preemptible
        gang.stake = Stake(key, pool.now(at) if old is None else old.since, need, is_fixed)
        pool.change(gang.stake, 1, at, capacity)
        self._line_up(gang, waits)

    def drop(self, gang: GangState, at: float, ledgers: Ledgers) -> None:
        """It competes for nothing any more, or not for now."""
        stake = gang.stake
        if stake is None:
            return
        self._line_up(gang, waits=False)
        pool = self.pools[stake.pool]
        gang.fair_s += pool.now(at) - stake.since
        gang.stake = None
        pool.change(stake, -1, at, self._capacity(stake.pool, ledgers))
        if not pool.members:
            del self.pools[stake.pool]

    def restore(self, gang: GangState, waits: bool) -> None:
        """Count a gang that has a stake already, in a pool whose clock is known."""
        assert gang.stake is not None
        pool = self.pools[gang.stake.pool]
        pool.change(gang.stake, 1, pool.at, pool.capacity)
        self._line_up(gang, waits)

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

    def has_waited_long(self, gang: GangState, at: float, patience_s: float) -> bool:
        stake = gang.stake
        if stake is None or not patience_s:
            return False
        pool = self.pools[stake.pool]
        return stake.milli <= pool.there and pool.now(at) >= due(gang) + PATIENCE * patience_s

    def lags(self, gang: GangState, at: float, ran_s: float) -> bool:
        """Whether a gang whose attempt has run for so long has still run less than its part."""
        stake = gang.stake
        return stake is not None and self.pools[stake.pool].now(at) > due(gang) + ran_s / SHARE

    def longest_waiting(self, at: float, patience_s: float, most: int) -> Iterator[Row]:
        """Of those that wait and have waited long, pool by pool and priority by priority: the first so many
        of each."""
        for pool in self.pools.values() if patience_s else ():
            latest = pool.now(at) - PATIENCE * patience_s
            for rows in pool.waiting.values():
                for row in islice(rows, most):
                    if row[0] > latest:
                        break
                    if row[2] <= pool.there:
                        yield row

    def parts(self) -> tuple[FrozenPool, ...]:
        """All of it that the stakes of gangs do not say."""
        rows = sorted(self.pools.items(), key=lambda row: (row[0][0], row[0][1] or ""))
        return tuple(FrozenPool(*key, pool.reading, pool.at, pool.capacity) for key, pool in rows)

    def set(self, parts: Iterable[FrozenPool]) -> None:
        """The clocks as they were; who is in the pools comes with `restore`."""
        for part in parts:
            pool = self.pools[part.queue, part.flavor] = Pool(part.at)
            pool.reading, pool.capacity = part.reading, part.capacity

    def _key(self, gang: GangState, ledgers: Ledgers) -> PoolKey:
        flavors = self._gpus_of(ledgers)
        flavor = gang.spec.groups[0].options[0].flavor if len(flavors) > 1 else None
        return (gang.spec.queue if ledgers.quota.enforced else "", flavor)

    def _capacity(self, key: PoolKey, ledgers: Ledgers) -> int:
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


def due(gang: GangState) -> float:
    """What the clock of its pool shows when it has had as much as it has run in ended attempts."""
    assert gang.stake is not None
    return gang.stake.since - gang.fair_s + gang.served_s / SHARE
