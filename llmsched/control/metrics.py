"""The loop's own figures, in Prometheus' text format: how long turns and commits take, how much waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llmsched.core.decisions import Decision

BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    def __init__(self, name: str) -> None:
        self.name = name
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[sum(seconds > bound for bound in BUCKETS_S)] += 1
        self._sum += seconds

    def lines(self) -> list[str]:
        lines, total = [f"# TYPE {self.name} histogram"], 0
        for bound, count in zip((*BUCKETS_S, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {self._sum:.6f}", f"{self.name}_count {total}"]


class Metrics:
    def __init__(self) -> None:
        self._turns = Histogram("llmsched_turn_seconds")
        self._commits = Histogram("llmsched_commit_seconds")
        self._launches = Histogram("llmsched_launch_seconds")
        self._entries = 0
        self._decisions: Counter[str] = Counter()

    def turn(self, seconds: float, decisions: Sequence[Decision]) -> None:
        self._turns.add(seconds)
        self._decisions.update(type(decision).__name__ for decision in decisions)

    def commit(self, seconds: float, entries: int) -> None:
        self._commits.add(seconds)
        self._entries += entries

    def launch(self, seconds: float) -> None:
        """From the stamp of a launch in the journal, which is taken before its commit, until the cluster is asked."""
        self._launches.add(seconds)

    def text(self, waiting: int, orders: int, degraded: bool) -> str:
        lines = [*self._turns.lines(), *self._commits.lines(), *self._launches.lines()]
        lines += ["# TYPE llmsched_entries_total counter", f"llmsched_entries_total {self._entries}"]
        lines += ["# TYPE llmsched_decisions_total counter"]
        lines += [f'llmsched_decisions_total{{kind="{kind}"}} {n}' for kind, n in sorted(self._decisions.items())]
        for name, value in (("inbox", waiting), ("orders", orders), ("degraded", int(degraded))):
            lines += [f"# TYPE llmsched_{name} gauge", f"llmsched_{name} {value}"]
        return "\n".join(lines) + "\n"
