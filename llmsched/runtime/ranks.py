"""What the ranks of one try have said of themselves: where they work, and how they ended. Knows no Ray and no clock."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(NamedTuple):
    """Where a rank works: for commands beside it."""

    node: str
    folder: str
    envs: dict[str, str]
    pid: int = 0


class Failure(NamedTuple):
    """What a rank raised. event: error | input | interruption (only because another one went away)."""

    rank: int
    message: str
    event: str


@dataclass
class Ranks:
    """Written by the threads in which the ranks are heard, read by the attempt's own."""

    places: dict[int, Place] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    finished_ranks: set[int] = field(default_factory=set)
    exits: dict[int, int] = field(default_factory=dict)  # rank -> the code with which it called os._exit
    did_stop: bool = False  # a rank left because it was asked to
    stopped_step: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def works_in(self, rank: int, node: str, folder: str, envs: dict[str, str], pid: int = 0) -> None:
        self.places[rank] = Place(node, folder, envs, pid)

    def left(self, rank: int) -> None:
        """It was let go of while the others go on: nobody waits for a word of it."""
        self.finished(rank)
        self.places.pop(rank, None)

    def place_of(self, number: int) -> Place | None:
        """Of those at work, counted from 0: a rank that left while the others went on is not counted."""
        there = sorted(self.places)
        return self.places[there[number]] if number < len(there) else None

    def of_death(self, pid: int) -> int | None:
        """Whose process `pid` (0: not known) was; else the lowest that called os._exit; None: nobody can say."""
        here = (rank for rank, place in sorted(self.places.items()) if pid and place.pid == pid)
        return next(here, min(self.exits, default=None))

    def stopped(self, step: int | None) -> None:
        self.did_stop, self.stopped_step = True, step

    def finished(self, rank: int) -> None:
        with self._lock:
            self.finished_ranks.add(rank)

    def failed(self, rank: int, message: str, event: str) -> None:
        with self._lock:
            self.failures.append(Failure(rank, message, event))

    def own_failures(self) -> list[Failure]:
        """Those that are no echo of another one's end, lowest rank first."""
        with self._lock:
            return sorted(one for one in self.failures if one.event != "interruption")

    def heard_of_a_loss(self) -> bool:
        """Whether one says that another went away."""
        with self._lock:
            return any(one.event == "interruption" for one in self.failures)
