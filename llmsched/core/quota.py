"""Queues in a tree of cohorts: what each may take, own and borrowed. Kueue's algebra as one short recursion.

A node of the tree keeps for itself what its lending limit does not give away (`kept`); the rest of its subtree's
nominal quota lies with its parent. Use beyond `kept` is charged to the parent, and so on up. Whatever the cluster has
and nobody was promised belongs to the root. Amounts are thousandths of a GPU; a row is a flavor, or "*" for all of
them. `charge` and `release` are exact inverses. Knows no gangs and no nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy

from llmsched.core.configuration import Configuration, Quota

ROOT = ""
UNLIMITED = 1 << 60


class Branch:
    """A queue or a cohort in the tree, for one row (flavor)."""

    __slots__ = ("children", "depth", "kept", "name", "parent", "quota", "subtree", "used", "weight")

    def __init__(self, name: str, quota: Quota, parent: Branch | None, weight: float = 1.0) -> None:
        self.name = name
        self.quota = quota
        self.parent = parent
        self.weight = weight
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: list[Branch] = []
        self.subtree = quota.nominal_milli
        self.kept = 0
        self.used = 0
        if parent is not None:
            parent.children.append(self)

    def settle(self) -> None:
        """Compute subtree quota and what is kept, leaves first."""
        self.subtree = self.quota.nominal_milli
        for child in self.children:
            child.settle()
            self.subtree += child.subtree - child.kept
        limit = self.quota.lending_limit_milli
        self.kept = 0 if self.parent is None or limit is None else max(0, self.subtree - limit)

    def available(self) -> int:
        """What may still be taken here; negative when more is in use than was promised."""
        if self.parent is None:
            return self.subtree - self.used
        above = self.parent.available()
        limit = self.quota.borrowing_limit_milli
        if limit is not None:
            lent_up = self.subtree - self.kept
            above = min(above, lent_up - max(0, self.used - self.kept) + limit)
        return max(0, self.kept - self.used) + above

    def bottleneck(self, amount: int) -> Branch | None:
        """The lowest branch, from here up, that does not let so much more be taken; None when all do."""
        if self.parent is None:
            return self if amount > self.subtree - self.used else None
        left = amount - max(0, self.kept - self.used)
        if left <= 0:
            return None
        limit = self.quota.borrowing_limit_milli
        if limit is not None and left > self.subtree - self.kept - max(0, self.used - self.kept) + limit:
            return self
        return self.parent.bottleneck(left)

    def most(self) -> int:
        """What could be taken here if everybody else used nothing."""
        if self.parent is None:
            return self.subtree
        above = self.parent.most()
        limit = self.quota.borrowing_limit_milli
        if limit is not None:
            above = min(above, self.subtree - self.kept + limit)
        return self.kept + above

    def charge(self, amount: int) -> None:
        beyond = amount - max(0, self.kept - self.used)
        self.used += amount
        if self.parent is not None and beyond > 0:
            self.parent.charge(beyond)

    def release(self, amount: int) -> None:
        beyond = min(amount, self.used - self.kept)
        self.used -= amount
        if self.parent is not None and beyond > 0:
            self.parent.release(beyond)

    def borrowed(self) -> int:
        return max(0, self.used - self.subtree)

    def up_to(self, top: Branch) -> Iterator[Branch]:
        """This branch and those above it, `top` included."""
        branch = self
        while branch is not top:
            yield branch
            assert branch.parent is not None
            branch = branch.parent
        yield top


def fork(one: Branch, other: Branch) -> tuple[Branch, Branch]:
    """Where the ways of two queues to the root part: the two branches right below the lowest cohort they share."""
    while one.parent is not other.parent:
        if one.depth >= other.depth:
            assert one.parent is not None
            one = one.parent
        else:
            assert other.parent is not None
            other = other.parent
    return one, other


class QuotaTree:
    """One tree per row. `cluster` is the GPUs per flavor, in thousandths: what nobody was promised goes to the root."""

    def __init__(self, configuration: Configuration, cluster: Mapping[str, int]) -> None:
        self.enforced = any(queue.quotas for queue in configuration.queues)
        self.queues = {queue.name: queue for queue in configuration.queues}
        self.rows: dict[str, dict[str, Branch]] = {}
        self._flavors = [flavor or None for flavor in cluster]
        self._branch_of: dict[tuple[str, str | None], Branch | None] = {}
        self._row_of: dict[tuple[str, str], str] = {}
        every = [quotas for queue in configuration.queues for quotas in queue.quotas]
        every += [quotas for cohort in configuration.cohorts for quotas in cohort.quotas]
        named = dict.fromkeys(name for name, _ in every)
        rows = [*(name for name in named if name != "*"), "*"]
        for row in rows:
            self.rows[row] = self._tree(configuration, row, named, cluster)

    def _tree(
        self, configuration: Configuration, row: str, named: Mapping[str, None], cluster: Mapping[str, int]
    ) -> dict[str, Branch]:
        def quota(pairs: tuple[tuple[str, Quota], ...]) -> Quota:
            found = dict(pairs).get(row)
            if found is not None:
                return found
            return Quota(0, 0 if pairs else None, None)  # a queue that names other flavors only may not use this one

        cohorts = {cohort.name: cohort for cohort in configuration.cohorts}
        all_quotas = [queue.quotas for queue in configuration.queues] + [c.quotas for c in configuration.cohorts]
        promised = sum(dict(quotas).get(row, Quota()).nominal_milli for quotas in all_quotas)
        if row == "*":  # one "*" row covers every flavor that has no row of its own, or all when mixed
            present = sum(gpus for flavor, gpus in sorted(cluster.items()) if flavor not in named)
        else:
            present = cluster.get(row, 0)
        branches = {ROOT: Branch(ROOT, Quota(max(0, present - promised)), None)}

        def branch(name: str) -> Branch:
            found = branches.get("cohort:" + name)
            if found is None:
                cohort = cohorts.get(name)
                parent = branch(cohort.parent) if cohort and cohort.parent else branches[ROOT]
                own = dict(cohort.quotas).get(row, Quota()) if cohort else Quota()
                weight = cohort.weight if cohort else 1.0
                found = branches["cohort:" + name] = Branch("cohort:" + name, own, parent, weight)
            return found

        for cohort in configuration.cohorts:
            branch(cohort.name)
        for queue in configuration.queues:
            parent = branch(queue.cohort) if queue.cohort else branches[ROOT]
            branches["queue:" + queue.name] = Branch("queue:" + queue.name, quota(queue.quotas), parent, queue.weight)
        branches[ROOT].settle()
        return branches

    def twin(self) -> QuotaTree:
        """The same tree with ledgers of its own."""
        other = copy(self)
        other._branch_of = {}
        other.rows = {}
        for row, branches in self.rows.items():
            twins = other.rows[row] = {}
            for name, branch in branches.items():  # parents stand before their children
                parent = twins[branch.parent.name] if branch.parent else None
                twin = twins[name] = Branch(name, branch.quota, parent, branch.weight)
                twin.subtree, twin.kept, twin.used = branch.subtree, branch.kept, branch.used
        return other

    def row_of(self, queue: str, flavor: str | None) -> str:
        key = (queue, flavor or "")
        row = self._row_of.get(key)
        if row is None:
            listed = dict(self.queues[queue].quotas) if queue in self.queues else {}
            row = flavor if flavor and (flavor in listed or (not listed and flavor in self.rows)) else "*"
            if row == "*" and "*" not in listed and listed and flavor in self.rows:
                row = str(flavor)
            self._row_of[key] = row
        return row

    def branch(self, queue: str, flavor: str | None) -> Branch | None:
        key = (queue, flavor)
        if key not in self._branch_of:
            self._branch_of[key] = self.rows[self.row_of(queue, flavor)].get("queue:" + queue)
        return self._branch_of[key]

    def flavors_for(self, queue: str, flavor: str | None) -> tuple[str | None, ...]:
        """What a request for a flavor (None: any) may be charged as: one flavor for each row, or None where all of them
        have one row together."""
        if flavor is not None or not self._flavors:
            return (flavor,)
        by_row = {self.row_of(queue, each): each for each in self._flavors}
        return (None,) if [*by_row] == ["*"] and len(self._flavors) > 1 else tuple(by_row.values())

    def charge(self, queue: str, flavor: str | None, amount: int) -> None:
        found = self.branch(queue, flavor)
        if found is not None:
            found.charge(amount)

    def release(self, queue: str, flavor: str | None, amount: int) -> None:
        found = self.branch(queue, flavor)
        if found is not None:
            found.release(amount)

    def available(self, queue: str, flavor: str | None) -> int:
        if not self.enforced:
            return UNLIMITED
        found = self.branch(queue, flavor)
        return found.available() if found is not None else 0

    def left_by_owners(self, queue: str, flavor: str | None, own: int) -> int:
        """What a queue could take if it had `own` alone, and of the others none had more than it owns."""
        other = self.twin()
        mine = other.branch(queue, flavor)
        if mine is None:
            return 0
        for branch in other.rows[self.row_of(queue, flavor)].values():
            beyond = branch.used - (own if branch is mine else branch.subtree)
            if branch.name.startswith("queue:") and beyond > 0:
                branch.release(beyond)
        return mine.available()

    def most(self, queue: str, flavor: str | None) -> int:
        if not self.enforced:
            return UNLIMITED
        found = self.branch(queue, flavor)
        return found.most() if found is not None else 0
