"""The gangs that may start now, by shape: gangs of one queue that ask for the same thing are one class.

A pass looks at the head of each class only. What is refused to one is refused to all of its class, and the reason is
written once. Inside a class gangs are sorted by the ordering policy's key when that key cannot change while a gang
waits (`attach`), else by age. Knows nothing of capacity.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from llmsched.core.shapes import Entries, Key, Kin, Shape, kin_key, shape_key

if TYPE_CHECKING:
    from llmsched.core.answers import Index
    from llmsched.core.outstanding import Outstanding
    from llmsched.core.records import GangState

Row = TypeVar("Row", tuple[Key, str], tuple[float, str])


class Alike(NamedTuple):
    """Those who need as many GPUs free: kins, by the serial of their first class, and classes with somebody in them."""

    kins: dict[int, Kin]
    live: dict[int, Shape]


class Waiting:
    """All waiting gangs that are not parked."""

    def __init__(self, outstanding: Outstanding) -> None:
        self.shapes: dict[Key, Shape] = {}
        self.live: dict[int, Shape] = {}  # those with somebody in them, by serial
        self.elastic: dict[int, Shape] = {}  # of those, whose size may vary,
        self.lasting: dict[int, Shape] = {}  # and who may not be preempted
        self.kins: dict[int, Kin] = {}  # of these, by the serial of the first class that each ever had
        self.longest: list[tuple[float, int]] = []  # (since when its first one waits, serial) of each, longest first
        self.by_need: dict[int, Alike] = {}  # and all by the whole GPUs they need free, in thousandths
        self.count = 0
        self.by_queue: dict[str, int] = {}
        self.version = 0
        self._serial = 0
        self._kin_of: dict[Key, Kin] = {}
        self._outstanding = outstanding
        self._gangs: dict[str, GangState] = {}
        self._key: Callable[[GangState], Key] | None = None
        self._owner: object = None
        self._index: Callable[[], Index] | None = None
        self._keys: dict[str, tuple[Shape, Key]] = {}

    def attach(
        self,
        owner: object,
        key: Callable[[GangState], Key] | None,
        gangs: dict[str, GangState],
        index: Callable[[], Index] | None = None,
    ) -> None:
        """Sort by `key` from now on (None: by age), and keep an `index` of each class. `owner` is compared by identity,
        so that it is done once."""
        if owner is self._owner:
            return
        self._owner = owner
        self._gangs = gangs
        self._key = key
        self._index = index
        for gang_id, (shape, _) in list(self._keys.items()):
            self._keys[gang_id] = (shape, self._sort_key(gangs[gang_id]))
        for shape in self.shapes.values():
            shape.entries = sorted((self._keys[gang_id][1], gang_id) for _, gang_id in shape.entries)
            shape.index = index() if index is not None else None
            for _, gang_id in shape.entries if shape.index is not None else ():
                shape.index.put(gangs[gang_id])  # type: ignore[union-attr]
        for kin in self._kin_of.values():
            kin.index = None
            self._order(kin)

    def _sort_key(self, gang: GangState) -> Key:
        age = (gang.submitted_at, gang.workload_id, gang.index)
        return age if self._key is None else (self._key(gang), *age)

    def add(self, gang: GangState) -> None:
        shape = gang.shape
        if shape is None or gang.id in self._keys:
            key = shape_key(gang.spec, gang.wanted_size)
            shape = self.shapes.get(key)
            if shape is None:
                self._serial += 1
                shape = self.shapes[key] = Shape(gang.spec, self._serial)
                shape.index = self._index() if self._index is not None else None
                shape.kin = self._kin_of.setdefault(kin_key(gang.spec, gang.wanted_size), shape.kin)
                shape.kin.classes.append(shape)
                self._order(shape.kin)
            gang.shape = shape
        sort_key = self._sort_key(gang)
        _put(shape.entries, (sort_key, gang.id))
        first = shape.since[0][0] if shape.since else None
        _put(shape.since, (gang.queued_since, gang.id))
        self._note_longest(shape, first)
        if shape.index is not None:
            shape.index.put(gang)
        if shape.kin.index is not None and shape.kin.index is not shape.index:
            shape.kin.index.put(gang)
        if shape.serial not in self.live:
            self._comes_alive(shape)
        self._keys[gang.id] = (shape, sort_key)
        self.count += 1
        self.by_queue[shape.queue] = self.by_queue.get(shape.queue, 0) + 1
        self.version += 1
        self._outstanding.put(gang)

    def discard(self, gang: GangState) -> None:
        found = self._keys.pop(gang.id, None)
        if found is None:
            return
        shape, sort_key = found
        at = bisect_left(shape.entries, (sort_key, gang.id))
        assert shape.entries[at][1] == gang.id
        del shape.entries[at]
        first = shape.since[0][0]
        del shape.since[bisect_left(shape.since, (gang.queued_since, gang.id))]
        self._note_longest(shape, first)
        if shape.index is not None:
            shape.index.drop(gang)
        if shape.kin.index is not None and shape.kin.index is not shape.index:
            shape.kin.index.drop(gang)
        if not shape.entries:
            self._dies(shape)
        self.count -= 1
        self.by_queue[shape.queue] -= 1
        self.version += 1
        self._outstanding.drop(gang)

    def _order(self, kin: Kin) -> None:
        """Somebody new is in it, or all are put in order anew."""
        if self._index is None or len(kin.classes) == 1:
            kin.index = kin.classes[0].index
        elif kin.index is None or kin.index is kin.classes[0].index:
            kin.index = self._index()
            for _, name in Entries(kin.classes):
                kin.index.put(self._gangs[name])

    def _note_longest(self, shape: Shape, before: float | None) -> None:
        """The first one of a class may be another one than before."""
        after = shape.since[0][0] if shape.since else None
        if after == before:
            return
        if before is not None:
            del self.longest[bisect_left(self.longest, (before, shape.serial))]
        if after is not None:
            insort(self.longest, (after, shape.serial))

    def _comes_alive(self, shape: Shape) -> None:
        self.live[shape.serial] = shape
        shape.kin.live[shape.serial] = shape
        first = shape.kin.classes[0].serial
        self.kins[first] = shape.kin
        alike = self.by_need.setdefault(shape.needs_free, Alike({}, {}))
        alike.kins[first], alike.live[shape.serial] = shape.kin, shape
        if shape.sample.is_elastic():
            self.elastic[shape.serial] = shape
        if not shape.sample.preemptible:
            self.lasting[shape.serial] = shape

    def stand(self, live: list[Shape]) -> None:
        """The classes with somebody in them are these, in the order in which somebody came who was the first."""
        self.live = {shape.serial: shape for shape in live}
        self.elastic = {shape.serial: shape for shape in live if shape.serial in self.elastic}
        self.lasting = {shape.serial: shape for shape in live if shape.serial in self.lasting}

    def _dies(self, shape: Shape) -> None:
        del self.live[shape.serial]
        del shape.kin.live[shape.serial]
        self.elastic.pop(shape.serial, None)
        self.lasting.pop(shape.serial, None)
        alike = self.by_need[shape.needs_free]
        del alike.live[shape.serial]
        if not alike.live:
            del self.by_need[shape.needs_free]
        if not shape.kin.live:
            first = shape.kin.classes[0].serial
            del self.kins[first]
            del alike.kins[first]
        shape.reason = shape.examined = None

    def __contains__(self, gang_id: str) -> bool:
        return gang_id in self._keys


def _put(rows: list[Row], row: Row) -> None:
    """At its place in order, which for who came last mostly is the end: thousands of replicas come at once."""
    if rows and row < rows[-1]:
        insort(rows, row)
    else:
        rows.append(row)
