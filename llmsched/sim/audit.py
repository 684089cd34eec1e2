"""Counts quota violations with arithmetic of its own: what each queue really holds against what it may.

It shares no ledger with the core, so that a mistake there shows. Checked after every turn that gave something out.
"""

from __future__ import annotations

from llmsched.core.configuration import Configuration, Quota
from llmsched.core.nodes import Node
from llmsched.core.resources import MILLI


class Audit:
    def __init__(self, configuration: Configuration, nodes: tuple[Node, ...]) -> None:
        self.violations = 0
        self.held: dict[tuple[str, str], int] = {}  # (queue, flavor) -> whole GPUs
        self._flavor = {node.id: node.flavor or "" for node in nodes}
        self._queues = {queue.name: queue for queue in configuration.queues}
        self._limited = any(queue.quotas for queue in configuration.queues)
        total: dict[str, int] = {}
        for node in nodes:
            total[node.flavor or ""] = total.get(node.flavor or "", 0) + node.total.gpus_milli // MILLI
        self._total = total
        self._kin: dict[str, list[str]] = {}  # root cohort -> its queues
        parents = {cohort.name: cohort.parent for cohort in configuration.cohorts}
        for queue in configuration.queues:
            root = queue.cohort
            while root is not None and parents.get(root) is not None:
                root = parents[root]
            self._kin.setdefault(root or "", []).append(queue.name)

    def joined(self, node: Node) -> None:
        self._flavor[node.id] = node.flavor or ""
        self._total[node.flavor or ""] = self._total.get(node.flavor or "", 0) + node.total.gpus_milli // MILLI

    def changed(self, queue: str, by_node: dict[str, int], sign: int) -> None:
        for node, count in by_node.items():
            key = (queue, self._flavor.get(node, ""))
            self.held[key] = self.held.get(key, 0) + sign * count

    def check(self) -> None:
        """One violation per queue and flavor that holds more than it may: its own, what it may borrow, and what the
        others of its cohort do not need to have lent."""
        if not self._limited:
            return
        for (queue, flavor), held in self.held.items():
            if held <= 0 or queue not in self._queues:
                continue
            if held > self._most(queue, flavor):
                self.violations += 1

    def _most(self, name: str, flavor: str) -> int:
        queue = self._queues[name]
        own = _quota(queue.quotas, flavor)
        if own is None:
            return self._total.get(flavor, 0)
        most = self._total.get(flavor, 0)
        if own.borrowing_limit_milli is not None:
            most = min(most, (own.nominal_milli + own.borrowing_limit_milli) // MILLI)
        for kin in self._queues.values():  # what others keep for themselves is out of reach
            if kin.name != name:
                theirs = _quota(kin.quotas, flavor)
                if theirs is not None and theirs.lending_limit_milli is not None:
                    kept = max(0, theirs.nominal_milli - theirs.lending_limit_milli) // MILLI
                    most -= kept
        return most


def _quota(quotas: tuple[tuple[str, Quota], ...], flavor: str) -> Quota | None:
    found = dict(quotas)
    return found.get(flavor) or found.get("*")
