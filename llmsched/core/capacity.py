"""Who has k free GPUs of flavor f in domain d: the ledger of every node and an index over it.

Sets of nodes are whole numbers used as bit masks (bit i is the node in slot i), so that "A100 nodes of rack 3 with at
least 4 free GPUs" is a few `&`, the lowest bit is a deterministic choice, and undoing is exact. Knows no gangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from itertools import pairwise

from llmsched.core.draining import OperatorDrain
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI, ZERO, Resources
from llmsched.core.suitable import Wish


class NodeState:
    """One node and what is taken on it. Whole GPUs are counted; shares of a GPU are kept per device."""

    __slots__ = (
        "cpus", "custom", "drained", "foreign", "foreign_gpus", "free_whole", "gpus", "idle_since", "leaves_at",
        "leaving", "memory", "node", "promised", "room_key", "shares", "slot", "total_gpus", "whole",
    )  # fmt: skip

    def __init__(self, node: Node, slot: int) -> None:
        self.node = node
        self.slot = slot
        self.total_gpus = node.total.gpus_milli // MILLI
        self.gpus = 0  # thousandths held by gangs or promised to nominated ones
        self.cpus = 0
        self.memory = 0
        self.custom: dict[str, int] = {}
        self.whole = 0  # whole devices taken
        self.shares: dict[int, int] = {}  # device -> thousandths taken by fractional bundles
        self.promised = 0  # of `gpus`, thousandths that nominations hold
        self.foreign = Resources()
        self.foreign_gpus = 0  # whole devices other people use, rounded up
        self.leaving = False  # as the cluster says,
        self.leaves_at: float | None = None  # and when
        self.drained: OperatorDrain | None = None
        self.free_whole = self.total_gpus
        self.idle_since = 0.0
        self.room_key: tuple[object, ...] | None = None  # see `likeness`; None after a change

    @property
    def draining(self) -> bool:
        """Nothing new goes there, and what is there leaves by the deadline."""
        return self.leaving or self.drained is not None

    @property
    def deadline(self) -> float | None:
        """The earliest, of the cluster and of an operator."""
        given = (self.leaves_at, self.drained.deadline if self.drained is not None else None)
        return min((at for at in given if at is not None), default=None)

    @property
    def used(self) -> Resources:
        custom = tuple(sorted((name, amount) for name, amount in self.custom.items() if amount))
        return Resources(self.gpus, self.cpus, self.memory, custom)

    @property
    def free(self) -> Resources:
        return self.node.total.minus(self.foreign).minus(self.used)

    def twin(self) -> NodeState:
        """The same node with a ledger of its own."""
        other = NodeState.__new__(NodeState)
        for name in NodeState.__slots__:
            setattr(other, name, getattr(self, name))
        other.custom, other.shares = self.custom.copy(), self.shares.copy()
        return other

    def change(self, amount: Resources, device: int, sign: int) -> None:
        """Take (sign 1) or give back (-1) one bundle. The caller keeps the index in step: see Capacity.change."""
        self.room_key = None
        gpus, cpus, memory, custom = amount
        if gpus:
            self.gpus += sign * gpus
            whole, share = divmod(gpus, MILLI)
            self.whole += sign * whole
            if share:
                left = self.shares.get(device, 0) + sign * share
                if left:
                    self.shares[device] = left
                else:
                    del self.shares[device]
            self.free_whole = self.total_gpus - self.whole - len(self.shares) - self.foreign_gpus
        if cpus:
            self.cpus += sign * cpus
        if memory:
            self.memory += sign * memory
        for name, value in custom:
            self.custom[name] = self.custom.get(name, 0) + sign * value

    def likeness(self) -> tuple[object, ...]:
        """Equal on nodes with the same room, whatever the work: looking at one of them is looking at all."""
        if self.room_key is None:
            total, foreign = self.node.total, self.foreign
            self.room_key = (
                self.free_whole,
                tuple(sorted(self.shares.values())),
                total.cpus_milli - foreign.cpus_milli - self.cpus,
                total.memory_bytes - foreign.memory_bytes - self.memory,
                total.custom and (total.custom, tuple(sorted(row for row in self.custom.items() if row[1]))),
            )
        return self.room_key

    def room(self, need: Resources, enough: int) -> int:
        """How many such bundles still fit here, counting no further than `enough`."""
        total, foreign = self.node.total, self.foreign
        count = enough
        gpus = need.gpus_milli
        if gpus:
            if gpus >= MILLI and not gpus % MILLI:
                count = min(count, self.free_whole // (gpus // MILLI))
            else:
                count = min(count, self._room_for_shares(gpus, count))
        if need.cpus_milli:
            count = min(count, (total.cpus_milli - foreign.cpus_milli - self.cpus) // need.cpus_milli)
        if need.memory_bytes:
            count = min(count, (total.memory_bytes - foreign.memory_bytes - self.memory) // need.memory_bytes)
        for name, amount in need.custom:
            have = dict(total.custom).get(name, 0) - self.custom.get(name, 0)
            count = min(count, have // amount)
        return max(count, 0)

    def _room_for_shares(self, gpus: int, enough: int) -> int:
        whole, share = divmod(gpus, MILLI)
        free = self.free_whole
        slack = [MILLI - taken for _, taken in sorted(self.shares.items())]
        count = 0
        while count < enough:
            free -= whole
            fitting = [i for i, left in enumerate(slack) if left >= share]
            if fitting:
                slack[min(fitting, key=lambda i: (slack[i], i))] -= share
            else:
                free -= 1
                slack.append(MILLI - share)
            if free < 0:
                return count
            count += 1
        return count

    def device_for(self, gpus: int) -> int:
        """The device a share goes on: the fullest that has room, else an untouched one; -1 for whole GPUs."""
        share = gpus % MILLI
        if not share:
            return -1
        fitting = [(MILLI - taken, device) for device, taken in self.shares.items() if MILLI - taken >= share]
        if fitting:
            return min(fitting)[1]
        return next(device for device in range(self.total_gpus + 1) if device not in self.shares)


def room_when_empty(total: Resources, need: Resources, enough: int) -> int:
    """How many such bundles fit on a node that has so much in all, counting no further than `enough`."""
    return NodeState(Node("", total), 0).room(need, enough)


class Capacity:
    """All nodes by slot, with masks by flavor and by number of free whole GPUs, and by label and domain on demand."""

    def __init__(self) -> None:
        self.slots: list[NodeState | None] = []
        self.by_id: dict[str, NodeState] = {}
        self.all = 0
        self.open = 0  # nodes that take new work
        self.by_flavor: dict[str | None, int] = {}  # in the order of their first nodes
        self.by_free: list[int] = [0]  # by_free[k]: nodes with exactly k free whole GPUs (k <= 0: index 0)
        self.shared = 0  # nodes with a partly taken device
        self.foreign = 0  # nodes of which other people use something
        self.gpus_total = 0  # whole GPUs, foreign use not subtracted
        self.cpus_total = 0
        self.memory_total = 0
        self.kinds: dict[tuple[str | None, Resources], int] = {}  # (flavor, what a node has in all) -> nodes
        self.version = 0  # of which nodes there are, and what they are
        self._domains: dict[str, dict[str, int]] = {}
        self._suiting: dict[Wish, int] = {}
        self._kinds_suiting: dict[Wish, dict[Resources, int]] = {}

    def twin(self) -> Capacity:
        """The same nodes with ledgers of their own; none may come or go while the twin is in use."""
        other = copy(self)
        other.by_id = {name: node.twin() for name, node in self.by_id.items()}
        other.slots = [None if node is None else other.by_id[node.node.id] for node in self.slots]
        other.by_free = self.by_free.copy()
        return other

    def overlay(self) -> Overlay:
        """The same, for as long as nothing changes here: a node has a ledger of its own once it is changed there."""
        other = Overlay.__new__(Overlay)
        other.__dict__.update(self.__dict__)
        other.by_id, other.slots, other.by_free = self.by_id.copy(), self.slots.copy(), self.by_free.copy()
        other.own = {}
        return other

    # --- nodes come and go (rare) ---

    def add(self, node: Node, slot: int | None = None) -> NodeState:
        """In the first slot that is free, or in the one that it had."""
        if slot is None:
            slot = next((i for i, taken in enumerate(self.slots) if taken is None), len(self.slots))
        state = NodeState(node, slot)
        while slot >= len(self.slots):
            self.slots.append(None)
        self.slots[slot] = state
        self.by_id[node.id] = state
        bit = 1 << slot
        self.all |= bit
        self.open |= bit
        self.by_flavor[node.flavor] = self.by_flavor.get(node.flavor, 0) | bit
        self._order_flavors()
        while len(self.by_free) <= state.total_gpus:
            self.by_free.append(0)
        self.by_free[state.free_whole] |= bit
        self._count(state, 1)
        self._forget()
        return state

    def remove(self, node_id: str) -> None:
        state = self.by_id.pop(node_id)
        keep = ~(1 << state.slot)
        self.slots[state.slot] = None
        self.all &= keep
        self.open &= keep
        self.shared &= keep
        self.foreign &= keep
        self.by_flavor[state.node.flavor] &= keep
        if not self.by_flavor[state.node.flavor]:
            del self.by_flavor[state.node.flavor]
        self._order_flavors()
        self.by_free = [mask & keep for mask in self.by_free]
        self._count(state, -1)
        self._forget()

    def reindex(self, state: NodeState) -> None:
        """After a node's foreign use or draining flag changed."""
        state.room_key = None
        state.foreign_gpus = -(-state.foreign.gpus_milli // MILLI)
        state.free_whole = state.total_gpus - state.whole - len(state.shares) - state.foreign_gpus
        bit = 1 << state.slot
        self.by_free = [mask & ~bit for mask in self.by_free]
        self.by_free[max(state.free_whole, 0)] |= bit
        self.open = self.open & ~bit if state.draining else self.open | bit
        self.foreign = self.foreign & ~bit if state.foreign == ZERO else self.foreign | bit

    def _order_flavors(self) -> None:
        """By their first nodes: where one goes that names none follows from the nodes that are there alone."""
        masks = [*self.by_flavor.values()]
        if any(a & -a > b & -b for a, b in pairwise(masks)):
            self.by_flavor = dict(sorted(self.by_flavor.items(), key=lambda each: each[1] & -each[1]))

    def _count(self, state: NodeState, sign: int) -> None:
        self.gpus_total += sign * state.total_gpus
        self.cpus_total += sign * state.node.total.cpus_milli
        self.memory_total += sign * state.node.total.memory_bytes
        kind = (state.node.flavor, state.node.total)
        self.kinds[kind] = self.kinds.get(kind, 0) + sign
        if not self.kinds[kind]:
            del self.kinds[kind]

    def _forget(self) -> None:
        self.version += 1
        self._domains.clear()
        self._suiting.clear()
        self._kinds_suiting.clear()

    # --- taking and giving back (often) ---

    def to_change(self, node_id: str) -> NodeState:
        """A node, whose ledger is to be changed."""
        return self.by_id[node_id]

    def change(self, node_id: str, amount: Resources, device: int, sign: int) -> None:
        self.take(self.by_id[node_id], amount, device, sign)

    def take(self, state: NodeState, amount: Resources, device: int, sign: int) -> None:
        before = state.free_whole
        state.change(amount, device, sign)
        after = state.free_whole
        if before != after:
            bit = 1 << state.slot
            self.by_free[before if before > 0 else 0] ^= bit
            self.by_free[after if after > 0 else 0] |= bit
        if amount.gpus_milli % MILLI:
            bit = 1 << state.slot
            self.shared = self.shared | bit if state.shares else self.shared & ~bit

    # --- looking ---

    def suiting(self, wish: Wish) -> int:
        """Nodes that may ever hold such a bundle, those that take no new work included."""
        mask = self._suiting.get(wish)
        if mask is None:
            mask = 0
            for state in self.by_id.values():
                if wish.suits(state.node):
                    mask |= 1 << state.slot
            self._suiting[wish] = mask
        return mask

    def kinds_suiting(self, wish: Wish) -> dict[Resources, int]:
        """What such nodes have in all -> how many have that."""
        kinds = self._kinds_suiting.get(wish)
        if kinds is None:
            kinds = self._kinds_suiting[wish] = {}
            for state in self.nodes(self.suiting(wish)):
                kinds[state.node.total] = kinds.get(state.node.total, 0) + 1
        return kinds

    def parts_left(self, mask: int, of: int = 1) -> int:
        """Thousandths of GPUs that are free, in parts of that size, of devices of which somebody has a part: with what
        is held of them they add up, in the smallest parts, to the devices that come free when those let go."""
        used = (each for state in self.nodes(mask & self.shared) for each in state.shares.values())
        return sum((MILLI - each) // of * of for each in used)

    def domains(self, level: str) -> dict[str, int]:
        """Domain name -> mask of its nodes, by name."""
        found = self._domains.get(level)
        if found is None:
            masks: dict[str, int] = {}
            for state in self.by_id.values():
                name = state.node.domain(level)
                if name is not None:
                    masks[name] = masks.get(name, 0) | 1 << state.slot
            found = self._domains[level] = dict(sorted(masks.items()))
        return found

    def with_free(self, gpus: int) -> int:
        """Nodes with at least that many free whole GPUs."""
        mask = 0
        for found in self.by_free[gpus:]:
            mask |= found
        return mask

    def free_gpus(self, mask: int) -> int:
        """Free whole GPUs over the nodes of a mask."""
        total = 0
        for k, found in enumerate(self.by_free):
            inside = found & mask
            if inside:
                total += k * inside.bit_count()
        return total

    def nodes(self, mask: int) -> Iterator[NodeState]:
        """The nodes of a mask by slot."""
        while mask:
            low = mask & -mask
            state = self.slots[low.bit_length() - 1]
            assert state is not None
            yield state
            mask ^= low


class Overlay(Capacity):
    """See `Capacity.overlay`."""

    own: dict[str, NodeState]  # those that were changed

    def to_change(self, node_id: str) -> NodeState:
        found = self.own.get(node_id)
        if found is None:
            found = self.own[node_id] = self.by_id[node_id] = self.by_id[node_id].twin()
            self.slots[found.slot] = found
        return found

    def take(self, state: NodeState, amount: Resources, device: int, sign: int) -> None:
        super().take(self.to_change(state.node.id), amount, device, sign)
