"""Whom this pass has told to start, or promised places, gives way to somebody asked later who may evict it.

It would be evicted as soon as it had begun. So it does not begin; and whoever was told to make room for it stays, as
far as nobody else needs the room. A pair exchanges a place once in a pass.
"""

from __future__ import annotations

from dataclasses import replace

from llmsched.core.decisions import Launch, Preempt, Resize
from llmsched.core.exact_fit import fits, may_be_free
from llmsched.core.message import Message, say, workload
from llmsched.core.records import GangState
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages import evict
from llmsched.core.stages.nominate import withdraw, without
from llmsched.core.workload import Placement

Told = Preempt | Resize


def run(this: Pass, gang: GangState, placement: Placement, outranked: list[GangState]) -> None:
    """`gang` goes to `placement`, for which these do not begin. That it goes there is for the caller to decide."""
    for other in outranked:
        _take_back(this, other, gang)
    promised = ((each, this.trial.nomination(each)) for each in map(this.state.gangs.__getitem__, this.state.nominated))
    if any(one is not None and may_be_free(this.trial, each.spec, one.placement) for each, one in promised):
        this.plan.asks_again = True  # its places may be free by that, and this brings no news
    later = this.later().trial
    made_room = _who_made_room(this, outranked)
    mark = later.mark()
    later.hold(gang, placement)
    spared: dict[str, None] = {}
    for told in reversed(made_room):
        victim = this.state.gangs[told.gang]
        left = later.held(victim)
        later.hold(victim, ())
        whole = victim.placement or victim.held  # the first, where it was told before to become smaller
        stays = fits(later, victim.spec, whole)
        later.hold(victim, whole if stays else left)
        if stays:
            spared[victim.id] = None
    later.rollback(mark)
    for name in spared:
        this.trial.stay(this.state.gangs[name])
    _say_so(this, made_room, spared, gang)


def _take_back(this: Pass, other: GangState, gang: GangState) -> None:
    trial, plan = this.trial, this.plan
    this.exchanged[gang.id, other.id] = None
    decided = plan.decisions
    if other.id in trial.promised:
        trial.break_promise(other)
        decided.remove(plan.nominations.pop(other.id))
        this.tell_alone(other, None)
        return
    del trial.begun[other.id]
    trial.hold(other, ())
    at = next(at for at, each in enumerate(decided) if isinstance(each, Launch) and each.gang == other.id)
    del decided[at]
    withdraw(this, other, say("withdraw.outranked", who=workload(gang.workload_id)), at)


def _who_made_room(this: Pass, outranked: list[GangState]) -> list[Told]:
    names = {other.id: None for other in outranked}
    told = (each for each in this.plan.decisions if isinstance(each, (Preempt, Resize)))
    return [each for each in told if each.beneficiary in names]


def _for(why: Message | None, gang: GangState) -> Message | None:
    if why is None:
        return None
    args = (("who", workload(gang.workload_id)) if name == "who" else (name, value) for name, value in why.args)
    return Message(why.code, tuple(args))


def _say_so(this: Pass, made_room: list[Told], spared: dict[str, None], gang: GangState) -> None:
    """Those who stay are told nothing, and nobody waits for them; the others make room for the gang now."""
    plan = this.plan
    for told in made_room:
        at = plan.decisions.index(told)
        if told.gang in spared:
            del plan.decisions[at]
        elif isinstance(told, Preempt):
            evict.instead(this, told, gang, _for(told.why, gang))
        else:
            plan.decisions[at] = replace(told, why=_for(told.why, gang), beneficiary=gang.id)
    for name, promise in [*plan.nominations.items()]:
        if any(victim in spared for victim in promise.victims):
            without(this, name, spared)
