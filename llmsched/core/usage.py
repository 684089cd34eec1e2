"""What was held, by whom, of whose quota: a meter that is read into books at every change, in whole numbers.

An amount is thousandths of a GPU times milliseconds (`MICROS` of them are a GPU-second), so that books add up to what
the journal's intervals say, exactly. Of a queue those borrow who took last, as they are the first that others may take
it back from: when a queue gives something back, its oldest borrower owns what it borrowed. So a change costs no walk
over the queue. A book is of one workload, its rows of one day (UTC), queue and flavor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import NamedTuple

from llmsched.core.quota import UNLIMITED, QuotaTree

MICROS = 1_000_000  # of a GPU-second
HOUR_MS = 3_600_000
DAY_MS = 86_400_000


class Amounts(NamedTuple):
    """In GPU-microseconds, but for `cost`. `own` and `borrowed` are all that was held; `starting` and `lost`
    are parts of it, `excess` comes on top."""

    own: int = 0
    borrowed: int = 0
    starting: int = 0  # before an attempt ran
    lost: int = 0  # since the last checkpoint (or the start) of attempts that had to begin again, on the day they ended
    cost: int = 0  # of all that was held or taken, at the prices of then, in millionths of whatever those are in
    excess: int = 0  # taken beyond what the gang was given

    @property
    def held(self) -> int:
        return self.own + self.borrowed

    def plus(self, other: Amounts) -> Amounts:
        return Amounts(
            self.own + other.own,
            self.borrowed + other.borrowed,
            self.starting + other.starting,
            self.lost + other.lost,
            self.cost + other.cost,
            self.excess + other.excess,
        )


class Used(NamedTuple):
    """One row of a book. `day`: since 1970; `flavor` "": none."""

    day: int
    queue: str
    flavor: str
    amounts: Amounts


class Total(NamedTuple):
    user: str
    queue: str
    amounts: Amounts


class Held(NamedTuple):
    """Of one flavor. `rate`: each thousandth of a GPU times the price of its GPU-hour in millionths, all together."""

    gpus_milli: int
    rate: int = 0


NOTHING = Held(0)


class FrozenPiece(NamedTuple):
    gang: str
    flavor: str
    row: str
    gpus_milli: int
    borrowed_milli: int
    rate: int


class FrozenAttempt(NamedTuple):
    gang: str
    workload: str
    queue: str
    since_ms: int
    runs: bool
    unsaved: int
    flavor: str
    excess: tuple[tuple[str, Held], ...] = ()


class FrozenMeter(NamedTuple):
    """All of a meter as plain values; `pieces` from the one that was taken first to the last."""

    attempts: tuple[FrozenAttempt, ...] = ()
    pieces: tuple[FrozenPiece, ...] = ()
    books: tuple[tuple[str, tuple[Used, ...]], ...] = ()
    put_aside: tuple[Total, ...] = ()


@dataclass(slots=True)
class Piece:
    """What an attempt holds of one flavor."""

    row: str  # of the quota tree
    gpus_milli: int = 0
    borrowed_milli: int = 0
    rate: int = 0  # see Held


@dataclass(slots=True)
class Attempt:
    workload: str
    queue: str
    since_ms: int  # read into the book up to then
    runs: bool = False
    unsaved: int = 0  # GPU-microseconds of work since the last checkpoint
    flavor: str = ""  # that it held last
    pieces: dict[str, Piece] = field(default_factory=dict)  # by flavor
    excess: dict[str, Held] = field(default_factory=dict)


Key = tuple[int, str, str]  # day, queue, flavor
Line = tuple[str, str]  # queue and row of its quota
At = tuple[str, str]  # gang and flavor


class Meter:
    def __init__(self) -> None:
        self.attempts: dict[str, Attempt] = {}  # by gang
        self.books: dict[str, dict[Key, Amounts]] = {}  # by workload, of those that are in the state
        self.put_aside: dict[tuple[str, str], Amounts] = {}  # (user, queue) -> of those that have left it
        self._pieces: dict[At, Piece] = {}  # in the order in which they were taken
        self._held: dict[Line, int] = {}
        self._borrowers: dict[Line, dict[At, None]] = {}  # the oldest first

    # --- what changes ---

    def hold(
        self, gang: str, workload: str, queue: str, held: Mapping[str, Held], quota: QuotaTree, now: float
    ) -> None:
        """From now on the gang holds that, by flavor."""
        at = _ms(now)
        attempt = self.attempts.get(gang)
        if attempt is None:
            if not held:
                return
            attempt = self.attempts[gang] = Attempt(workload, queue, at)
        self._read(attempt, at)
        for flavor in dict.fromkeys((*attempt.pieces, *held)):
            piece = attempt.pieces.get(flavor)
            before, after = piece.gpus_milli if piece else 0, held.get(flavor, NOTHING).gpus_milli
            if before > after:
                self._give(gang, attempt, flavor, before - after, quota, at)
            elif before < after:  # whoever takes more takes all of it last
                if before:
                    self._give(gang, attempt, flavor, before, quota, at)
                self._take(gang, attempt, flavor, after, quota)
                attempt.flavor = flavor
        for flavor, piece in attempt.pieces.items():
            piece.rate = held[flavor].rate

    def exceed(self, gang: str, workload: str, queue: str, excess: Mapping[str, Held], now: float) -> None:
        """From now on its attempt takes that beyond what the gang holds, by flavor."""
        attempt = self.attempts.get(gang)
        if attempt is None:
            if not excess:
                return
            attempt = self.attempts[gang] = Attempt(workload, queue, _ms(now))
        self._read(attempt, _ms(now))
        attempt.excess = dict(excess)

    def began(self, gang: str, now: float) -> None:
        """Its attempt runs."""
        attempt = self.attempts.get(gang)
        if attempt is not None:
            self._read(attempt, _ms(now))
            attempt.runs = True

    def saved(self, gang: str, now: float) -> None:
        """What it has done until now need not be done again."""
        attempt = self.attempts.get(gang)
        if attempt is not None:
            self._read(attempt, _ms(now))
            attempt.unsaved = 0

    def end(self, gang: str, now: float, *, again: bool) -> None:
        """Its attempt is over and holds nothing; `again`: another one does again what this one did not save."""
        attempt = self.attempts.pop(gang, None)
        if attempt is not None and again and attempt.unsaved:
            key = _ms(now) // DAY_MS, attempt.queue, attempt.flavor
            self._write(attempt.workload, key, Amounts(lost=attempt.unsaved))

    def configure(
        self,
        rates: Mapping[str, Mapping[str, Held]],
        excess: Mapping[str, Mapping[str, Held]],
        quota: QuotaTree,
        now: float,
    ) -> None:
        """Whose quota it is that is held, and what it costs, from now on. `rates`: what each gang holds, and `excess`
        what it takes beyond that."""
        at = _ms(now)
        for gang, taken in excess.items():
            self._read(self.attempts[gang], at)
            self.attempts[gang].excess = dict(taken)
        held, rows = dict[Line, int](), dict[At, str]()
        for (gang, flavor), piece in self._pieces.items():
            queue = self.attempts[gang].queue
            rows[gang, flavor] = quota.row_of(queue, flavor or None)
            line = queue, rows[gang, flavor]
            held[line] = held.get(line, 0) + piece.gpus_milli
        left = {line: max(0, amount - limit_of(quota, line)) for line, amount in held.items()}
        for (gang, flavor), piece in reversed(self._pieces.items()):
            attempt = self.attempts[gang]
            line = attempt.queue, rows[gang, flavor]
            borrowed = min(piece.gpus_milli, left[line])
            left[line] -= borrowed
            rate = rates[gang][flavor].rate
            if (borrowed, rate) != (piece.borrowed_milli, piece.rate):
                self._read(attempt, at)
            piece.row, piece.borrowed_milli, piece.rate = line[1], borrowed, rate
        self._index()

    def close(self, workload: str, user: str) -> tuple[Used, ...]:
        """The book of a workload that leaves the state."""
        book = rows_of(self.books.pop(workload, {}))
        for used in book:
            known = self.put_aside.get((user, used.queue), Amounts())
            self.put_aside[user, used.queue] = known.plus(used.amounts)
        return book

    def _take(self, gang: str, attempt: Attempt, flavor: str, amount: int, quota: QuotaTree) -> None:
        line = attempt.queue, quota.row_of(attempt.queue, flavor or None)
        held = self._held[line] = self._held.get(line, 0) + amount
        borrowed = min(amount, max(0, held - limit_of(quota, line)))
        attempt.pieces[flavor] = self._pieces[gang, flavor] = Piece(line[1], amount, borrowed)
        if borrowed:
            self._borrowers.setdefault(line, {})[gang, flavor] = None

    def _give(self, gang: str, attempt: Attempt, flavor: str, amount: int, quota: QuotaTree, at: int) -> None:
        piece = attempt.pieces[flavor]
        line = attempt.queue, piece.row
        beyond = max(0, self._held[line] - limit_of(quota, line))
        self._held[line] -= amount
        if not self._held[line]:
            del self._held[line]
        left = min(amount, beyond)
        left -= self._owns(line, (gang, flavor), left)
        piece.gpus_milli -= amount
        if not piece.gpus_milli:
            del attempt.pieces[flavor], self._pieces[gang, flavor]
        while left:
            oldest = next(iter(self._borrowers[line]))
            self._read(self.attempts[oldest[0]], at)
            left -= self._owns(line, oldest, left)

    def _owns(self, line: Line, who: At, amount: int) -> int:
        """At most so much of what it borrowed is its own now, or given back; how much."""
        piece = self._pieces[who]
        part = min(amount, piece.borrowed_milli)
        piece.borrowed_milli -= part
        if part and not piece.borrowed_milli:
            del self._borrowers[line][who]
            if not self._borrowers[line]:
                del self._borrowers[line]
        return part

    def _index(self) -> None:
        self._held, self._borrowers = {}, {}
        for (gang, flavor), piece in self._pieces.items():
            line = self.attempts[gang].queue, piece.row
            self._held[line] = self._held.get(line, 0) + piece.gpus_milli
            if piece.borrowed_milli:
                self._borrowers.setdefault(line, {})[gang, flavor] = None

    # --- books ---

    def _read(self, attempt: Attempt, until: int) -> None:
        if until <= attempt.since_ms:
            return
        for key, amounts in _since(attempt, until):
            self._write(attempt.workload, key, amounts)
            attempt.unsaved += amounts.held - amounts.starting
        attempt.since_ms = until

    def _write(self, workload: str, key: Key, amounts: Amounts) -> None:
        book = self.books.setdefault(workload, {})
        known = book.get(key)
        book[key] = amounts if known is None else known.plus(amounts)

    def until(self, now: float) -> dict[str, dict[Key, Amounts]]:
        """The books as they would be if they were read now. Changes nothing."""
        books = {workload: dict(book) for workload, book in self.books.items()}
        for attempt in self.attempts.values():
            book = books.setdefault(attempt.workload, {})
            for key, amounts in _since(attempt, _ms(now)):
                book[key] = book.get(key, Amounts()).plus(amounts)
        return books

    # --- looking ---

    def borrowed(self) -> dict[Line, int]:
        """Thousandths of GPUs by queue and row of its quota."""
        return {
            line: sum(self._pieces[who].borrowed_milli for who in borrowers)
            for line, borrowers in self._borrowers.items()
        }

    def held(self) -> dict[Line, int]:
        return dict(self._held)

    def frozen(self) -> FrozenMeter:
        return FrozenMeter(
            tuple(
                FrozenAttempt(
                    gang,
                    one.workload,
                    one.queue,
                    one.since_ms,
                    one.runs,
                    one.unsaved,
                    one.flavor,
                    tuple(one.excess.items()),
                )
                for gang, one in self.attempts.items()
            ),
            tuple(
                FrozenPiece(gang, flavor, piece.row, piece.gpus_milli, piece.borrowed_milli, piece.rate)
                for (gang, flavor), piece in self._pieces.items()
            ),
            tuple((workload, rows_of(book)) for workload, book in self.books.items()),
            tuple(Total(user, queue, amounts) for (user, queue), amounts in self.put_aside.items()),
        )


def thawed(frozen: FrozenMeter) -> Meter:
    meter = Meter()
    for one in frozen.attempts:
        attempt = Attempt(one.workload, one.queue, one.since_ms, one.runs, one.unsaved, one.flavor)
        attempt.excess = dict(one.excess)
        meter.attempts[one.gang] = attempt
    for piece in frozen.pieces:
        made = Piece(piece.row, piece.gpus_milli, piece.borrowed_milli, piece.rate)
        meter._pieces[piece.gang, piece.flavor] = made
        meter.attempts[piece.gang].pieces[piece.flavor] = made
    meter.books = {
        name: {(used.day, used.queue, used.flavor): used.amounts for used in book} for name, book in frozen.books
    }
    meter.put_aside = {(one.user, one.queue): one.amounts for one in frozen.put_aside}
    meter._index()
    return meter


def rows_of(book: Mapping[Key, Amounts]) -> tuple[Used, ...]:
    return tuple(Used(*key, amounts) for key, amounts in sorted(book.items()))


def _since(attempt: Attempt, until: int) -> Iterator[tuple[Key, Amounts]]:
    """What it held and took since it was read last, by day and flavor."""
    at = attempt.since_ms
    while at < until:
        day = at // DAY_MS
        end = min(until, (day + 1) * DAY_MS)
        for flavor, piece in attempt.pieces.items():
            own, borrowed = (piece.gpus_milli - piece.borrowed_milli) * (end - at), piece.borrowed_milli * (end - at)
            starting = 0 if attempt.runs else own + borrowed
            cost = piece.rate * (end - at) // (HOUR_MS * 1000)
            yield (day, attempt.queue, flavor), Amounts(own, borrowed, starting, 0, cost)
        for flavor, (gpus_milli, rate) in attempt.excess.items():
            cost = rate * (end - at) // (HOUR_MS * 1000)
            yield (day, attempt.queue, flavor), Amounts(cost=cost, excess=gpus_milli * (end - at))
        at = end


def limit_of(quota: QuotaTree, line: Line) -> int:
    """What the queue owns of that row, in thousandths: all, where no queue has a quota."""
    if not quota.enforced:
        return UNLIMITED
    queue, row = line
    branch = quota.rows.get(row, {}).get(f"queue:{queue}")
    return branch.quota.nominal_milli if branch is not None else 0


@cache
def day_of(day: int) -> str:
    """2030-01-31."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def _ms(now: float) -> int:
    return round(now * 1000)
