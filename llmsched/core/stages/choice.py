"""A set of victims, and how it compares with another one: by whom it spares first, then by what is lost.

Knows no places: which sets there are is for preempt.py to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from llmsched.core.records import GangState
from llmsched.core.rules import Rules
from llmsched.core.workload import Placement


@dataclass(slots=True)
class Choice:
    """Victims and where the gang then goes. `why` holds the reason code of each victim."""

    placement: Placement
    victims: list[GangState]
    why: dict[str, str]
    shortfall: int = 0  # thousandths of GPUs that queues of victims then lack of their own quota

    def rank(self, rules: Rules, cost: dict[str, int]) -> tuple[object, ...]:
        """Of two the smaller one is taken. The highest priority counts first, what is lost of it, and how many leave;
        then the next one. So nobody leaves in the place of somebody whom it might evict in turn."""
        reluctant = sum(rules.is_reluctant(victim) for victim in self.victims)
        levels: dict[tuple[int, float], list[int]] = {}
        for victim in self.victims:
            level = levels.setdefault((victim.spec.priority, rules.seniority(victim, self.why[victim.id])), [0, 0])
            level[0] += cost[victim.id]
            level[1] += 1
        return self.shortfall, reluctant, tuple((*level, *levels[level]) for level in sorted(levels, reverse=True))

    def loses_nothing(
        self, rules: Rules, cost: dict[str, int], allowed: Sequence[tuple[GangState, str]], missing: int
    ) -> bool:
        """Whether no set of those that are `allowed`, each with its reason code, ranks before it: nothing is lost,
        nobody would leave sooner, and fewer of whom nothing is lost do not have the thousandths of GPUs that are
        `missing`."""
        if self.shortfall or self.lost(cost) or any(map(rules.is_reluctant, self.victims)):
            return False
        levels = [(other.spec.priority, rules.seniority(other, code)) for other, code in allowed]
        lowest, fewest = min(levels), 1
        if any((one.spec.priority, rules.seniority(one, self.why[one.id])) > lowest for one in self.victims):
            return False
        rows = zip(allowed, levels, strict=True)
        gives = [rules.gpus_of(one) for (one, _), level in rows if level == lowest and not cost[one.id]]
        for given in accumulate(sorted(gives, reverse=True)):
            if given >= missing:
                break
            fewest += 1
        return len(self.victims) <= fewest

    def is_much_better(self, other: Choice, rules: Rules, cost: dict[str, int]) -> bool:
        """Whether a queue is spared, or at most half as much is lost."""
        mine, theirs = ((*one.rank(rules, cost)[:2], one.top()) for one in (self, other))
        return mine < theirs or (mine == theirs and 2 * self.lost(cost) <= other.lost(cost))

    def top(self) -> int:
        return max((victim.spec.priority for victim in self.victims), default=-(10**9))

    def lost(self, cost: dict[str, int]) -> int:
        return sum(cost[victim.id] for victim in self.victims)
