"""Make room by making elastic gangs smaller, before anybody is evicted.

Whoever holds more than its present share gives the surplus to a waiting gang of its queue. Down to its minimum it goes
for somebody who might as well evict it, and where the surplus is enough by number and on no node. Who loses least by it
gives first, each by as little as possible: one that has not yet done as it was told gives again first, as it restarts
anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from llmsched.core.amounts import bundle_milli, least_milli
from llmsched.core.decisions import Resize
from llmsched.core.message import Message, say, workload
from llmsched.core.records import GangState, allowed_sizes, size_of
from llmsched.core.reserved import Row
from llmsched.core.rules import IN_QUEUE, Rules
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import place
from llmsched.core.stages.lesser import Giver, give_back, give_up, keeps, room_elsewhere
from llmsched.core.stages.nominate import nominate
from llmsched.core.status import Status
from llmsched.core.trade import resize_loss_s
from llmsched.core.trial import Trial
from llmsched.core.windows import kept
from llmsched.core.workload import Placement

GANGS_SHRUNK = 512  # considered for one waiting gang

Goes = list[tuple[GangState, Placement]]  # who lets go of what


def run(
    this: Pass, gang: GangState, only: int, rows: list[Row], sizes: list[int], may: Callable[[Placement, Goes], bool]
) -> bool:
    """Nominate the gang on what elastic gangs can give; False if that is not enough. `rows`: what is reserved for
    others. `may`: whether the gang may go there when those let go."""
    if not this.state.configuration.scheduling.elastic or not this.state.elastic:
        return False
    made = _made(this, gang, only, rows, sizes, _givers(this, gang, Rules(this, gang)))
    if made is None and gang.id in this.plan.beside_least:
        # the GPUs that are kept free for it are enough by number, and on no node
        made = _made(this, gang, only, rows, sizes, _givers(this, gang, Rules(this, gang), to_least=True))
    if made is None:
        return False
    found, chosen = made
    smaller = [(this.state.gangs[name], placement) for name, placement in chosen.items()]
    if not may(found, [(giver, given(this, giver, placement)) for giver, placement in smaller]):
        return False
    for giver, placement in smaller:
        give(this, giver, placement, gang)
    nominate(this, gang, found, [*chosen, *this.later().trial.gone_from(found)])
    return True


def _made(
    this: Pass, gang: GangState, only: int, rows: list[Row], sizes: list[int], givers: list[tuple[GangState, int, str]]
) -> tuple[Placement, dict[str, Placement]] | None:
    """Where the gang would be, and what those keep that become smaller for it."""
    if not givers:
        return None
    later = this.later()
    rules = Rules(later, gang)
    trial, mark = later.trial, later.trial.mark()
    asked: list[Giver] = []
    found: Placement | None = None

    def ask(nodes: int) -> Placement | place.Refused:
        with kept(trial, rows, in_use=True) as reserved:
            return place.find(later, gang, sizes[-1], only & nodes & ~reserved, explain=False)

    try:
        for giver, floor, code in givers:
            if code:
                floor = _allowed_floor(trial, giver, floor, rules, code)
            one = Giver(giver, floor, trial.standing(giver))
            if floor < size_of(giver.spec, one.standing):
                found = give_up(trial, gang, one, ask)
                asked.append(one)
            if found is not None:
                break
        more = asked[:-1]  # who may have given more than is needed
        if found is None and (free := [one for one in asked if one.has_choice()]):
            found, more = room_elsewhere(trial, gang, free, ask), asked
        if found is None:
            return None
        for one in reversed(more):
            found = give_back(trial, gang, one, ask) or found
        return found, {one.gang.id: left for one in asked if (left := trial.held(one.gang)) != one.standing}
    finally:
        trial.rollback(mark)


def offer(this: Pass, later: Trial, gang: GangState, rules: Rules) -> dict[str, Giver]:
    """Make every elastic gang that may be asked as small as the rules let it be, in `later`, and say how small: what
    is then still missing is for preempt.py to find."""
    state = this.state
    offered: dict[str, Giver] = {}
    if not state.configuration.scheduling.elastic or not state.elastic:
        return offered
    for giver, floor, code in _givers(this, gang, rules):
        if code:
            floor = _allowed_floor(later, giver, floor, rules, code)
        standing = later.standing(giver)
        if floor < size_of(giver.spec, standing):
            offered[giver.id] = Giver(giver, floor, standing)
            later.hold(giver, keeps(giver, floor, standing))
    return offered


def resize(this: Pass, gang: GangState, placement: Placement, why: Message, beneficiary: str = "") -> None:
    """Decide it. A gang holds old and new until it says Resized, so growth takes its places at once."""
    this.plan.decisions.append(Resize(gang.id, gang.attempt, placement, "resize", why, beneficiary))
    this.trial.shrink(gang, placement)


def given(this: Pass, giver: GangState, kept: Placement) -> Placement:
    """What it lets go when it becomes as small as that."""
    return tuple((Counter(this.trial.standing(giver)) - Counter(kept)).elements())


def give(this: Pass, giver: GangState, placement: Placement, receiver: GangState) -> None:
    """Decide that it becomes smaller for somebody, and say what that costs."""
    lost = _loss_s(this, giver)
    given = _given_milli(this, giver, placement)
    why = say("makes_room.gives", who=workload(receiver.workload_id), given=given, lost=lost)
    if not given:  # it has no GPUs, and gives of its CPUs
        why = say("makes_room", who=workload(receiver.workload_id))
    resize(this, giver, placement, why, receiver.id)


def _given_milli(this: Pass, gang: GangState, placement: Placement) -> int:
    return (len(this.trial.standing(gang)) - len(placement)) * bundle_milli(gang.spec, gang.option)


def _loss_s(this: Pass, gang: GangState) -> float:
    """GPU-seconds of its own work that a smaller size costs it: none where it restarts anyway."""
    if gang.id in this.trial.shrinking:
        return 0.0
    return resize_loss_s(gang, this.view.now, this.state.configuration.scheduling.restart_cost_s)


def _givers(this: Pass, gang: GangState, rules: Rules, to_least: bool = False) -> list[tuple[GangState, int, str]]:
    """(elastic gang, smallest size it may be brought to, by which rule it gives to another queue), cheapest first: low
    priority, then who loses least for each GPU that is of use."""
    trial, state, plan = this.trial, this.state, this.plan
    quantum = state.configuration.scheduling.quantum_s
    by_rank = state.configuration.scheduling.preemption.within_queue == "by_rank"
    need = least_milli(gang.spec, gang.spec.min_size)
    rows: list[tuple[tuple[object, ...], GangState, int, str]] = []
    for name in state.elastic:
        giver = state.gangs[name]
        if giver.status not in (Status.RUNNING, Status.RESIZING) or name in trial.leaving:
            continue
        if giver.lost_members or giver is gang:
            continue
        now = floor = size_of(giver.spec, trial.standing(giver))
        by = ""
        code = rules.group(giver.spec.queue, giver.spec.priority) if giver.spec.preemptible else ""
        if code and rules.could(giver, code) and (code == IN_QUEUE or rules.now(giver, code, _step(giver, now))):
            floor, by = giver.spec.min_size, "" if code == IN_QUEUE else code
        elif (giver.spec.queue == gang.spec.queue or not state.quota.enforced) and this.has_held(
            giver, quantum, say("eta.quantum")
        ):
            least = giver.wanted_size or giver.spec.min_size
            is_above = by_rank and giver.spec.priority > gang.spec.priority  # its share is what comes before the gang
            floor = min(now, least if to_least and not is_above else plan.sizes.get(name, now) or giver.spec.min_size)
        if giver.wanted_size is not None and giver.wanted_size < floor:  # its user has: what it lets go is anybody's
            floor, by = giver.wanted_size, ""
        if floor < now:
            gives = (now - floor) * bundle_milli(giver.spec, giver.option)
            loss = _loss_s(this, giver) / max(1, min(gives, need))
            key = (rules.is_reluctant(giver), giver.spec.priority, loss, -gives, giver.submitted_at, giver.id)
            rows.append((key, giver, floor, by))
    rows.sort(key=lambda row: row[0])
    return [(giver, floor, code) for _, giver, floor, code in rows[:GANGS_SHRUNK]]


def _step(giver: GangState, now: int) -> int:
    """Thousandths of GPUs that the first step down from size `now` releases."""
    smaller = max((size for size in allowed_sizes(giver.spec) if size < now), default=now)
    return (now - smaller) * bundle_milli(giver.spec, giver.option)


def _allowed_floor(trial: Trial, giver: GangState, floor: int, rules: Rules, code: str) -> int:
    """How far down the rules let a giver of another queue go: each step only while its queue has more than is its own,
    after those who gave before it, but for what its user has it let go."""
    bundle, standing = bundle_milli(giver.spec, giver.option), trial.standing(giver)
    mark = trial.mark()
    now = lowest = size_of(giver.spec, standing)
    for size in [s for s in reversed(allowed_sizes(giver.spec)) if floor <= s < now]:
        is_asked = giver.wanted_size is not None and size >= giver.wanted_size
        if not is_asked and not rules.now(giver, code, (lowest - size) * bundle):
            break
        trial.hold(giver, keeps(giver, size, standing))
        lowest = size
    trial.rollback(mark)
    return lowest
