"""Who may take from whom: within a queue, back across queues, while borrowing, and by fair share.

Three independent settings of the configuration and their guards (minimum run times, evictions an hour). Answers one
question about one victim at a time; who is chosen, and where room is made, is for stages/preempt.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmsched.core.configuration import PreemptionRules, Queue
from llmsched.core.fair import BORROWED, GUARANTEE, TOTAL, Shares, total_of
from llmsched.core.lifecycle import ACTIVE
from llmsched.core.plan import Plan
from llmsched.core.policy import View
from llmsched.core.records import GangState, gpus_of
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.trial import Trial

EVICTIONS_AN_HOUR = 6  # of one gang; rotation by rank (rank.py) is bounded by its quantum instead
IN_QUEUE, RECLAIM, WHILE_BORROWING, FAIR = (
    "in_queue_priority",
    "quota_reclaim",
    "reclaim_while_borrowing",
    "fair_share",
)


class Rules:
    """What the configuration lets one waiting gang take, as things stand at each moment of the trial."""

    def __init__(self, trial: Trial, plan: Plan, gang: GangState, shares: Shares | None, view: View):
        state = trial.state
        self.state, self.plan, self.gang, self.shares, self.view = state, plan, gang, shares, view
        self.scheduling = state.configuration.scheduling
        self.queues = {queue.name: queue for queue in state.configuration.queues}
        self.rules = rules_of(state, gang.spec.queue)
        self.strict = False  # second strategy of fair sharing: less than the victim's share as it is now
        self.option = 0
        self.size = gang.spec.min_size
        self._known = (-1, -1)
        self._amount = Resources()

    def group(self, queue: str, priority: int) -> str:
        """The reason code under which gangs of that queue and priority might be victims; "" for never."""
        if queue != self.gang.spec.queue:
            return self._across(queue, priority)
        rule, mine = self.rules.within_queue, self.gang.spec.priority
        lower = priority < mine and rule in ("lower_priority", "lower_or_newer_equal_priority")
        return IN_QUEUE if lower or (priority == mine and rule == "lower_or_newer_equal_priority") else ""

    def could(self, victim: GangState, code: str) -> bool:
        """Whether this gang of such a group might be a victim: not leaving, not shielded, evicted seldom enough."""
        spec, gang = victim.spec, self.gang
        if victim.status not in ACTIVE or victim.workload_id == gang.workload_id or victim.lost_members:
            return False
        older = (victim.submitted_at, victim.workload_id) <= (gang.submitted_at, gang.workload_id)
        if code == IN_QUEUE and spec.priority == gang.spec.priority and older:
            return False
        ran = self.view.now - (victim.launched_at if victim.launched_at is not None else self.view.now)
        shield = spec.min_runtime_s
        if code != IN_QUEUE:
            shield = max(shield, self.scheduling.reclaim_min_runtime_s)
        if ran < shield:
            self.plan.wake(self.view.now - ran + shield)
            return False
        if len(victim.evicted_at) >= EVICTIONS_AN_HOUR:
            recent = [at for at in victim.evicted_at if at > self.view.now - 3600.0]
            if len(recent) >= EVICTIONS_AN_HOUR:
                self.plan.wake(recent[0] + 3600.0)
                return False
        return True

    def _across(self, queue: str, theirs: int) -> str:
        if self.queues.get(queue, Queue("")).evictable == "no":
            return ""
        if self.shares is not None and self.shares.mode == TOTAL:
            return FAIR if self.scheduling.preempt_to_fair_share else ""
        return RECLAIM if self._reclaims(theirs) or self._while_borrowing(theirs) else ""

    def _while_borrowing(self, theirs: int) -> bool:
        limit, mine = self.rules.while_borrowing_max_victim_priority, self.gang.spec.priority
        return self.rules.while_borrowing == "lower_priority" and theirs < mine and (limit is None or theirs <= limit)

    def now(self, victim: GangState, code: str) -> str:
        """The reason code under which `victim` may be taken at this moment of the trial; "" for not (any more)."""
        if code == IN_QUEUE:
            return code
        spec = self.gang.spec
        need = self._need()
        flavor = self._flavor(victim)
        theirs = victim.spec.queue
        shares = self.shares
        if shares is not None and shares.mode == TOTAL:
            protected = self.scheduling.protected_fraction * shares.fair_milli(theirs)
            use = self.state.use.get(theirs)
            if use is None or use.gpus_milli <= protected:
                return ""
            mine = shares.after(spec.queue, flavor, need)
            return FAIR if mine <= shares.after(theirs, flavor, _all_of(victim)) else ""
        if shares is not None and shares.mode == GUARANTEE:
            use = self.state.use.get(theirs)
            if use is None or use.gpus_milli <= shares.deserved.get(theirs, 0.0):
                return ""
            return RECLAIM if shares.after(spec.queue, flavor, need) <= 1.0 else ""
        branch = self.state.quota.branch(theirs, flavor)
        own = self.state.quota.branch(spec.queue, flavor)
        if branch is None or own is None or branch.used <= branch.subtree:
            return ""  # only borrowers give back
        if shares is not None and shares.mode == BORROWED:
            mine = shares.after(spec.queue, flavor, need)
            if mine <= shares.after(theirs, flavor, Resources(-gpus_of(victim.spec, victim.held))):
                return RECLAIM if mine <= 0 else FAIR
            return FAIR if self.strict and mine < shares.after(theirs, flavor, Resources()) else ""
        if own.used + need.gpus_milli <= own.subtree:
            return RECLAIM if self._reclaims(victim.spec.priority) else ""
        return WHILE_BORROWING if self._while_borrowing(victim.spec.priority) else ""

    def _need(self) -> Resources:
        key = (self.size, self.option)
        if self._known != key:
            self._known, self._amount = key, total_of(self.gang.spec, self.size, self.option)
        return self._amount

    def _reclaims(self, theirs: int) -> bool:
        rule, mine = self.rules.reclaim, self.gang.spec.priority
        return (
            rule == "any"
            or (rule == "equal_or_lower_priority" and theirs <= mine)
            or (rule == "lower_priority" and theirs < mine)
        )

    def _flavor(self, victim: GangState) -> str | None:
        node = self.state.nodes.get(victim.held[0].node) if victim.held else None
        return node.node.flavor if node is not None else None

    def each_strategy(self) -> Iterator[bool]:
        """The strategies one after another, each set while it is looked at."""
        for strict in self.strategies():
            self.strict = strict
            yield strict

    def strategies(self) -> tuple[bool, ...]:
        """Fair sharing tries the stricter rule first: my final share at most the victim's final share."""
        if self.shares is None or self.shares.mode != BORROWED:
            return (False,)
        return (False,) if self.scheduling.fair_preempt_rule == "preemptor_final_le_victim_final" else (False, True)


def _all_of(victim: GangState) -> Resources:
    return total_of(victim.spec, victim.size).times(-1)


def rules_of(state: State, queue: str) -> PreemptionRules:
    for candidate in state.configuration.queues:
        if candidate.name == queue and candidate.preemption is not None:
            return candidate.preemption
    return state.configuration.scheduling.preemption


def is_on(state: State) -> bool:
    """Whether anything may ever be evicted for the sake of somebody else."""
    configuration = state.configuration
    known, answer = state.memo.get("evicts", (None, False))
    if known is not configuration:
        every = (configuration.scheduling.preemption, *(queue.preemption for queue in configuration.queues))
        never = ("never", "never", "never")
        answer = configuration.scheduling.preempt_to_fair_share or any(
            rules is not None and rules[:3] != never for rules in every
        )
        state.memo["evicts"] = (configuration, answer)
    return bool(answer)
