"""One job of a trace: when it came, what it asked for, and how long it takes at each size. Knows no scheduler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Job:
    """`runtimes` are (GPUs, seconds alone), ascending, at least one; more than one makes the job elastic.

    `by_flavor` are the same for each kind of GPU on which they are known, if that makes a difference: it runs on no
    other, and `runtimes` are those of the flavor on which its smallest size is fastest. `gpus` is what its user asked
    for. `start_s` is what its starts and changes of size take, in their order, and `leave_s` how long it holds its GPUs
    after each time that it was told to leave; the last of them holds for all that follow, and where there is none the
    simulation's own figure. `row` is the line of the file, for errors.
    """

    id: str
    submit_s: float
    gpus: int
    runtimes: tuple[tuple[int, float], ...]
    queue: str = "default"
    priority: int = 50
    user: str = ""
    model: str = ""
    steps: float | None = None
    flavor: str | None = None
    estimated_s: float | None = None
    by_flavor: tuple[tuple[str, tuple[tuple[int, float], ...]], ...] = ()
    start_s: tuple[float, ...] = ()
    leave_s: tuple[float, ...] = ()
    row: int = 0

    def flavors(self) -> tuple[str | None, ...]:
        """On which it runs, that of `runtimes` first; (None,): on any."""
        first = sorted(self.by_flavor, key=lambda row: row[1] != self.runtimes)
        return tuple(flavor for flavor, _ in first) or (self.flavor,)

    @property
    def duration_s(self) -> float:
        """Seconds alone at the size its user asked for; where that is not feasible, at the next smaller size."""
        best = self.runtimes[0][1]
        for size, seconds in self.runtimes:
            if size <= self.gpus:
                best = seconds
        return best

    def is_elastic(self) -> bool:
        return len(self.runtimes) > 1
