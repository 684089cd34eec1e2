"""Who has waited long is held for: a planned start for the oldest of each accelerator, before anybody is looked at.

A hold is made where its gang could begin, and whom it binds delays it by nothing (backfill.py). One whose gang should
have begun by now is overdue: it was moved to and fro, or waits for work that outlives what was presumed. Then the next
gang is held for as well; and where later work alone keeps the first one out, that work's nodes are kept for it.

A hold is for who does not fit when its turn comes, as smaller work streams past it. Who fits wherever anybody ends, of
whatever size it is (each_end.py), is outranked by the order and nothing else. Held for after the same time, where all
wait for longer than that, all would begin as they came, whatever the order says. So its patience grows with its own run
time, where that is known. As soon as somebody holds less than it needs it is held for after the same time as all else.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from math import inf
from operator import itemgetter

from llmsched.core.amounts import options_of
from llmsched.core.each_end import EachEnd
from llmsched.core.kept_quota import Owners
from llmsched.core.lane import PART
from llmsched.core.planned import Promise, earliest, timeline_for
from llmsched.core.possible import able_options
from llmsched.core.records import GangState
from llmsched.core.run_times import longest_s, runtime_s
from llmsched.core.scheduling_pass import Pass, There
from llmsched.core.shapes import Shape
from llmsched.core.stages import place
from llmsched.core.stages.backfill import Calendar, could_start, right
from llmsched.core.state import State
from llmsched.core.trial import Without

HOLDS_TRIED = 16  # planned for on each accelerator, and for each queue that lacks quota, until one may be kept
OVERDUE_PLACES = 8  # that are kept for who is overdue


def run(this: Pass, calendar: Calendar) -> None:
    """Plan the start of those that have waited too long."""
    state, plan = this.state, this.plan
    patience = state.configuration.scheduling.hold_after_s
    if not patience:
        return
    kept: dict[tuple[bool, str | None], None] = {}
    looked, tried = Counter[object](), Counter[object]()
    owners, each_end = Owners(this.trial), EachEnd(state)
    for gang, shape in _owners_first(_patient(this, patience, each_end), owners):
        spec, flavors = gang.spec, shape.flavors
        alike = (spec.queue, *flavors)
        if looked[alike] >= HOLDS_TRIED or not _is_able(this, shape):
            continue
        is_short = place.lacks_quota(this.trial, spec, options_of(spec))
        if is_short and owners.keep_out(spec):
            continue
        looked[alike] += 1
        keys = [(is_short, key) for key in ([spec.queue] if is_short else flavors)]
        if all(key in kept or tried[key] >= HOLDS_TRIED for key in keys):
            continue
        tried.update(keys)
        promise = earliest(this, gang, spec.min_size, calendar.windows, calendar.promises)
        if promise is None:
            continue
        promise.hold, promise.is_inside = True, calendar.is_inside(gang, promise.placement)
        if promise.quota is not None:
            promise.quota.keep_own(this.trial, timeline_for(this.trial, gang.spec).all_ends())
        calendar.promises.append(promise)
        since = gang.queued_since + _patience(state, gang, patience, fits=each_end.has_room_for(shape))
        if plan.has_come(since + longest_s(state)):
            promise.overdue = _without_later(this, calendar, promise, since)
        else:
            kept.update(dict.fromkeys(keys))


def _owners_first(found: list[tuple[GangState, Shape]], owners: Owners) -> Iterator[tuple[GangState, Shape]]:
    """Those that ask for no more than their queue owns, and then the others, as an older one that borrows might be held
    for in vain."""
    allowed = {id(shape.kin): shape.sample for _, shape in found}  # of a kin all ask for the same GPUs
    allows = {kin: owners.allow(sample) for kin, sample in allowed.items()}
    for comes_first in (True, False):
        yield from (row for row in found if allows[id(row[1].kin)] is comes_first)


def _patient(this: Pass, patience: float, each_end: EachEnd) -> list[tuple[GangState, Shape]]:
    """The first of each class that has waited for so long, and the class: who has the better right first."""
    state, plan, begun = this.state, this.plan, this.trial.begun
    gangs, nominated = state.gangs, plan.nominations
    found, soonest = list[tuple[tuple[int, float, str], GangState, Shape]](), inf
    for since, serial in state.waiting.longest:
        if since + patience >= soonest:
            break  # of thousands the soonest alone is named
        shape = state.waiting.live[serial]
        rows = ((since, name) for since, name in shape.since if name not in begun)
        fits = since + patience <= plan.at and each_end.has_room_for(shape)
        for since, name in islice(rows, HOLDS_TRIED if fits else 1):
            until = since + _patience(state, gangs[name], patience, fits=fits)
            if until > plan.at:
                soonest = min(soonest, until)
            elif this.trial.nomination(gang := gangs[name]) is None and name not in nominated:
                found.append((right(gang), gang, shape))
                break
    plan.wake(soonest)
    found.sort(key=itemgetter(0))
    return [(gang, shape) for _, gang, shape in found]


def _patience(state: State, gang: GangState, least: float, *, fits: bool) -> float:
    """Seconds that it waits until it is held for."""
    if not fits or gang.work_left is None:
        return least
    return max(least, runtime_s(state, gang, gang.spec.min_size, fastest=True) / PART)


def _is_able(this: Pass, shape: Shape) -> bool:
    """Whether one of it could begin if everybody else ended, on the nodes that are open."""
    return bool(able_options(this.state, shape)) and place.eligible_by_any(this.trial, shape.sample) != 0


def _without_later(this: Pass, calendar: Calendar, promise: Promise, since: float) -> int:
    """Nodes on which its gang would begin now, with the same right to the quota, if nobody had been started since then,
    but for replicas."""
    trial, gang, looked, found = this.trial, promise.gang, 0, 0

    def make() -> tuple[Without, list[float]]:
        world, begun = Without(trial), list[tuple[float, GangState]]()
        for name in trial.state.holding:
            other = trial.state.gangs[name]
            if other.launched_at is not None and other.spec.kind != "serve" and trial.held(other):
                begun.append((-other.launched_at, other))
        begun.sort(key=lambda row: row[0])
        world.row = [(other, trial.held(other)) for _, other in begun]
        return world, [at for at, _ in begun]

    world, begun = trial.beside("the last to begin have gone", make)
    world.stand_at(bisect_right(begun, -since))
    there_and_then = There(this, world)
    for _ in range(OVERDUE_PLACES):
        there = could_start(there_and_then, gang, calendar, ~looked)
        if isinstance(there, place.Refused):
            break
        looked |= calendar.mask(there)
        if calendar.is_inside(gang, there, world) or not promise.is_inside:
            found |= calendar.mask(there)
    return found
