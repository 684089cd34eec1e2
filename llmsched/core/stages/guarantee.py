"""Idle quota is lent only if it can be reclaimed; otherwise it is kept for the owner who waits for it."""

from __future__ import annotations

from llmsched.core.amounts import flavor_of, need_milli, options_of
from llmsched.core.possible import able_options
from llmsched.core.records import GangState
from llmsched.core.rules import rules_of
from llmsched.core.scheduling_pass import Pass
from llmsched.core.shapes import Shape
from llmsched.core.workload import Workload


def is_kept(this: Pass) -> bool:
    """Whether any queue's is."""
    quota = this.state.quota
    if not quota.enforced or this.shares is not None or len(quota.queues) < 2:
        return False
    return any(rules_of(this.state, name).reclaim != "any" for name in quota.queues)


def has_idle(this: Pass, spec: Workload) -> bool:
    """Whether there is any of its queue, of what it asks for, that could be kept for one that waits."""
    quota = this.state.quota
    asked = (flavor_of(spec, option) for option in options_of(spec))
    branches = (quota.branch(spec.queue, each) for flavor in asked for each in quota.flavors_for(spec.queue, flavor))
    return any(branch is not None and branch.used < branch.subtree for branch in branches)


def keep(this: Pass, gang: GangState, shape: Shape) -> bool:
    """For a gang that waits, if it could ever start with it. Returns whether there was any to keep."""
    state, spec = this.state, gang.spec
    if not is_kept(this) or rules_of(state, spec.queue).reclaim == "any":
        return False
    for option in able_options(state, shape):
        for flavor in state.quota.flavors_for(spec.queue, flavor_of(spec, option)):
            branch = state.quota.branch(spec.queue, flavor)
            if branch is None:
                continue
            idle = min(branch.subtree - branch.used, need_milli(spec, spec.min_size, option))
            if idle > 0:
                this.trial.hold_quota(spec.queue, flavor, idle)
                return True
    return False
