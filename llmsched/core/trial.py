"""What-if without copying the world: take and release on the real ledgers, and undo back to a mark.

A pass works inside one Trial. Whatever it took and released is undone when the trial closes, so that `decide` leaves
the state exactly as it found it; the decisions are applied afterwards. `Afterwards` is the same pass on ledgers of its
own, from which everybody who is on the way out has gone. Knows no rule and no policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from operator import is_
from types import TracebackType
from typing import TypeVar, cast

from llmsched.core.configuration import Taken
from llmsched.core.message import Message
from llmsched.core.records import GangState, Nomination
from llmsched.core.resources import ByNode
from llmsched.core.state import State
from llmsched.core.workload import Placement

EXCESS = 3  # in the log, beside +-1 for what is held, +-2 for promises and +-4 for those that this pass makes first,
KEPT = 6  # and +-6 for what is kept for those who leave
PROMISES = (2, -2, 4, -4)
T = TypeVar("T")


class Standpoint:
    """How far a trial has come. What was logged before the last entry is the same for as long as that one is."""

    __slots__ = ("_ends", "_lengths")

    def __init__(self, log: Sequence[object], quotas: Sequence[object], told: int) -> None:
        self._lengths = len(log), len(quotas), told
        self._ends = log[-1] if log else None, quotas[-1] if quotas else None

    def is_same(self, other: Standpoint) -> bool:
        return self._lengths == other._lengths and all(map(is_, self._ends, other._ends))


class Trial:
    """`taken` and `released` say what this pass thinks of gangs, over what the state says."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.now = state.now
        self.placements: dict[str, Placement] = {}  # gangs whose placement this pass changed; () is released
        self.begun: dict[str, Placement] = {}  # gangs this pass has told to start, and where
        self.promised: dict[str, Placement] = {}  # gangs this pass has promised places to for the first time
        self.withdrawn: dict[str, None] = {}  # gangs from which it has taken back what they were promised before
        self.leaving: dict[str, None] = {}  # gangs this pass has told to let go,
        self.moving: dict[str, Placement] = {}  # and where those of them go for whom places are kept
        self.shrinking: dict[str, Placement] = {}  # gangs this pass has told to shrink, and to what,
        self.shrinks = 0  # how often: one may be told again, to become smaller still
        self.taken: dict[str, Taken] = {}  # by reservations, as this pass has decided
        self.held_quota: dict[tuple[str, str], int] = {}  # idle guarantee kept for its owner, by queue and row
        self.kinds: dict[str, tuple[Placement, tuple[object, ...]]] = {}  # cache of Rules.kind_of
        # who might be a victim of a class in this pass, what each costs, and until when others are shielded
        self.victims: dict[object, tuple[list[tuple[GangState, str]], dict[str, int], list[tuple[float, Message]]]] = {}
        self.presumed_ends: list[tuple[float, str, bool]] | None = None  # cache of timeline.py
        self.of_each_kind: list[GangState] | None = None  # one of those that hold something: cache of stages/victims.py
        self._worlds: tuple[Standpoint, dict[object, object]] | None = None  # see `beside`
        self._told = 0  # how often somebody was told to leave, to shrink, or to stay after all
        self._afterwards: Afterwards | None = None
        self._quota_log: list[tuple[str, str | None, int]] = []
        self._log: list[tuple[GangState, Placement, int, Placement | None]] = []
        self._returned: dict[str, ByNode] = {}  # of gangs that let go: their excess, as their nodes have it back

    def __enter__(self) -> Trial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rollback(0)
        self.let_go_of_quota()

    def held(self, gang: GangState) -> Placement:
        found = self.placements.get(gang.id)
        return gang.held if found is None else found

    def places(self, gang: GangState) -> Placement:
        """What it holds, or will when what this pass has decided is done."""
        return self.begun.get(gang.id) or self.promised.get(gang.id) or gang.held

    def nomination(self, gang: GangState) -> Nomination | None:
        """What was promised to it before this pass, unless this one has taken it back."""
        return None if gang.id in self.withdrawn else gang.nomination

    def is_new(self, gang: GangState) -> bool:
        """Whether this pass has told it to start, or promised it places: neither is done yet."""
        return gang.id in self.begun or gang.id in self.promised

    def new(self) -> list[GangState]:
        return [self.state.gangs[name] for name in (*self.begun, *self.promised)]

    def hold(self, gang: GangState, placement: Placement) -> None:
        """Make the gang hold exactly `placement` for the rest of the trial (() lets go of everything)."""
        before = self.held(gang)
        if before:
            self.state.ledgers.charge(gang, before, -1)
            self._log.append((gang, before, 1, self.placements.get(gang.id)))
        if placement:
            self.state.ledgers.charge(gang, placement, 1)
            self._log.append((gang, placement, -1, self.placements.get(gang.id)))
        if gang.excess and bool(before) != bool(placement):
            self._log.append((gang, (), EXCESS, self.placements.get(gang.id)))
            self._exceed(gang, bool(placement))
        self.placements[gang.id] = placement

    @contextmanager
    def as_begun(self, gang: GangState, placement: Placement) -> Iterator[None]:
        """While it lasts the gang, about which nothing is decided, is one that this pass has told to start there."""
        mark = self.mark()
        self.hold(gang, placement)
        self.begun[gang.id] = placement
        try:
            yield
        finally:
            del self.begun[gang.id]
            self.rollback(mark)

    def let_them_go(self) -> None:
        """Whoever is on the way out holds nothing, for the rest of the trial."""
        for name in (*self.state.vacating, *self.leaving):
            if self.held(self.state.gangs[name]):
                self.let_go(self.state.gangs[name])

    def let_go(self, gang: GangState) -> None:
        """It holds nothing for the rest of the trial, and what is kept for it meanwhile is promised to it."""
        self.hold(gang, ())
        goes_to = gang.goes_to or self.moving.get(gang.id, ())
        if goes_to:
            self.keep(gang, goes_to, -1)
            self.promise(gang, goes_to)

    def keep(self, gang: GangState, placement: Placement, sign: int) -> None:
        """See `Ledgers.keep`; for the rest of the trial."""
        self.state.ledgers.keep(gang, placement, sign)
        self._log.append((gang, placement, -sign * KEPT, self.placements.get(gang.id)))

    def leave(self, gang: GangState, goes_to: Placement = ()) -> None:
        """It is told to let go. `goes_to`: the places that are kept for it meanwhile. Never inside a mark."""
        if goes_to:
            self.moving[gang.id] = goes_to
            self.keep(gang, goes_to, 1)
        self.leaving[gang.id] = None
        self._told += 1

    def unpromise(self, gang: GangState) -> None:
        """Take a nomination out of the ledgers for the rest of the trial."""
        if gang.nomination is not None:
            self.state.ledgers.charge(gang, gang.nomination.placement, -1, promise=True)
            self._log.append((gang, gang.nomination.placement, 2, self.placements.get(gang.id)))

    def promise(self, gang: GangState, placement: Placement) -> None:
        """Put a nomination into the ledgers for the rest of the trial."""
        self.state.ledgers.charge(gang, placement, 1, promise=True)
        self._log.append((gang, placement, -2, self.placements.get(gang.id)))

    def promise_first(self, gang: GangState, placement: Placement) -> None:
        """The same for somebody to whom nothing is promised: in the world afterwards it has begun."""
        self.promised[gang.id] = placement
        self.state.ledgers.charge(gang, placement, 1, promise=True)
        self._log.append((gang, placement, -4, self.placements.get(gang.id)))

    def break_promise(self, gang: GangState) -> None:
        """Undo `promise_first`."""
        placement = self.promised.pop(gang.id)
        self.state.ledgers.charge(gang, placement, -1, promise=True)
        self._log.append((gang, placement, 4, self.placements.get(gang.id)))

    def standing(self, gang: GangState) -> Placement:
        """What it holds once it has changed its size as it was told."""
        return self.shrinking.get(gang.id) or gang.placement or gang.held

    def shrink(self, gang: GangState, placement: Placement) -> None:
        """It is told to. Never inside a mark."""
        if gang.id in self.shrinking and self._afterwards is not None:
            self._afterwards.catch_up()
            self._afterwards.hold(gang, placement)
        self.shrinking[gang.id] = placement
        self.shrinks += 1
        self._told += 1

    def stay(self, gang: GangState) -> None:
        """It does not let go of anything after all. Never inside a mark."""
        if self._afterwards is not None:
            self._afterwards.catch_up()
            self._afterwards.stays(gang)
        self.leaving.pop(gang.id, None)
        if gang.id in self.moving:
            self.keep(gang, self.moving.pop(gang.id), -1)
        self.shrinking.pop(gang.id, None)
        self.victims.clear()
        self._told += 1

    def hold_quota(self, queue: str, flavor: str | None, amount: int) -> None:
        """Keep idle quota for its owner until the trial closes."""
        key = (queue, self.state.quota.row_of(queue, flavor))
        self.state.quota.charge(queue, flavor, amount)
        self._quota_log.append((queue, flavor, amount))
        self.held_quota[key] = self.held_quota.get(key, 0) + amount

    def let_go_of_quota(self) -> bool:
        """Undo every `hold_quota`. False: there was none."""
        if not self._quota_log:
            return False
        for queue, flavor, amount in reversed(self._quota_log):
            self.state.quota.release(queue, flavor, amount)
        self._quota_log, self.held_quota, self._afterwards = [], {}, None
        return True

    def afterwards(self) -> Afterwards:
        """The world as it will be when everybody who is on the way out has gone. One for the whole pass, however many
        gangs ask: only what this trial did since it was last asked for is done there too. Never inside a mark."""
        if self._afterwards is None:
            self._afterwards = Afterwards(self)
        self._afterwards.catch_up()
        return self._afterwards

    def _exceed(self, gang: GangState, does: bool) -> None:
        """What its attempt takes beyond the gang ends with it, and is there again when it stays after all."""
        if does:
            self.state.ledgers.take_excess(gang, self._returned.pop(gang.id, ()))
        else:
            self._returned[gang.id] = self.state.ledgers.return_excess(gang)

    def beside(self, key: object, make: Callable[[], T]) -> T:
        """What was made under that key while everybody held what they do now, or was promised and kept that; else it
        is made anew."""
        at = Standpoint(self._log, self._quota_log, self._told)
        if self._worlds is None or not self._worlds[0].is_same(at):
            self._worlds = at, {}
        worlds = self._worlds[1]
        if key not in worlds:
            worlds[key] = make()
        return cast(T, worlds[key])

    def mark(self) -> int:
        return len(self._log)

    def rollback(self, mark: int) -> None:
        """Undo everything since `mark`, newest first."""
        while len(self._log) > mark:
            gang, placement, sign, before = self._log.pop()
            if sign == EXCESS:
                self._exceed(gang, gang.id in self._returned)
                continue
            if abs(sign) == KEPT:
                self.state.ledgers.keep(gang, placement, 1 if sign > 0 else -1)
                continue
            self.state.ledgers.charge(gang, placement, 1 if sign > 0 else -1, promise=sign in PROMISES)
            if sign not in PROMISES:
                if before is None:
                    self.placements.pop(gang.id, None)
                else:
                    self.placements[gang.id] = before


class Afterwards(Trial):
    """What a trial promises must fit here: everybody who leaves has let go, and every shrink is done."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.state.twin())
        self.placements = trial.placements.copy()
        self.held_quota = trial.held_quota.copy()
        self.begun, self.promised, self.taken = trial.begun, trial.promised, trial.taken
        self.withdrawn = trial.withdrawn
        self.leaving, self.shrinking, self.victims = trial.leaving, trial.shrinking, trial.victims
        self.moving = trial.moving
        self.gone: dict[str, int] = {}  # who leaves, in that order
        self._gone_from: dict[str, list[str]] = {}  # the same by node
        self._trial = trial
        self._seen = (len(trial._log), len(trial._quota_log), 0, 0)
        state = self.state
        for name in state.vacating:
            self._let_go(name)
        for name in state.elastic:
            gang = state.gangs[name]
            if name not in self.placements and gang.placement is not None and len(gang.held) > len(gang.placement):
                self.hold(gang, gang.placement)
        for name, placement in trial.promised.items():
            self.state.ledgers.charge(state.gangs[name], placement, -1, promise=True)
            self.hold(state.gangs[name], placement)  # here it has begun

    def catch_up(self) -> None:
        trial, gangs = self._trial, self.state.gangs
        logged, quotas, leaving, shrinking = self._seen
        for gang, placement, sign, _ in islice(trial._log, logged, None):
            if sign == EXCESS:
                continue  # it follows what is held
            if abs(sign) == KEPT:
                self.keep(gang, placement, 1 if sign < 0 else -1)
            elif sign == 2:
                self.unpromise(gang)
            elif sign == -2:
                self.promise(gang, placement)
            elif sign in PROMISES:
                self.hold(gang, placement if sign < 0 else ())
            elif gang.id not in self.gone:
                self.hold(gang, trial.held(gang))
        for queue, flavor, amount in islice(trial._quota_log, quotas, None):
            self.hold_quota(queue, flavor, amount)
        for name in islice(trial.leaving, leaving, None):
            self._let_go(name)
        for name, placement in islice(trial.shrinking.items(), shrinking, None):
            self.hold(gangs[name], placement)
        self._seen = (len(trial._log), len(trial._quota_log), len(trial.leaving), len(trial.shrinking))

    def gone_from(self, placement: Placement) -> list[str]:
        """Who has gone from the nodes of a placement, in the order in which they were told to leave."""
        nodes = dict.fromkeys(placed.node for placed in placement)
        names = dict.fromkeys(name for node in nodes for name in self._gone_from.get(node, ()))
        return sorted(names, key=self.gone.__getitem__)

    def stays(self, gang: GangState) -> None:
        """See `Trial.stay`, which asks for it before it forgets that the gang was to let go."""
        logged, quotas, leaving, shrinking = self._seen
        self._seen = (logged, quotas, leaving - (gang.id in self.leaving), shrinking - (gang.id in self.shrinking))
        if self.gone.pop(gang.id, None) is not None:
            for node in dict.fromkeys(placed.node for placed in gang.held):
                self._gone_from[node].remove(gang.id)
            if gang.id in self.moving:  # until the trial's own log says that they are kept no more
                self.state.ledgers.charge(gang, self.moving[gang.id], -1, promise=True)
                self.keep(gang, self.moving[gang.id], 1)
        self.hold(gang, gang.placement or gang.held)

    def _let_go(self, name: str) -> None:
        gang = self.state.gangs[name]
        if name in self.gone or not self.held(gang):
            return
        self.gone[name] = next(reversed(self.gone.values()), -1) + 1
        for node in dict.fromkeys(placed.node for placed in gang.held):
            self._gone_from.setdefault(node, []).append(name)
        self.let_go(gang)


class Without(Trial):
    """A trial as it stands now, without the first so many of a row of gangs, for as long as it stands so. It goes to
    and fro between numbers of them, and changes only what lies between."""

    def __init__(self, trial: Trial) -> None:
        super().__init__(trial.state.overlay())
        self.placements = trial.placements.copy()
        self.held_quota = trial.held_quota.copy()
        self.begun, self.promised, self.withdrawn, self.taken = (
            trial.begun, trial.promised, trial.withdrawn, trial.taken,
        )  # fmt: skip
        self.leaving, self.shrinking, self.moving = trial.leaving, trial.shrinking, trial.moving
        self.row: list[tuple[GangState, Placement]] = []  # what each of them has; only ever longer
        self._gone = 0

    def stand_at(self, count: int) -> None:
        """The first so many of the row hold nothing, all others what they have. Never inside a mark."""
        if count == self._gone:
            return
        goes = count > self._gone
        moved = self.row[self._gone : count] if goes else self.row[count : self._gone]
        self._gone = count
        self.state.ledgers.charge_all(moved, -1 if goes else 1)
        for gang, placement in moved:
            self.placements[gang.id] = () if goes else placement
            if gang.excess:
                self._exceed(gang, not goes)
