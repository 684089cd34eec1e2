"""What each elastic gang, waiting or running, should hold: the elasticity policy's share, kept inside the rules."""

from __future__ import annotations

from llmsched.core.plan import Plan
from llmsched.core.policy import Elasticity, View
from llmsched.core.records import GangState, allowed_sizes
from llmsched.core.trial import Trial

GANGS_SHARED = 4096  # elastic gangs one pass asks the policy about


def run(trial: Trial, plan: Plan, policy: Elasticity, view: View) -> None:
    state = trial.state
    waiting = [
        state.gangs[name]
        for shape in state.waiting.shapes.values()
        if shape.sample.is_elastic()
        for _, name in shape.entries
    ]
    running = [gang for name in state.elastic if (gang := state.gangs[name]).is_active()]
    gangs = sorted(running + waiting, key=lambda g: (g.submitted_at, g.workload_id))[:GANGS_SHARED]
    if not gangs or not state.configuration.scheduling.elastic:
        return
    held = sum(gang.gpus_milli() for gang in running) // 1000
    capacity = state.capacity.free_gpus(state.capacity.open) + held
    for name, size in policy.share(gangs, capacity, view).items():
        plan.sizes[name] = nearest(state.gangs[name], size)
    if policy.period_s:
        plan.wake(plan.at + policy.period_s)


def nearest(gang: GangState, size: int) -> int:
    """The largest size the gang may have that is not above `size`; a user's wish wins."""
    if gang.wanted_size is not None:
        size = gang.wanted_size
    sizes = allowed_sizes(gang.spec)
    return max((allowed for allowed in sizes if allowed <= size), default=sizes[0])


def candidates(plan: Plan, gang: GangState) -> list[int]:
    """Sizes to try for a waiting gang, from what it should hold down to its minimum."""
    spec = gang.spec
    if not spec.is_elastic():
        return [spec.min_size]
    target = nearest(gang, plan.sizes.get(gang.id, spec.max_size))
    return [size for size in reversed(allowed_sizes(spec)) if size <= target] or [spec.min_size]
