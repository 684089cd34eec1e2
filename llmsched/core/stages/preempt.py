"""Who must leave so that a waiting gang fits: of the sets that the rules (core/rules.py) allow, the least loss.

No queue is left with less than its own quota where another set would do, nor one evicted that would rather not be;
then priority counts, then what is lost. Victims are taken cheapest first until the gang fits *on nodes* and in quota,
then spared again, dearest first, as far as it still fits; one victim instead of several is taken if it loses no more,
and so is any other set of a few that loses less. Flavors are tried in the order in which the gang has them.
Of equals in priority, where the rules let them evict one another, the newest goes: it can evict nobody in turn. Nobody
is evicted unless the gang then really fits, nor for somebody whom it could evict when it is back. Nodes that could hold
the whole gang are tried one by one as well, so that victims are not picked all over the cluster. Shrinking (shrink.py)
comes before this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmsched.core.amounts import least_milli, need_milli, options_of
from llmsched.core.decisions import Preempt
from llmsched.core.message import say, workload
from llmsched.core.records import GangState, amount_of
from llmsched.core.resources import MILLI
from llmsched.core.rules import IN_QUEUE, Rules, is_on, rights_of
from llmsched.core.scheduling_pass import Later, Pass
from llmsched.core.stages import evict, outrank, place, shrink, victims
from llmsched.core.stages.choice import Choice
from llmsched.core.stages.lesser import Ask, Giver, give_back, room
from llmsched.core.stages.nominate import nominate
from llmsched.core.stages.victims import Row
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement

PLACES_LOOKED_FOR = 256  # per gang and scope, as one victim after the other has let go of enough by number
SET_OF_AT_MOST = 16  # victims among which a better set is sought,
SETS_TRIED = 64  # how many sets of them are tried on nodes,
STEPS = 1024  # and how many are looked at in all, where none is tried
SCOPES_TRIED = 8  # single nodes or domains looked at beside the whole cluster


def run(
    this: Pass,
    gang: GangState,
    only: int,
    may: Callable[[Placement, shrink.Goes], bool],
    is_free: Callable[[Placement], bool],
) -> Placement | bool:
    """Nominate the gang on what leaves already, or on what the smallest set of victims leaves; False if it cannot. When
    it is enough that others do not start whom this pass would have started, the places are free: they are returned.
    `may`: whether the gang may go there when those let go; `is_free`: whether it may start there now."""
    trial, plan, state = this.trial, this.plan, this.state
    later = this.later()
    choice = _on_what_leaves(later, gang, only)
    smaller: dict[str, Placement] = {}
    if choice is None:
        if not is_on(state):
            return False
        delay = state.configuration.scheduling.preemption_delay_s
        if not plan.has_come(gang.queued_since + delay, say("eta.delay")):
            return False
        least = least_milli(gang.spec, gang.spec.min_size)
        if not rights_of(later, gang.spec.queue).may_take(gang.spec.priority, least):
            return False
        if not victims.are_enough(later, gang, Rules(later, gang)):
            return False
        choice, smaller = _searched(this, later, gang, only)
    if choice is None:
        return False
    goes: shrink.Goes = [(victim, trial.places(victim)) for victim in choice.victims]
    for name, kept in smaller.items():
        goes.append((state.gangs[name], shrink.given(this, state.gangs[name], kept)))
    if not may(choice.placement, goes):
        return False
    return _carry_out(this, gang, choice, smaller, is_free)


def _searched(this: Pass, later: Later, gang: GangState, only: int) -> tuple[Choice | None, dict[str, Placement]]:
    """The victims, and what those keep who become smaller beside them."""
    mark, smaller = later.trial.mark(), dict[str, Placement]()
    search = Search(later, gang, only)
    search.offered = shrink.offer(this, later.trial, gang, search.rules)
    choice = search.choose()
    if choice is not None and search.offered:
        smaller = search.take_up(choice)
    later.trial.rollback(mark)
    return choice, smaller


def somebody_leaves(this: Pass) -> bool:
    """Whether somebody does for nobody's sake, not its own either: cancelled, say, or on a node that is to be empty."""
    told = [one for one in this.plan.decisions if isinstance(one, Preempt)]
    for_others = dict.fromkeys(one.gang for one in told if one.beneficiary or one.reason == evict.FASTER)
    if any(name not in for_others for name in this.trial.leaving):
        return True
    vacating = (this.state.gangs[name] for name in this.state.vacating)
    return any(not gang.beneficiary and gang.vacate_reason != evict.FASTER for gang in vacating)


def await_those_who_leave(
    this: Pass, gang: GangState, only: int, is_free: Callable[[Placement], bool]
) -> Placement | bool:
    """Nominate the gang on what leaves already, if that is enough; places that are free are returned."""
    choice = _on_what_leaves(this.later(), gang, only)
    return choice is not None and _carry_out(this, gang, choice, {}, is_free)


def _on_what_leaves(later: Later, gang: GangState, only: int) -> Choice | None:
    """Perhaps those who go anyway are enough."""
    found = place.find(later, gang, gang.spec.min_size, only, explain=False) if later.trial.gone else place.NO_ROOM
    return None if isinstance(found, place.Refused) else Choice(found, [], {})


def _carry_out(
    this: Pass,
    gang: GangState,
    choice: Choice,
    smaller: dict[str, Placement],
    is_free: Callable[[Placement], bool],
) -> Placement | bool:
    trial = this.trial
    for name, placement in smaller.items():
        shrink.give(this, this.state.gangs[name], placement, gang)
    new = [victim for victim in choice.victims if trial.is_new(victim)]
    for victim in choice.victims:
        if victim in new:
            continue
        code = choice.why[victim.id]
        why = say(f"taken.{code}", who=workload(gang.workload_id))
        evict.evict(this, victim, code, why, gang)
    if new:
        outrank.run(this, gang, choice.placement, new)
    going = [*smaller, *(victim.id for victim in choice.victims if victim.id in trial.leaving)]
    if not going and is_free(choice.placement):
        return choice.placement
    told = (*this.later().trial.gone_from(choice.placement), *trial.shrinking)
    others = dict.fromkeys(name for name in told if name not in going)
    nominate(this, gang, choice.placement, [*going, *others])
    return True


class Search:
    """For victims of one gang, in the world after those who leave anyway have gone. It may go to nodes of `only`."""

    def __init__(self, later: Later, gang: GangState, only: int) -> None:
        self.later, self.trial, self.state = later, later.trial, later.state
        self.gang, self.only = gang, only
        self.rules = Rules(later, gang)
        self.cost_of: dict[str, int] = {}
        self.offered: dict[str, Giver] = {}  # who becomes smaller beside the victims, and holds what it keeps at first
        self.need = 0  # thousandths of GPUs, with the option in hand

    def choose(self) -> Choice | None:
        """The best choice over options, strategies and scopes."""
        gang, rules = self.gang, self.rules
        eligible, self.cost_of = victims.eligible(self.later, gang, rules)
        if not eligible:
            return None
        for option in options_of(gang.spec):
            rules.option = option
            mask = place.eligible_by_any(self.trial, gang.spec, option) & self.only
            self.need = need_milli(gang.spec, gang.spec.min_size, option)
            for _ in rules.each_strategy():
                choice = self._with_option(mask, eligible)
                if choice is not None:
                    return choice
        return None

    def _with_option(self, mask: int, eligible: list[Row]) -> Choice | None:
        rules = self.rules
        kinds = victims.allowed(eligible, rules)
        allowed = [row for rows in kinds for row in rows]
        own = sum(rules.gpus_of(victim) for victim, _ in kinds[-1])
        if rules.strategy == "inside" and not rules.can_hold(own):
            return None
        missing = short = self._whole() - self._at_most(mask)
        for victim, _ in allowed:
            if short <= 0:
                break
            short -= rules.gpus_of(victim)
        if not allowed or short > 0:
            return None
        best = self._in_best_scope(mask, kinds, allowed, missing)
        if best is None or best.loses_nothing(rules, self.cost_of, allowed, missing):
            return best
        return self._with_less_loss(best, mask, kinds)

    def _with_less_loss(self, best: Choice, mask: int, kinds: list[list[Row]]) -> Choice:
        """A better set than the one that taking and sparing by turns has led to, if a bounded search finds one. It goes
        through sets in which the cheapest come first and leaves out what cannot be better. Not where shares say from
        whom to take, nor across kinds of victims, between which rank does not decide."""
        rules, trial = self.rules, self.trial
        found = [rows for rows in kinds if rows]
        if rules.shares is not None or len(found) != 1:
            return best
        nodes = self.state.nodes
        rows = [
            row
            for row in found[0]
            if any(mask >> nodes[p.node].slot & 1 for p in trial.places(row[0]) if p.node in nodes)
        ]
        rows = rows[:SET_OF_AT_MOST]
        own = found[0] is kinds[-1]
        missing = self._whole() - self._at_most(mask)
        gives = [rules.gpus_of(victim) for victim, _ in rows]
        after = [sum(gives[at:]) for at in range(len(rows) + 1)]  # what all from there on could give
        steps, before = STEPS, dict[str, Placement]()

        def is_better(choice: Choice) -> bool:
            cost = self.cost_of
            if choice.rank(rules, cost) >= best.rank(rules, cost):
                return False
            # of those that lose about the same the queue counts that has most beyond its own: _by_excess
            return own or choice.is_much_better(best, rules, cost)

        def go_on(first: int, chosen: list[Row], freed: int) -> None:
            nonlocal best, steps
            steps -= 1
            gone = [victim for victim, _ in chosen]
            choice = Choice((), gone, {victim.id: code for victim, code in chosen}, rules.shortfall_of(gone))
            if chosen and not is_better(choice):
                return
            if chosen and freed >= missing and rules.holds():
                steps -= STEPS // SETS_TRIED
                placement = self._find(mask)
                if placement is not None:
                    mark = trial.mark()
                    choice.placement = self._spare(gone, before, mask, placement)
                    choice.shortfall = rules.shortfall_of(gone)
                    is_for_good = not self._would_take_back(gone, choice.why, choice.placement)
                    trial.rollback(mark)
                    if is_for_good:
                        best = choice
                        return
            for at in range(first, len(rows)):
                if steps <= 0 or freed + after[at] < missing:
                    return
                victim, code = rows[at]
                code_now = rules.now(victim, code)
                if not code_now:
                    continue
                mark = trial.mark()
                before[victim.id] = trial.held(victim)
                trial.hold(victim, ())
                go_on(at + 1, [*chosen, (victim, code_now)], freed + gives[at])
                trial.rollback(mark)

        go_on(0, [], 0)
        return best

    def take_up(self, choice: Choice) -> dict[str, Placement]:
        """What those keep who offered to become smaller and must, beside the victims; the others keep what they
        hold."""
        gang, trial = self.gang, self.trial
        for victim in choice.victims:
            self.offered.pop(victim.id, None)
            trial.hold(victim, ())
        asked = [*self.offered.values()]
        choice.placement = room(trial, gang, asked, self._ask(-1)) or choice.placement
        for giver in reversed(asked):
            choice.placement = give_back(trial, gang, giver, self._ask(-1)) or choice.placement
        return {one.gang.id: left for one in asked if (left := trial.held(one.gang)) != one.standing}

    def _whole(self) -> int:
        """Whole GPUs of what it needs, in thousandths."""
        return self.need - self.need % MILLI

    def _in_best_scope(self, mask: int, kinds: list[list[Row]], allowed: list[Row], missing: int) -> Choice | None:
        """`missing`: thousandths of GPUs that victims have to let go of at least."""
        best: Choice | None = None
        for scope in _scopes(self.trial, self.gang, self.rules.option, self.need, mask, allowed, self._offered()):
            narrow = scope != mask
            choice = self._in_scope(scope, narrow, kinds)
            if choice is None:
                continue
            if best is None or choice.rank(self.rules, self.cost_of) < best.rank(self.rules, self.cost_of):
                best = choice
                if best.loses_nothing(self.rules, self.cost_of, allowed, missing):
                    break
        return best

    def _ask(self, scope: int) -> Ask:
        def ask(nodes: int) -> Placement | place.Refused:
            gang, only = self.gang, self.only & nodes
            return place.find(self.later, gang, gang.spec.min_size, only, explain=False, scope=scope)

        return ask

    def _find(self, scope: int) -> Placement | None:
        """Where it would be, beside what those keep who offered to become smaller."""
        trial, mark = self.trial, self.trial.mark()
        found = room(trial, self.gang, self._offered(), self._ask(scope))
        trial.rollback(mark)
        return found

    def _offered(self) -> list[Giver]:
        """Who has, that is no victim."""
        return [giver for giver in self.offered.values() if self.trial.held(giver.gang)]

    def _free_milli(self, scope: int) -> int:
        """Thousandths of whole GPUs that are free there, or are if those who offered to become smaller keep others."""
        free, nodes = self.state.capacity.free_gpus(scope) * MILLI, self.state.nodes
        for giver in self._offered():
            if giver.has_choice():
                spec, kept = giver.gang.spec, self.trial.held(giver.gang)
                inside = (placed for placed in kept if scope >> nodes[placed.node].slot & 1)
                free += sum(amount_of(spec, placed).gpus_milli for placed in inside)
        return free

    def _at_most(self, scope: int) -> int:
        """The same, and what is left of devices of which victims have parts: what these hold and that is what they let
        go of, at most."""
        return self._free_milli(scope) + self.state.capacity.parts_left(scope)

    def _in_scope(self, scope: int, narrow: bool, kinds: list[list[Row]]) -> Choice | None:
        """Cheapest first; where each may be taken at its moment only, smallest first, if that leads to nobody; then
        only those that are there, as one elsewhere may be the last that its queue has beyond its own."""
        found = self._taken_by_turns(scope, narrow, kinds)
        if found is None and self.rules.goes_by_turns():
            found = self._taken_by_turns(scope, narrow, victims.smallest_first(kinds, self.rules))
        if found is None and not narrow and self.state.quota.enforced:
            found = self._taken_by_turns(scope, True, kinds)
        return found

    def _taken_by_turns(self, scope: int, narrow: bool, kinds: list[list[Row]]) -> Choice | None:
        """One after the other until it fits inside `scope` (with `narrow`, only those who are there), then spare those
        who are not needed."""
        trial, rules, state = self.trial, self.rules, self.state
        nodes = state.nodes
        start = trial.mark()
        chosen: list[GangState] = []
        before: dict[str, Placement] = {}
        why: dict[str, str] = {}
        found: Placement | None = None
        looks = 0
        try:
            for victim, code in victims.in_turn(kinds, rules, self.cost_of):
                inside = any(scope >> nodes[p.node].slot & 1 for p in trial.places(victim) if p.node in nodes)
                if not inside and (narrow or not state.quota.enforced):
                    continue
                code_now = rules.now(victim, code)
                if not code_now:
                    continue
                before[victim.id] = trial.held(victim)
                trial.hold(victim, ())
                chosen.append(victim)
                why[victim.id] = code_now
                if self.need >= MILLI and self._free_milli(scope) < self._whole():
                    continue
                if not rules.holds():
                    continue
                found = self._find(scope)
                looks += 1
                if found is not None or looks >= PLACES_LOOKED_FOR:
                    break
            if found is None:
                return None
            found = self._spare(chosen, before, scope, found)
            choices = [Choice(found, chosen, why, rules.shortfall_of(chosen))]
            if self._would_take_back(chosen, why, found):
                choices = []
            if len(chosen) > 1:
                eligible = [row for rows in kinds for row in rows][:PLACES_LOOKED_FOR]
                choices += self._alone(start, scope, eligible)
            return min(choices, key=lambda one: one.rank(rules, self.cost_of), default=None)
        finally:
            trial.rollback(start)

    def _spare(self, chosen: list[GangState], before: dict[str, Placement], scope: int, found: Placement) -> Placement:
        """Walk back: whoever is not needed is none of the chosen any more, and holds what he did before. Where it then
        goes."""
        for victim in reversed(chosen[:-1]):
            self.trial.hold(victim, before[victim.id])
            placed = self._find(scope)
            if placed is None or not self.rules.holds():
                self.trial.hold(victim, ())
            else:
                found = placed
                chosen.remove(victim)
        return found

    def _alone(self, start: int, scope: int, eligible: list[Row]) -> Iterator[Choice]:
        """One victim, where one is enough."""
        trial, rules = self.trial, self.rules
        trial.rollback(start)
        free = self._at_most(scope)
        for victim, code in eligible:
            if rules.gpus_of(victim) + free < self._whole():
                continue
            code_now = rules.now(victim, code)
            if not code_now:
                continue
            trial.hold(victim, ())
            placed = self._find(scope)
            why, shortfall = {victim.id: code_now}, rules.shortfall_of([victim])
            fits = placed is not None and rules.holds() and not self._would_take_back([victim], why, placed)
            trial.rollback(start)
            if fits and placed is not None:
                yield Choice(placed, [victim], why, shortfall)

    def _would_take_back(self, gone: list[GangState], why: dict[str, str], placement: Placement) -> bool:
        """Whether one of those that have let go here could evict the gang in turn: it would come back in its place, and
        all of them would have left in vain. Each may be taken at its moment, the first of them before its queue has
        come down to what it then has; so that is asked once all have gone."""
        gang, trial = self.gang, self.trial
        asked: dict[tuple[str, int, int], None] = {}
        if not gang.spec.preemptible or all(why[victim.id] == IN_QUEUE for victim in gone):
            return False
        with trial.as_begun(gang, placement):
            for victim in gone:
                spec = victim.spec
                key = (spec.queue, spec.priority, least_milli(spec, spec.min_size))
                if why[victim.id] != IN_QUEUE and key not in asked and Rules(self.later, victim).may_evict(gang):
                    return True
                asked[key] = None
        return False


def _scopes(
    trial: Trial, gang: GangState, option: int, need: int, mask: int, allowed: list[Row], offered: list[Giver]
) -> list[int]:
    """Where to clear room: each required domain; else, when nodes are what is short, the single nodes that the cheapest
    victims clear first; then anywhere. `offered`: who may keep something on one node or another."""
    spec = gang.spec
    capacity = trial.state.capacity
    required = spec.topology.required
    if len(spec.groups) > 1 and required is None:
        return [mask]  # a scope is of the first group alone
    if required is not None and required != "node":
        return [part for members in capacity.domains(required).values() if (part := members & mask)]
    if mask & capacity.with_free(-(-need // MILLI)):
        return [mask]  # a node has room already: quota is what is short
    bundle = spec.groups[0].option(option).resources.gpus_milli
    largest = max((k for k, _ in enumerate(capacity.by_free)), default=0) * MILLI
    goal = need if need <= largest else bundle  # a gang too large for one node clears several, bundle by bundle
    nodes = trial.state.nodes
    gain: dict[str, int] = {}

    def at_most(name: str) -> int:
        """What comes free there beside what victims hold: the rest of a device of which they have parts, too."""
        node = nodes[name]
        return max(node.free_whole, 0) * MILLI + capacity.parts_left(1 << node.slot)

    for giver in offered:
        for placed in trial.held(giver.gang) if giver.has_choice() else ():
            gain[placed.node] = (
                gain.get(placed.node, at_most(placed.node)) + amount_of(giver.gang.spec, placed).gpus_milli
            )
    found: list[int] = []
    for victim, _ in allowed:
        held = trial.places(victim)
        for placed in dict.fromkeys(held):
            node = nodes[placed.node]
            if not mask >> node.slot & 1 or node.node.total.gpus_milli < goal or gain.get(placed.node, 0) >= goal:
                continue
            amount = amount_of(victim.spec, placed).gpus_milli
            there = held.count(placed) if placed.gpu_index < 0 else 1
            gain[placed.node] = gain.get(placed.node, at_most(placed.node)) + amount * there
            if gain[placed.node] >= goal:
                found.append(1 << node.slot)
        if goal == need and len(found) >= SCOPES_TRIED:
            break
    if goal == need:
        return [*found[:SCOPES_TRIED], mask]
    if bundle <= MILLI:
        return [mask]  # bundles of one GPU fit wherever one is free
    cleared, several = mask & capacity.with_free(bundle // MILLI), 0
    for one in found[: spec.min_size]:
        several |= one
    return [cleared | several, mask]
