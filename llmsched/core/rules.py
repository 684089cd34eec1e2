"""Who may take from whom: within a queue, back across queues, while borrowing, and by fair share.

Three independent settings of the configuration and their guards (minimum run times, evictions an hour). Answers one
question about one victim at a time; who is chosen, and where room is made, is for stages/preempt.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from llmsched.core.amounts import bundle_milli, flavor_of, need_of, options_of
from llmsched.core.configuration import PreemptionRules, Queue
from llmsched.core.fair import BORROWED, GUARANTEE, TOTAL, Shares
from llmsched.core.message import Message, say
from llmsched.core.quota import Branch, fork
from llmsched.core.records import GangState, flavor_held, gpus_of, size_of, total_of
from llmsched.core.resources import ZERO, Resources
from llmsched.core.scheduling_pass import Pass
from llmsched.core.state import State
from llmsched.core.status import ACTIVE

EVICTIONS_AN_HOUR = 6  # of one gang; rotation by rank (rank.py) is bounded by its quantum instead
IN_QUEUE, RECLAIM, WHILE_BORROWING, FAIR = (
    "in_queue_priority",
    "quota_reclaim",
    "reclaim_while_borrowing",
    "fair_share",
)
NO_QUEUE = Queue("")
FAIR_RULES = {  # scheduling.fair_preempt_rule, in our words and in Kueue's; unset: both, the gentle one first
    "preemptor_final_le_victim_final": ("final",),
    "LessThanOrEqualToFinalShare": ("final",),
    "preemptor_final_lt_victim_initial": ("initial",),
    "LessThanInitialShare": ("initial",),
}


class Rules:
    """What the configuration lets one waiting gang take, as things stand at each moment of the trial.

    A strategy says which of the rules is tried, one after another (`each_strategy`):
      borrowing  the gang may end above its queue's quota: takes from whoever borrows what a cohort of its own lacks,
                 and by priority while borrowing
      inside     the gang must end inside its queue's quota (`holds`): takes from whoever borrows
      final      fair sharing: my share at the end is at most the victim's at the end
      initial    fair sharing: my share at the end is less than the victim's now
      shares     the other two senses of a share (fair.py)
    """

    def __init__(self, this: Pass, gang: GangState) -> None:
        state = this.state
        self.trial, self.state, self.plan, self.gang = this.trial, state, this.plan, gang
        self.shares, self.view, self.exchanged = this.shares, this.view, this.exchanged
        self.shielded: list[tuple[float, Message]] = []  # until when some could not be victims, and why
        self.scheduling = state.configuration.scheduling
        self.queues = state.quota.queues
        self.rules = rules_of(state, gang.spec.queue)
        self.option = 0
        self.size = gang.spec.min_size
        self._known = (-1, -1)
        self._amount = Resources()
        self._covered: dict[str | None, int] = {}  # by flavor, as things stood when the strategy began
        self._every: dict[int, tuple[str, ...]] = {}  # the strategies by option, as things stood at first
        self.strategy = self._all()[0]

    def group(self, queue: str, priority: int) -> str:
        """The reason code under which gangs of that queue and priority might be victims; "" for never."""
        if queue != self.gang.spec.queue:
            return self._across(queue, priority)
        return IN_QUEUE if _in_queue(self.rules, self.gang.spec.priority, priority) else ""

    def could(self, victim: GangState, code: str) -> bool:
        """Whether this gang of such a group might be a victim: not leaving, not shielded, evicted seldom enough."""
        spec, gang = victim.spec, self.gang
        begins = self.trial.is_new(victim)
        if begins and (gang.id, victim.id) in self.exchanged:
            return False
        if not (begins or victim.status in ACTIVE) or victim.workload_id == gang.workload_id or victim.lost_members:
            return False
        older = (victim.submitted_at, victim.workload_id) <= (gang.submitted_at, gang.workload_id)
        if code == IN_QUEUE and spec.priority == gang.spec.priority and older:
            return False
        shield = spec.min_runtime_s
        if code != IN_QUEUE:
            shield = max(shield, self.scheduling.reclaim_min_runtime_s)
        if not self._has_come(self.launched_at(victim) + shield, say("eta.shield")):
            return False
        if len(victim.evicted_at) < EVICTIONS_AN_HOUR:
            return True
        return self._has_come(victim.evicted_at[-EVICTIONS_AN_HOUR] + 3600.0, say("eta.evictions"))

    def may_evict(self, victim: GangState) -> bool:
        """Whether it may be taken as things stand, whatever shields it for a time, if its place is enough."""
        code = self.group(victim.spec.queue, victim.spec.priority)
        if not code:
            return False
        for option in options_of(self.gang.spec):
            self.option = option
            for _ in self.each_strategy():
                if self.now(victim, code) and self.holds():
                    return True
        return False

    def _has_come(self, at: float, basis: Message) -> bool:
        if self.plan.has_come(at, basis):
            return True
        self.shielded.append((at, basis))
        return False

    def launched_at(self, victim: GangState) -> float:
        now = self.view.now
        return now if self.trial.is_new(victim) or victim.launched_at is None else victim.launched_at

    def is_reluctant(self, victim: GangState) -> bool:
        """Whether its queue would rather not be evicted: it goes after everybody else."""
        return self.queues.get(victim.spec.queue, NO_QUEUE).evictable == "prefer_not"

    def seniority(self, victim: GangState, code: str) -> float:
        """Of equals that may evict one another by age: the older, the larger. Who evicts is always older than who is
        evicted, so that a cascade ends, and taking the newest keeps it from beginning."""
        equal = code == IN_QUEUE and victim.spec.priority == self.gang.spec.priority
        return -victim.submitted_at if equal else -inf

    def branch_of(self, victim: GangState) -> Branch | None:
        """Of the quota that it is charged to."""
        return self.state.quota.branch(victim.spec.queue, self._flavor(victim))

    def excess(self, victim: GangState) -> int:
        """Thousandths of GPUs that its queue has beyond its own quota."""
        branch = self._branch(victim)
        return 0 if branch is None else branch.used - branch.subtree

    def shortfall(self, victim: GangState) -> int:
        """Thousandths of GPUs that its queue would lack of its own quota if it were taken now."""
        branch = self._branch(victim)
        return 0 if branch is None else max(0, branch.subtree - branch.used + self.gpus_of(victim))

    def shortfall_of(self, gone: list[GangState]) -> int:
        """What queues lack of their own quota now that these have gone."""
        lacking = {}
        for victim in gone:
            branch = self._branch(victim)
            if branch is not None:
                lacking[branch.name, self._flavor(victim)] = max(0, branch.subtree - branch.used)
        return sum(lacking.values())

    def _branch(self, victim: GangState) -> Branch | None:
        """Of the quota that it is charged to, when that is not the gang's own queue's."""
        if victim.spec.queue == self.gang.spec.queue or not self.state.quota.enforced:
            return None
        return self.state.quota.branch(victim.spec.queue, self._flavor(victim))

    def _across(self, queue: str, theirs: int) -> str:
        if self.queues.get(queue, NO_QUEUE).evictable == "no":
            return ""
        if self.shares is not None and self.shares.mode == TOTAL and self._levels(theirs):
            return FAIR
        return RECLAIM if self._reclaims(theirs) or self._while_borrowing(theirs) else ""

    def _levels(self, theirs: int) -> bool:
        """Whether shares of the whole are levelled at the cost of work of that priority."""
        return self.scheduling.preempt_to_fair_share or self._reclaims(theirs)

    def _while_borrowing(self, theirs: int) -> bool:
        limit, mine = self.rules.while_borrowing_max_victim_priority, self.gang.spec.priority
        return self.rules.while_borrowing == "lower_priority" and theirs < mine and (limit is None or theirs <= limit)

    def _reclaims(self, theirs: int) -> bool:
        rule, mine = self.rules.reclaim, self.gang.spec.priority
        return (
            rule == "any"
            or (rule == "equal_or_lower_priority" and theirs <= mine)
            or (rule == "lower_priority" and theirs < mine)
        )

    def now(self, victim: GangState, code: str, released: int | None = None) -> str:
        """The reason code under which `victim` may be taken at this moment of the trial, or only `released` of its
        thousandths of GPUs (None: all); "" for not (any more)."""
        if code == IN_QUEUE:
            return code
        shares, flavor, theirs = self.shares, self._flavor(victim), victim.spec.queue
        if shares is not None and shares.mode == GUARANTEE:
            return self._by_share(shares, victim, flavor, released)
        owns_nothing = not self.state.quota.enforced and (shares is None or shares.mode != BORROWED)
        branch = self.state.quota.branch(theirs, flavor)
        own = self.state.quota.branch(self.gang.spec.queue, flavor)
        spare = self._spare(victim) if released is None else 0
        if not owns_nothing and (branch is None or own is None or not _borrows(branch, own, spare)):
            return ""  # only borrowers give back: who takes what others own has to give it back at once
        if shares is not None and shares.mode == TOTAL and self._by_share(shares, victim, flavor, released):
            return FAIR
        if owns_nothing or branch is None or own is None:
            return self._by_priority(victim, flavor)
        mine, other = fork(own, branch)
        if shares is not None and shares.mode == BORROWED:
            if not self._reclaims(victim.spec.priority):
                return ""
            need = self._need().gpus_milli
            if own.used + need <= own.subtree:
                return RECLAIM
            amount = self.gpus_of(victim) if released is None else released
            mine_then = shares.of_branch(own, mine, flavor, need)
            if self.strategy == "final":
                return FAIR if mine_then <= shares.of_branch(branch, other, flavor, -amount) else ""
            return FAIR if mine_then < shares.of_branch(branch, other, flavor, 0) else ""
        owned = self.strategy == "inside" or mine.depth <= self._covered_depth(own, flavor)
        if owned and self._reclaims(victim.spec.priority):
            return RECLAIM
        return self._by_priority(victim, flavor)

    def _by_priority(self, victim: GangState, flavor: str | None) -> str:
        """While borrowing a higher priority takes from a lower one. Where shares are levelled it may not lift its own
        queue's above what the other one's is now: that would be levelled again, and so for ever. As it is, every
        eviction lowers the larger of two shares, or leaves them and puts a higher priority in the place of a lower."""
        if not self._while_borrowing(victim.spec.priority):
            return ""
        shares = self.shares
        if shares is not None and shares.mode == TOTAL and self._levels(self.gang.spec.priority):
            mine = shares.after(self.gang.spec.queue, flavor, self._need())
            if mine > shares.after(victim.spec.queue, flavor, ZERO):
                return ""
        return WHILE_BORROWING

    def ever(self, victim: GangState, code: str) -> bool:
        """Whether `victim` may be taken by any of the strategies, as things stand."""
        if len(self._strategies()) == 1:
            return bool(self.now(victim, code))
        return any(self.now(victim, code) for _ in self.each_strategy())

    def _by_share(self, shares: Shares, victim: GangState, flavor: str | None, released: int | None) -> str:
        theirs, need = victim.spec.queue, self._need()
        use = self.state.use.get(theirs)
        if use is None:
            return ""
        spare = self._spare(victim) if released is None else 0
        if shares.mode == GUARANTEE:
            if use.gpus_milli - spare <= shares.deserved.get(theirs, 0.0):
                return ""
            return RECLAIM if shares.after(self.gang.spec.queue, flavor, need) <= 1.0 else ""
        if not self._levels(victim.spec.priority):
            return ""
        fraction = self.scheduling.protected_fraction
        if fraction and shares.is_protected(theirs, fraction, Resources(spare)):
            return ""
        given = self._all_of(victim) if released is None else Resources(-released)
        mine = shares.after(self.gang.spec.queue, flavor, need)
        return FAIR if mine <= shares.after(theirs, flavor, given) else ""

    def _spare(self, victim: GangState) -> int:
        """Thousandths of GPUs that an elastic victim could give and go on: it is evicted only for what it cannot."""
        if not self.scheduling.elastic or not victim.spec.is_elastic():
            return 0
        bundle = bundle_milli(victim.spec, victim.option)
        return max(0, size_of(victim.spec, self.trial.held(victim)) - victim.spec.min_size) * bundle

    def goes_by_turns(self) -> bool:
        """Whether one may be taken or not by what has been taken from its queue before."""
        return self.shares is not None and self.shares.mode != GUARANTEE

    def holds(self) -> bool:
        """Whether the gang, were it to start at this moment of the trial, would keep to what the strategy asks."""
        if self.strategy != "inside":
            return True
        own = self._own()
        return own is not None and own.used + self._need().gpus_milli <= own.subtree

    def can_hold(self, released: int) -> bool:
        """Whether it could, once so many thousandths of GPUs of its own queue were released."""
        own = self._own()
        return own is not None and own.used + self._need().gpus_milli - released <= own.subtree

    def _own(self) -> Branch | None:
        quota, queue = self.state.quota, self.gang.spec.queue
        flavors = quota.flavors_for(queue, flavor_of(self.gang.spec, self.option))
        branches = [branch for each in flavors if (branch := quota.branch(queue, each)) is not None]
        return max(branches, key=lambda branch: branch.subtree - branch.used, default=None)

    def _covered_depth(self, own: Branch, flavor: str | None) -> int:
        """Depth of the lowest branch above (or at) the queue whose own quota covers what the gang needs; -1: none. What
        that branch has lent to others is the gang's to take back."""
        known = self._covered.get(flavor)
        if known is None:
            known, left, branch = -1, self._need().gpus_milli, own
            while known < 0:
                if branch.used + left <= branch.subtree:
                    known = branch.depth
                if branch.parent is None:
                    break
                left = max(0, left - max(0, branch.kept - branch.used))
                branch = branch.parent
            self._covered[flavor] = known
        return known

    def _need(self) -> Resources:
        key = (self.size, self.option)
        if self._known != key:
            self._known, self._amount = key, need_of(self.gang.spec, self.size, self.option)
        return self._amount

    def _flavor(self, victim: GangState) -> str | None:
        return flavor_held(self.state.nodes, victim.spec, self.trial.places(victim))

    def kind_of(self, victim: GangState) -> tuple[object, ...]:
        """All that whether it may be taken depends on as things stand, but for the gang that asks."""
        places = self.trial.places(victim)
        known = self.trial.kinds.get(victim.id)
        if known is None or known[0] is not places:
            spec = victim.spec
            kind = (spec.queue, spec.priority, self.gpus_of(victim), self._flavor(victim))
            known = self.trial.kinds[victim.id] = (places, kind)
        return known[1]

    def gpus_of(self, victim: GangState) -> int:
        """Thousandths of GPUs that it lets go when it is taken, what it takes beyond its own among them."""
        beyond = total_of(victim.excess).gpus_milli if victim.excess else 0
        return gpus_of(victim.spec, self.trial.places(victim)) + beyond

    def _all_of(self, victim: GangState) -> Resources:
        size = size_of(victim.spec, self.trial.places(victim)) if self.trial.is_new(victim) else victim.size
        own = need_of(victim.spec, size)
        return own.plus(total_of(victim.excess)).times(-1)

    def each_strategy(self) -> Iterator[str]:
        """The strategies one after another, each set while it is looked at; the first one is set again at the end."""
        every = self._strategies()
        try:
            for self.strategy in every:
                self._covered.clear()
                yield self.strategy
        finally:
            self.strategy = every[0]

    def _strategies(self) -> tuple[str, ...]:
        found = self._every.get(self.option)
        if found is None:
            found = self._every[self.option] = self._all()
        return found

    def _all(self) -> tuple[str, ...]:
        if self.shares is not None and self.shares.mode == BORROWED:
            return FAIR_RULES.get(self.scheduling.fair_preempt_rule or "", ("final", "initial"))
        if self.shares is not None and self.shares.mode == GUARANTEE:
            return ("shares",)
        own = self._own()
        if self.rules.within_queue == "never" or own is None:
            return ("borrowing",)  # nothing of its own could bring the queue back inside its quota
        if own.used >= own.subtree or own.used + self._need().gpus_milli <= own.subtree:
            return ("borrowing",)  # it has all it owns, or ends inside in any case
        return ("inside", "borrowing") if self.rules.while_borrowing == "never" else ("borrowing", "inside")


class Rights(NamedTuple):
    """What gangs of one queue may have a right to, as things stand, whoever runs elsewhere. `lowest`: the priority of
    those of their own that may be preempted; `owned`: thousandths of GPUs that the queue owns and has not, or that a
    branch above may take back; -1: nothing."""

    rules: PreemptionRules
    always: bool
    lowest: int | None
    owned: int

    def may_take(self, priority: int, least_milli: int) -> bool:
        """Whether one of that priority, which needs so many thousandths of GPUs at least, could have a victim."""
        is_above = self.lowest is not None and _in_queue(self.rules, priority, self.lowest)
        return self.always or is_above or 0 <= least_milli <= self.owned


def rights_of(this: Pass, queue: str) -> Rights:
    state, rules = this.state, rules_of(this.state, queue)
    always = this.shares is not None or rules.while_borrowing == "lower_priority"
    own = [priority for (name, priority, may), group in state.groups.items() if name == queue and may and group.gangs]
    own += [new.spec.priority for new in this.trial.new() if new.spec.queue == queue and new.spec.preemptible]
    owned = -1
    if rules.reclaim != "never" and state.quota.enforced:
        every = (state.quota.branch(queue, flavor) for flavor in state.capacity.by_flavor)
        owned = max((_covered(branch) for branch in every if branch is not None), default=-1)
    return Rights(rules, always, min(own, default=None), owned)


def _covered(branch: Branch) -> int:
    """What a gang of that queue may need at most for a `_covered_depth`; -1: it has none."""
    most, kept, above = -1, 0, branch
    while True:
        if above.used <= above.subtree:
            most = max(most, kept + above.subtree - above.used)
        if above.parent is None:
            return most
        kept += max(0, above.kept - above.used)
        above = above.parent


def _in_queue(rules: PreemptionRules, mine: int, theirs: int) -> bool:
    """Whether one of priority `mine` may take from one of its own queue."""
    rule = rules.within_queue
    if theirs < mine:
        return rule in ("lower_priority", "lower_or_newer_equal_priority")
    return theirs == mine and rule == "lower_or_newer_equal_priority"


def _borrows(branch: Branch, own: Branch, spare: int) -> bool:
    """Whether a queue, and each cohort above it that the other one is not in, has more than it owns."""
    if branch.used - spare <= branch.subtree:
        return False
    _, other = fork(own, branch)
    return other is branch or all(above.used - spare > above.subtree for above in branch.up_to(other))


def rules_of(state: State, queue: str) -> PreemptionRules:
    own = state.quota.queues.get(queue, NO_QUEUE).preemption
    return state.configuration.scheduling.preemption if own is None else own


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
