"""What of quota is kept for a gang that has waited long, beside its places: neither is of use without the other.

Whoever would begin must leave it what it needs at its planned start, as the tree will be then. And nobody of its own
queue who came later takes what that must have given back for the gang to be inside its quota, as from then on no other
queue's right goes before its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmsched.core.amounts import flavor_of, need_milli, options_of
from llmsched.core.quota import QuotaTree
from llmsched.core.records import GangState, amount_of
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload

Need = Mapping[str, tuple[str | None, int]]  # row -> (a flavor of it, thousandths of GPUs)


def need_by_row(trial: Trial, spec: Workload, placement: Placement) -> dict[str, tuple[str | None, int]]:
    """What each row of quota is charged for a placement."""
    quota, nodes = trial.state.quota, trial.state.nodes
    need: dict[str, tuple[str | None, int]] = {}
    for placed in placement:
        flavor = nodes[placed.node].node.flavor
        row = quota.row_of(spec.queue, flavor)
        need[row] = (flavor, need.get(row, (flavor, 0))[1] + amount_of(spec, placed).gpus_milli)
    return need


def is_inside(trial: Trial, spec: Workload, size: int, option: int) -> bool:
    """Whether its queue owns all that it would then hold. What is kept for whoever waits in that queue is there."""
    quota, need = trial.state.quota, need_milli(spec, size, option)

    def owns(flavor: str | None) -> bool:
        branch = quota.branch(spec.queue, flavor)
        kept = trial.held_quota.get((spec.queue, quota.row_of(spec.queue, flavor)), 0)
        return branch is not None and branch.used - kept + need <= branch.subtree

    return any(owns(flavor) for flavor in quota.flavors_for(spec.queue, flavor_of(spec, option)))


class Owners:
    """What owners have, as things stand."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._served: dict[str, dict[str, int]] | None = None  # by queue and row: what endpoints have, thousandths
        self._left: dict[tuple[str, str], int] = {}

    def allow(self, spec: Workload) -> bool:
        """Whether its queue owns all that a gang asks for with one of its options, beside what endpoints have of it."""
        return not self._trial.state.quota.enforced or any(self._own(spec, option) for option in options_of(spec))

    def keep_out(self, spec: Workload) -> bool:
        """Whether a gang asks for more than that, and owners use what it would borrow. It waits for as long as they do.
        Nothing is kept for it meanwhile: its own queue would be kept from what it owns, for ever."""
        if self.allow(spec):
            return False
        quota = self._trial.state.quota
        asked = [
            (flavor, need_milli(spec, spec.min_size, option))
            for option in options_of(spec)
            for flavor in quota.flavors_for(spec.queue, flavor_of(spec, option))
        ]
        for flavor, need in asked:
            row = quota.row_of(spec.queue, flavor)
            if (spec.queue, row) not in self._left:
                own = self._of_endpoints(spec.queue).get(row, 0)
                self._left[spec.queue, row] = quota.left_by_owners(spec.queue, flavor, own)
            if self._left[spec.queue, row] >= need:
                return False
        return True

    def _own(self, spec: Workload, option: int) -> bool:
        quota, need = self._trial.state.quota, need_milli(spec, spec.min_size, option)
        for flavor in quota.flavors_for(spec.queue, flavor_of(spec, option)):
            branch = quota.branch(spec.queue, flavor)
            served = self._of_endpoints(spec.queue).get(quota.row_of(spec.queue, flavor), 0)
            if branch is not None and need + served <= branch.subtree:
                return True
        return False

    def _of_endpoints(self, queue: str) -> dict[str, int]:
        if self._served is None:
            trial, gangs = self._trial, self._trial.state.gangs
            self._served = {}
            for each in map(gangs.__getitem__, trial.state.holding):
                if each.spec.kind == "serve":
                    served = self._served.setdefault(each.spec.queue, {})
                    for row, (_, milli) in need_by_row(trial, each.spec, trial.held(each)).items():
                        served[row] = served.get(row, 0) + milli
        return self._served.get(queue, {})


class KeptQuota:
    """`then`: quota at the planned start of the gang, without what it needs."""

    def __init__(self, queue: str, need: Need, then: QuotaTree) -> None:
        self.queue, self.need, self.then = queue, need, then
        self.inside_at: float | None = None  # when its queue has given back enough for it, and
        self.spare: dict[str, int] = {}  # how much more than that by row

    def keep_own(self, trial: Trial, ends: Iterator[tuple[float, GangState, bool]]) -> None:
        """`ends`: of those that hold something, soonest first."""
        quota = trial.state.quota
        for row, (flavor, milli) in self.need.items():
            branch = quota.branch(self.queue, flavor)
            if branch is None or milli > branch.subtree:
                return
            kept = trial.held_quota.get((self.queue, row), 0)
            self.spare[row] = branch.subtree - (branch.used - kept) - milli
        self.inside_at = trial.now
        while min(self.spare.values(), default=0) < 0:
            ended = next(ends, None)
            if ended is None:
                self.inside_at = None
                return
            if ended[1].spec.queue != self.queue:
                continue
            self.inside_at = ended[0]
            for row, (_, milli) in need_by_row(trial, ended[1].spec, trial.held(ended[1])).items():
                if row in self.spare:
                    self.spare[row] += milli

    def facts(self) -> tuple[object, ...]:
        return (self.inside_at, *self.spare.items())

    def is_left_by(self, trial: Trial, spec: Workload, placement: Placement, ends_at: float, start: float) -> bool:
        """Whether it is, when such a gang holds `placement` until `ends_at`; `start`: the planned one."""
        need = need_by_row(trial, spec, placement)
        own = self.spare if self._is_too_late(spec, ends_at) else {}
        if any(milli > own[row] for row, (_, milli) in need.items() if milli and row in own):
            return False
        if ends_at <= start:
            return True
        for row, (flavor, milli) in need.items():
            if milli and row in self.need:
                of_mine, mine = self.need[row]
                self.then.charge(spec.queue, flavor, milli)
                left = self.then.available(self.queue, of_mine)
                self.then.release(spec.queue, flavor, milli)
                if left < mine:
                    return False
        return True

    def take(self, trial: Trial, spec: Workload, placement: Placement, ends_at: float, start: float) -> None:
        """Somebody begins beside it."""
        for row, (flavor, milli) in need_by_row(trial, spec, placement).items():
            if row not in self.need:
                continue
            if ends_at > start:
                self.then.charge(spec.queue, flavor, milli)
            if self._is_too_late(spec, ends_at):
                self.spare[row] -= milli

    def _is_too_late(self, spec: Workload, ends_at: float) -> bool:
        """Whether it is of the same queue and still there when that must have given back enough."""
        return spec.queue == self.queue and self.inside_at is not None and ends_at > self.inside_at
