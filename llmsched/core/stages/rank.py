"""Who runs, by rank: once a quantum everybody, waiting and running, is ranked and the best that fit run.

Only with `preemption.within_queue: by_rank`. Between two rankings nobody is evicted; free GPUs are filled in rank
order. Inside its own quota a queue comes before those that would borrow. Queues compete with one another when they
have no quota or `reclaim` is `any`; otherwise each ranks its own. A running gang that was not among the best keeps its
GPUs all the same when, in the end, nobody better fits on them: nobody is evicted in vain.

Elastic gangs are not ranked: the elasticity policy has said what each should hold, and 0 means nothing for now.
"""

from __future__ import annotations

from typing import Any

from llmsched.core.decisions import Launch, Preempt
from llmsched.core.explain import Reason
from llmsched.core.lifecycle import Status
from llmsched.core.message import say, workload
from llmsched.core.plan import Plan
from llmsched.core.policy import Policies, View
from llmsched.core.records import GangState, amount_of
from llmsched.core.resources import MILLI
from llmsched.core.rules import rules_of
from llmsched.core.stages import place
from llmsched.core.stages.backfill import Calendar, place_within
from llmsched.core.stages.nominate import nominate
from llmsched.core.stages.shrink import resize, without
from llmsched.core.stages.size import choices
from llmsched.core.state import State
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement

REASON = "in_queue_rank"

Row = tuple[tuple[Any, ...], GangState]


def is_on(state: State) -> bool:
    return state.configuration.scheduling.preemption.within_queue == "by_rank"


def run(trial: Trial, plan: Plan, policies: Policies, view: View, calendar: Calendar) -> dict[str, None]:
    """Returns the waiting gangs about which nothing is left to decide: launched, nominated, or to hold nothing now."""
    state = trial.state
    settled: dict[str, None] = {}
    if not is_on(state):
        return settled
    if plan.sizes:
        settled |= _share(trial, plan, policies, view, calendar)
    quantum = state.configuration.scheduling.quantum_s
    if not state.waiting.count:
        return settled
    if quantum > 0:
        number = int(view.now // quantum)
        plan.wake((number + 1) * quantum)
        if state.ranked_at and int(state.ranked_at // quantum) == number:
            return settled
    if not state.is_to_be_ranked():
        return settled
    for line in _lines(trial, _ranked(trial, plan, policies, view)):
        starters, victims = _pick(trial, line)
        if starters:
            settled |= _carry_out(trial, plan, starters, victims, policies, view, calendar)
    return settled


def _ranked(trial: Trial, plan: Plan, policies: Policies, view: View) -> list[Row]:
    """Every rigid gang that may run or be evicted, best first."""
    key = policies.ordering.key
    rows: list[Row] = []
    for gang in view.running():
        spec = gang.spec
        if spec.preemptible and gang.id not in plan.sizes and gang.id not in trial.leaving and not gang.lost_members:
            rows.append(((*key(gang, view), gang.submitted_at, gang.workload_id, gang.index), gang))
    for gang in view.waiting():
        if gang.nomination is None and gang.id not in plan.sizes:
            rows.append(((*key(gang, view), gang.submitted_at, gang.workload_id, gang.index), gang))
    rows.sort(key=lambda row: row[0])
    return rows


def _lines(trial: Trial, rows: list[Row]) -> list[list[Row]]:
    """Those who compete with one another: all, or each queue by itself."""
    state = trial.state
    if not state.quota.enforced:
        return [rows]
    lines: dict[str, list[Row]] = {}
    line_of: dict[str, str] = {}
    for row in rows:
        queue = row[1].spec.queue
        if queue not in line_of:
            line_of[queue] = "" if rules_of(state, queue).reclaim == "any" else queue
        lines.setdefault(line_of[queue], []).append(row)
    return list(lines.values())


def _pick(trial: Trial, line: list[Row]) -> tuple[list[GangState], list[GangState]]:
    """By counting GPUs and quota only: who of the waiting should start, and who of the running is not among the best.

    First those inside their queue's own quota, then those that borrow, each in order of rank.
    """
    state = trial.state
    capacity, quota = state.capacity, state.quota
    room = {flavor: capacity.free_gpus(mask & capacity.open) * MILLI for flavor, mask in capacity.by_flavor.items()}
    rows: list[tuple[GangState, str, str | None, int]] = []
    held: dict[tuple[str, str | None], int] = {}
    for _, gang in line:
        if gang.held:
            node = state.nodes.get(gang.held[0].node)
            flavor, need = (node.node.flavor if node else None), gang.gpus_milli()
            room[flavor] = room.get(flavor, 0) + need
            held[gang.spec.queue, flavor] = held.get((gang.spec.queue, flavor), 0) + need
        else:
            flavor, need = gang.spec.groups[0].options[0].flavor, place.need_milli(gang.spec, gang.spec.min_size, 0)
            if flavor is None and len(room) == 1:
                flavor = next(iter(room))
        rows.append((gang, gang.spec.queue, flavor, need))
    picked: dict[int, None] = {}
    total = sum(room.values())
    if quota.enforced:
        own: dict[tuple[str, str | None], int] = {}
        charged: dict[tuple[str, str | None], int] = {}
        for (queue, flavor), amount in held.items():
            quota.release(queue, flavor, amount)
        for index, (_, queue, flavor, need) in enumerate(rows):
            key = (queue, flavor)
            left = own.get(key)
            if left is None:
                branch = quota.branch(queue, flavor)
                left = own[key] = max(0, min(branch.subtree - branch.used, branch.available())) if branch else 0
            if need <= left and need <= (room.get(flavor, 0) if flavor is not None else total):
                own[key] -= need
                charged[key] = charged.get(key, 0) + need
                picked[index] = None
                total -= need
                if flavor is not None:
                    room[flavor] -= need
        for (queue, flavor), amount in charged.items():
            quota.charge(queue, flavor, amount)
    for index, (_, queue, flavor, need) in enumerate(rows):
        if total <= 0:
            break
        if index in picked or need > (room.get(flavor, 0) if flavor is not None else total):
            continue
        if quota.enforced:
            if need > quota.available(queue, flavor):
                continue
            quota.charge(queue, flavor, need)
            charged[queue, flavor] = charged.get((queue, flavor), 0) + need
        picked[index] = None
        total -= need
        if flavor is not None:
            room[flavor] -= need
    if quota.enforced:
        for (queue, flavor), amount in charged.items():
            quota.release(queue, flavor, amount)
        for (queue, flavor), amount in held.items():
            quota.charge(queue, flavor, amount)
    starters = [gang for index, (gang, *_) in enumerate(rows) if index in picked and not gang.held]
    victims = [gang for index, (gang, *_) in enumerate(rows) if index not in picked and gang.held]
    return starters, victims


def _share(trial: Trial, plan: Plan, policies: Policies, view: View, calendar: Calendar) -> dict[str, None]:
    """Bring elastic gangs to their shares: who should hold less gives back what others should hold more of."""
    state = trial.state
    quantum = state.configuration.scheduling.quantum_s
    free = state.capacity.free_gpus(state.capacity.open)
    starters: list[GangState] = []
    resting: dict[str, None] = {}
    givers: list[tuple[int, float, str, GangState]] = []
    wanted = 0.0
    for name, target in plan.sizes.items():
        gang = state.gangs[name]
        per_bundle = view.gpus_per_bundle(gang)
        if gang.status is Status.QUEUED:
            if not target:
                resting[name] = None
                gang.own_reason = Reason("order", say("order.outranked"))
            elif gang.nomination is None:
                starters.append(gang)
                wanted += target * per_bundle
        elif gang.status is Status.RUNNING and name not in trial.leaving and not gang.lost_members:
            if target > gang.size:
                wanted += (target - gang.size) * per_bundle
            elif target < gang.size and (target or gang.spec.preemptible):
                rested = view.held_for_s(gang)
                if rested >= quantum:
                    givers.append((target > 0, -(gang.size - target) * per_bundle, name, gang))
                else:
                    plan.wake(view.now - rested + quantum)
    missing = wanted - free
    victims: list[GangState] = []
    givers.sort(key=lambda row: row[:3])
    for shrinks, _, name, gang in givers if missing > 0 else ():
        if shrinks:
            resize(
                trial,
                plan,
                gang,
                without(gang, plan.sizes[name], None),
                "resize",
                say("resize.beyond_share"),
            )
        else:
            victims.append(gang)
    if starters or victims:
        resting |= _carry_out(trial, plan, starters, victims, policies, view, calendar, spare=False)
    return resting


def _carry_out(
    trial: Trial,
    plan: Plan,
    starters: list[GangState],
    victims: list[GangState],
    policies: Policies,
    view: View,
    calendar: Calendar,
    spare: bool = True,
) -> dict[str, None]:
    """Find nodes for the starters on what is free and what victims leave; spare victims that turn out not to matter."""
    state = trial.state
    mark = trial.mark()
    for gang in victims:
        trial.hold(gang, ())
    for name, placement in trial.shrinking.items():
        trial.hold(state.gangs[name], placement)
    for name in state.vacating:
        trial.hold(state.gangs[name], ())
    found: list[tuple[GangState, Placement]] = []
    refused: set[int] = set()  # shapes that did not fit: their like will not either
    for gang in starters:
        shape = gang.shape.serial if gang.shape is not None else -1
        if shape in refused:
            continue
        for bundles, option in choices(plan, gang):
            fitting = place_within(trial, gang, bundles, policies.placement, view, calendar, option)
            if not isinstance(fitting, place.Refused):
                trial.hold(gang, fitting)
                found.append((gang, fitting))
                break
        else:
            refused.add(shape)
    leaving: list[GangState] = []
    for gang in victims:  # best first
        if spare and _fits(trial, gang, gang.held):
            trial.hold(gang, gang.held)
        else:
            leaving.append(gang)
    trial.rollback(mark)
    on_node: dict[str, str] = {}
    for gang, placement in found:
        for placed in placement:
            on_node.setdefault(placed.node, gang.id)
    for gang in leaving:
        beneficiary = next((on_node[p.node] for p in gang.held if p.node in on_node), found[0][0].id if found else "")
        why = say("preempt.in_queue_rank")
        if beneficiary:
            why = say("taken.in_queue_priority", who=workload(beneficiary.rpartition("/")[0]))
        plan.decisions.append(Preempt(gang.id, gang.attempt, gang.spec.grace_s, REASON, beneficiary, why))
        trial.leaving[gang.id] = None
    names = [*(gang.id for gang in leaving), *trial.shrinking, *state.vacating]
    for gang, placement in found:
        if _fits(trial, gang, placement):
            trial.hold(gang, placement)
            plan.decisions.append(Launch(gang.id, gang.attempt + 1, placement, say("launch.ranked")))
        else:
            nominate(trial, plan, gang, placement, names)
            waits = plan.nominations[gang.id].why or say("victims_leaving.unnamed")
            gang.own_reason = Reason("victims_leaving", waits, (("victims", len(leaving)),))
    return dict.fromkeys(gang.id for gang, _ in found)


def _fits(trial: Trial, gang: GangState, placement: Placement) -> bool:
    """Whether exactly this placement is free now, on nodes and in quota."""
    capacity, quota = trial.state.capacity, trial.state.quota
    counts: dict[tuple[str, str, int], int] = {}
    for placed in placement:
        key = (placed.node, placed.group, placed.option)
        counts[key] = counts.get(key, 0) + 1
    need: dict[str | None, int] = {}
    first = {(placed.node, placed.group, placed.option): placed for placed in placement}
    for key, count in counts.items():
        node = capacity.by_id.get(key[0])
        amount = amount_of(gang.spec, first[key])
        if node is None or node.draining or node.room(amount, count) < count:
            return False
        need[node.node.flavor] = need.get(node.node.flavor, 0) + amount.gpus_milli * count
    return not quota.enforced or all(
        amount <= quota.available(gang.spec.queue, flavor) for flavor, amount in need.items()
    )
