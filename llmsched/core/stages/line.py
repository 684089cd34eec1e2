"""Who is looked at, in which order. One head per class of equal gangs; a class that was refused is not asked again.

The ordering policy's key orders all, but a gang inside its queue's own quota comes before one that would borrow. With
fair sharing the queue whose share would be smallest after the start goes first, and the key orders inside each queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, merge
from itertools import islice
from math import inf
from typing import NamedTuple

from llmsched.core.amounts import flavor_of, need_milli, need_of
from llmsched.core.answers import Index
from llmsched.core.fair import BORROWED, Shares
from llmsched.core.lane import due, is_owed
from llmsched.core.records import GangState
from llmsched.core.resources import MILLI
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Entries, Key, Kin, Shape
from llmsched.core.state import State
from llmsched.core.waiting import Waiting

BY_AGE = "by age"
UNBOUNDED = 1 << 60

Rank = tuple[tuple[float, ...], float, Key, int]


class Bunch:
    """Classes that stand in one order: all of a kin, or a single one. `left_out`: of whom nobody is asked any more."""

    __slots__ = ("classes", "count", "index", "left_out")

    def __init__(self, classes: list[Shape], index: Index | None) -> None:
        self.classes, self.index = classes, index
        self.left_out: dict[int, None] = {}
        self.count = sum([len(shape.entries) for shape in classes])

    def entries(self) -> Collection[tuple[Key, str]]:
        return self.classes[0].entries if len(self.classes) == 1 else Entries(self.classes)

    def rest(self) -> list[Shape]:
        return [shape for shape in self.classes if shape.serial not in self.left_out]


def bunched(shapes: Iterable[Shape], most: int) -> list[Bunch]:
    """Each kin of which all classes are among these in one order, and the others by themselves: so are those of more
    than `most`, of which no more may be looked at."""
    by_kin: dict[int, list[Shape]] = {}
    for shape in shapes:
        by_kin.setdefault(id(shape.kin), []).append(shape)
    found: list[Bunch] = []
    for classes in by_kin.values():
        kin = classes[0].kin
        found += of_kin(kin, most) if len(classes) == len(kin.live) else alone(classes)
    return found


def of_kin(kin: Kin, most: int) -> list[Bunch]:
    """All of its classes."""
    classes = [*kin.live.values()]
    is_one = len(classes) > 1 and (most >= UNBOUNDED or all(len(shape.entries) <= most for shape in classes))
    return [Bunch(classes, kin.index)] if is_one else alone(classes)


def kins(waiting: Waiting) -> list[Bunch]:
    """Everybody who waits."""
    return [Bunch([*kin.live.values()], kin.index) for kin in waiting.kins.values()]


def alone(shapes: Iterable[Shape]) -> list[Bunch]:
    return [Bunch([shape], shape.index) for shape in shapes]


class Head(NamedTuple):
    """The next gang of a bunch, and its class; compares by key, then by class. Of one in which nobody has been looked
    for yet `key` is a bound, `name` is "", and nobody of it stands before that: see `bound_of`."""

    key: Key
    serial: int
    name: str
    rest: Iterator[tuple[Key, str]]
    shape: Shape
    bunch: Bunch


def key_with_age(this: Pass, gang: GangState) -> Key:
    """The policy's key, and then the age. The policy is asked once a pass."""
    key = this.keys.get(gang.id)
    if key is None:
        own = this.policies.ordering.key(gang, this.view)
        key = this.keys[gang.id] = (own, gang.submitted_at, gang.workload_id, gang.index)
    return key


def by_due(this: Pass, gang: GangState) -> Key:
    """By rank, of who is owed a start: before all others of its priority, who is due first before the others."""
    first = (-gang.spec.priority,) if this.policies.ordering.by_priority else ()
    return (first, -inf, due(gang), gang.id)


def rank_of(this: Pass, gang: GangState) -> Key:
    """By rank: who is owed a start goes on to come first until it has had its part."""
    is_first = gang.id in this.owed or is_owed(gang, this.plan.has_come)
    return by_due(this, gang) if is_first else key_with_age(this, gang)


def keep_order(this: Pass) -> None:
    """From now on each class is kept in the order of the policy, as far as that is the same from pass to pass."""
    state, ordering, view = this.state, this.policies.ordering, this.view
    if ordering.static:
        state.waiting.attach(ordering, lambda gang: ordering.key(gang, view), state.gangs)
    elif ordering.has_index:
        state.waiting.attach(ordering, None, state.gangs, ordering.index)
    else:
        state.waiting.attach(BY_AGE, None, state.gangs)


def in_order(this: Pass, bunch: Bunch, most: int = UNBOUNDED) -> Iterator[tuple[Key, str]]:
    """(key, gang) of all, best first; it stands still in a pass. Of more than `most` the oldest are looked at."""
    entries, gangs = bunch.entries(), this.state.gangs
    if this.policies.ordering.static:
        return merge(*(shape.entries for shape in bunch.classes)) if len(bunch.classes) > 1 else iter(entries)

    def key(name: str) -> Key:
        return key_with_age(this, gangs[name])

    if bunch.index is not None and bunch.count <= most:
        return bunch.index.first(entries, this.state.now, key)
    return _popped([(key(name), name) for _, name in islice(entries, most)])


def bound_of(this: Pass, bunch: Bunch, most: int = UNBOUNDED) -> Key:
    """What the keys of a bunch, as `in_order` gives them, are not below; () where that is only known by asking."""
    if bunch.index is None or this.policies.ordering.static or bunch.count > most:
        return ()
    found = bunch.index.bound(this.state.now)
    return (found,) if found else ()


def _popped(rows: list[tuple[Key, str]]) -> Iterator[tuple[Key, str]]:
    heapify(rows)
    while rows:
        yield heappop(rows)


def compares_queues(state: State, shares: Shares | None) -> bool:
    """Whether the order inside each queue is not the whole order."""
    return shares is not None or (state.quota.enforced and len(state.quota.queues) > 1)


class Block(NamedTuple):
    """Who stands before others: those of the queue that ask for one of these flavors (None: any), for so many
    thousandths of GPUs at least, and have no higher priority than that; but for some classes."""

    queue: str
    flavors: tuple[str | None, ...] | None
    by: str
    milli: int
    priority: float
    but: tuple[int, ...]

    def binds(self, shape: Shape) -> bool:
        if shape.serial in self.but:
            return False
        if shape.queue != self.queue or shape.sample.priority > self.priority or shape.least_total < self.milli:
            return False
        flavors = self.flavors
        return flavors is None or None in flavors or None in shape.flavors or bool(set(flavors) & set(shape.flavors))


class Line:
    """The waiting gangs of one pass, best first. Say `refuse` or `block` about a gang before asking for the next."""

    def __init__(
        self,
        this: Pass,
        refused_of: Callable[[Sequence[Shape], bool], dict[int, Shape]] = lambda shapes, all_or_none: {},
        only_what_is_free: bool = False,
        most_of: Callable[[Shape], int] = lambda shape: UNBOUNDED,
        without: Collection[str] = (),
        is_hopeless: Callable[[Shape], bool] = lambda shape: False,
        most: int = UNBOUNDED,
    ) -> None:
        """`refused_of`: to which of these what was refused still is, by serial, and to none if not to all of them where
        that is said; they hold nobody else back.
        `only_what_is_free`: no room can be made and what is free only shrinks during a pass, so it is of no use to look
        at who needs more.
        Both spare a cluster that is full most of the work of ordering its queue. Where queues are compared, by the
        best of their gangs, whole queues are left out for the first reason: where one stands must not depend on what
        is remembered of the past. `most_of`: how many of a class are looked at, oldest first. `without`: gangs about
        which this pass has decided already. `is_hopeless`: whoever of that class was asked at this moment would be
        refused, and hold nobody back: a queue of nothing else is put aside until somebody makes room.
        `most`: of how many it is never less."""
        state, shares = this.state, this.shares
        waiting, self._gangs = state.waiting, state.gangs
        self._shares = shares
        self._quota = state.quota
        self._by_queue = compares_queues(state, shares)
        keep_order(this)
        self._this = this
        self._deep = shares is not None and shares.mode == BORROWED and bool(state.configuration.cohorts)
        self._heaps: dict[str, list[Head]] = {}
        self._only_what_is_free = only_what_is_free
        self._blocked: list[Block] = []
        self.left_out: list[Shape] = []
        lines: dict[str, list[Kin]] = {}
        self._free = self._count_free()
        self._least = -1 if self._by_queue else self._free  # what those of one line need who need least
        for need, alike in waiting.by_need.items():
            if need > self._free:
                self.left_out += alike.live.values()
                continue
            self._least = min(self._least, need)
            for kin in alike.kins.values():
                lines.setdefault(kin.classes[0].queue if self._by_queue else "", []).append(kin)
        self._refused_still: list[tuple[str, list[Shape]]] = []
        self.still_refused: list[Shape] = []  # all that were left out for that
        self._is_hopeless = is_hopeless
        self._most = most
        self._aside: list[tuple[str, list[Head]]] = []
        self._hopeless: list[tuple[str, list[Shape]]] = []  # put aside before they were put in order
        self.passed_over: list[Shape] = []  # whose turn had gone by when somebody made room
        self._most_of = most_of
        self._without = without
        self._without_of = Counter(id(state.gangs[name].shape) for name in without) if without else {}
        self._needs_no_key = False
        for queue, kins in lines.items():
            shapes = [shape for kin in kins for shape in kin.live.values()]
            refused = refused_of(shapes, self._by_queue)
            if refused:
                self._refused_still.append((queue, [*refused.values()]))
                self.still_refused += refused.values()
            asked = [shape for shape in shapes if shape.serial not in refused] if refused else shapes
            firsts = (next(iter(kin.live.values())) for kin in kins)
            if self._by_queue and asked and not refused and all(map(is_hopeless, firsts)):
                self._hopeless.append((queue, asked))
                continue
            bunches = self._bunched(asked) if refused else [bunch for kin in kins for bunch in of_kin(kin, most)]
            if asked:
                self._needs_no_key = len(lines) == len(shapes) == len(asked[0].entries) == 1  # nothing to order
            if heap := self._heads(bunches):
                self._heaps[queue] = heap
        self._queues = [(self._rank(heap[0]), queue) for queue, heap in self._heaps.items()]
        heapify(self._queues)
        self._now: Rank | None = None  # the latest that somebody was asked at: behind its head a queue may rank earlier

    def _count_free(self) -> int:
        """Thousandths of GPUs that may be taken at this moment of the pass, where nothing else can be. It changes only
        with what is done for the gang in hand."""
        capacity = self._this.state.capacity
        return capacity.free_gpus(capacity.open) * MILLI if self._only_what_is_free else UNBOUNDED

    def _is_of_use(self, head: Head) -> bool:
        """Whether to look at the gang of a head, or for the first one; if not, its class is left out from now on, or
        all of them are."""
        block = self._block(head.shape)
        if block is not None:
            self._leave_out(head, all_of_them=not block.but)
            return False
        if head.shape.needs_free > self._free:
            self.left_out += head.bunch.rest()
            self._leave_out(head, all_of_them=True)
            return False
        return True

    def _leave_all_out(self, heads: list[Head]) -> None:
        """Of the only line, as nobody who is left needs as little as is free."""
        for head in heads:
            self.left_out += head.bunch.rest()
        self._heaps.clear()

    def _leave_out(self, head: Head, all_of_them: bool) -> None:
        for shape in head.bunch.classes if all_of_them else [head.shape]:
            head.bunch.left_out[shape.serial] = None

    def _bunched(self, shapes: Iterable[Shape]) -> list[Bunch]:
        return bunched(shapes, self._most)

    def _heads(self, bunches: Iterable[Bunch]) -> list[Head]:
        """Of these classes, as a heap whose first is known."""
        heads = [self._head(bunch) for bunch in bunches]
        heapify(heads)
        self._look_for_first(heads)
        return heads

    def _head(self, bunch: Bunch) -> Head:
        """Of a bunch in which nobody has been looked for."""
        classes = bunch.classes
        most, without = self._most_of(classes[0]) if len(classes) == 1 else UNBOUNDED, self._without_of
        count = sum([without.get(id(shape), 0) for shape in classes]) if without else 0
        asks_few = self._needs_no_key or (count > 0 and 2 * count >= bunch.count)
        bound = () if asks_few else bound_of(self._this, bunch, most)
        return Head(bound, classes[0].serial, "", self._rest(bunch, most, count), classes[0], bunch)

    def _look_for_first(self, heap: list[Head]) -> None:
        """Until the first of the heap is somebody: only classes that may have better ones are looked through.
        In one line, those of no use any more are left out; where queues are compared, they count as well."""
        while heap and not heap[0].name:
            head = heappop(heap)
            found = self._next(head) if self._by_queue or self._is_of_use(head) else self._next_of_others(head)
            if found is not None:  # not decided about all of them
                heappush(heap, found)

    def _rest(self, bunch: Bunch, most: int, count: int) -> Iterator[tuple[Key, str]]:
        """Nobody is asked for a key before one is taken. `count`: of how many of them it is decided already."""
        without, entries = self._without, bunch.entries()
        if self._needs_no_key or self._this.policies.ordering.static or 2 * count < bunch.count:
            rest = iter(entries) if self._needs_no_key else in_order(self._this, bunch, most)
            yield from (row for row in rest if row[1] not in without) if count else rest
            return
        few = (name for _, name in entries if name not in without)
        gangs = [self._gangs[name] for name in islice(few, most)]
        yield from _popped([(key_with_age(self._this, gang), gang.id) for gang in gangs])

    def _next(self, head: Head) -> Head | None:
        """The next one of the same bunch."""
        bunch = head.bunch
        for key, name in head.rest:
            shape = head.shape if len(bunch.classes) == 1 else self._gangs[name].shape
            if shape is not None and shape.serial not in bunch.left_out:
                return Head(key, shape.serial, name, head.rest, shape, bunch)
        return None

    def _next_of_others(self, head: Head) -> Head | None:
        """Of other classes than its own, of which nobody is asked any more."""
        self._leave_out(head, all_of_them=False)
        return self._next(head) if len(head.bunch.left_out) < len(head.bunch.classes) else None

    def rejoin(self) -> None:
        """Somebody starts or leaves: what was refused to whole classes may not be any more to those that come now."""
        now = self._now
        refused = [(queue, self._heads(self._bunched(shapes)), False) for queue, shapes in self._refused_still]
        hopeless = [(queue, self._heads(self._bunched(shapes)), True) for queue, shapes in self._hopeless]
        for queue, heap, is_unasked in [*refused, *hopeless, *((queue, heap, True) for queue, heap in self._aside)]:
            while heap and now is not None and self._rank(heap[0]) < now:
                gone = heappop(heap)
                if is_unasked:
                    self.passed_over.append(gone.shape)
                if (following := self._next_of_others(gone)) is not None:
                    heappush(heap, following)
                self._look_for_first(heap)
            if queue in self._heaps:  # the one in hand
                self._heaps[queue] += heap
                heapify(self._heaps[queue])
            elif heap:
                self._heaps[queue] = heap
                heappush(self._queues, (self._rank(heap[0]), queue))
        self._refused_still, self._hopeless, self._aside = [], [], []

    def _put_aside(self, rank: Rank, queue: str) -> bool:
        """Whether nobody in its line can get anything as things stand."""
        heap = self._heaps[queue]
        if not all(self._is_hopeless(head.shape) for head in heap):
            return False
        self._now = rank if self._now is None else max(self._now, rank)
        self._aside.append((queue, self._heaps.pop(queue)))
        return True

    def put_aside(self) -> Iterator[Shape]:
        """The classes of which somebody was not asked for it."""
        yield from (shape for _, shapes in self._hopeless for shape in shapes)
        yield from (shape for _, heap in self._aside for head in heap for shape in head.bunch.rest())

    def _rank(self, head: Head) -> Rank:
        """Of a queue by its head: a queue's rank changes only with the use of its own branch and its own head."""
        if not self._by_queue:
            return ((), 0.0, head.key, head.serial)
        sample = head.shape.sample
        flavor = flavor_of(sample, 0)
        if self._shares is None:  # inside its own quota before those that would borrow
            of_any = (self._quota.branch(sample.queue, each) for each in self._quota.flavors_for(sample.queue, flavor))
            left = max((branch.subtree - branch.used for branch in of_any if branch is not None), default=-1)
            borrows = need_milli(sample, sample.min_size, 0) > left
            return ((float(borrows),), 0.0, head.key, head.serial)
        need = need_of(sample, sample.min_size)
        standing = self._shares.standing(sample.queue, flavor, need)
        return (standing, self._shares.item(need), head.key, head.serial)

    def __iter__(self) -> Iterator[tuple[GangState, Shape]]:
        while self._queues:
            rank, queue = heappop(self._queues)
            heap = self._heaps[queue]
            if self._deep and (now := self._rank(heap[0])) > rank:  # a queue beside it in its cohort has taken more
                heappush(self._queues, (now, queue))
                continue
            if self._put_aside(rank, queue):
                continue
            head = heappop(heap)
            goes_on = self._is_of_use(head)
            if goes_on:
                self._refused, self._now = False, rank if self._now is None else max(self._now, rank)
                yield self._gangs[head.name], head.shape
                self._free = self._count_free()
                if self._free < self._least and not self._blocked:
                    self._leave_all_out([head, *heap])
                    return
                goes_on = not self._refused and self._is_of_use(head)
            following = self._next(head) if goes_on else self._next_of_others(head)
            if following is not None:
                heappush(heap, following)
            self._look_for_first(heap)
            if heap:
                heappush(self._queues, (self._rank(heap[0]), queue))

    def refuse(self) -> None:
        """Nobody of this gang's class is looked at any more in this pass."""
        self._refused = True

    def block(
        self,
        queue: str,
        flavors: tuple[str | None, ...] | None,
        by: str,
        milli: int = 0,
        priority: float = inf,
        but: tuple[int, ...] = (),
    ) -> None:
        """Nobody whom such a Block binds is looked at any more in this pass."""
        block = Block(queue, flavors, by, milli, priority, but)
        if not any(block[:2] == other[:2] and block[3:] == other[3:] for other in self._blocked):
            self._blocked.append(block)

    @property
    def moves(self) -> bool:
        """Whether somebody stands before others for now, as time alone changes who comes first."""
        return bool(self._blocked) and not self._this.policies.ordering.static

    @property
    def blocks(self) -> bool:
        """Whether anybody stands before anybody."""
        return bool(self._blocked)

    def blocker(self, shape: Shape) -> str:
        """Who stands before this class, if somebody does."""
        block = self._block(shape)
        return block.by if block is not None else ""

    def _block(self, shape: Shape) -> Block | None:
        return next((block for block in self._blocked if block.binds(shape)), None)
