"""Random worlds: a cluster, its queues and an hour of work, users and accidents, made from one number each.

    python tests/core/worlds.py 10000 [--first 0] [--jobs 2] [--show 17]

plays that many, in so many processes, and prints how long it took. After every pass these promises are checked:

    ledgers    the invariants of llmsched.core.invariants hold
    purity     deciding leaves the state as it was, and the journal folded again decides the same
    priority   nobody starts before somebody of its queue who asks for the same, and has the better right
    reasons    whoever waits knows why
    loops      between two changes from outside, and two turns of the clock, two gangs exchange a place once, for
               whatever reason; by rank once in all, unless one of them begins anew. Nobody leaves twice for a window,
               and once nothing happens any more nobody is resized again and again
    silence    between two moments that a plan has named, and without news, there is nothing to decide; of a plan that
               says that the clock alone may change its mind, at the same moment, and it names the next one
    vain       nobody was evicted for somebody who then has neither the place nor a promise of it, unless something has
               happened from outside meanwhile, or one with a better right begins there
    promises   whoever was promised places starts when those are free, whoever else is still leaving
    progress   who would start on the empty cluster has started once the others have ended; nothing hangs

Counted only: worlds in which a pass that has started or stopped somebody leaves elastic gangs that could grow by then.
They do so at the news of what the pass did, which always comes: nobody waits for it, and sizes are chosen once a pass.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from world_maker import World, made  # noqa: E402

from llmsched.core import decisions, facts  # noqa: E402
from llmsched.core.configuration import Configuration  # noqa: E402
from llmsched.core.invariants import violations  # noqa: E402
from llmsched.core.nodes import Node  # noqa: E402
from llmsched.core.plan import Plan  # noqa: E402
from llmsched.core.records import GangState, allowed_sizes, amount_of, size_of  # noqa: E402
from llmsched.core.reservation import window  # noqa: E402
from llmsched.core.resources import MILLI, Resources  # noqa: E402
from llmsched.core.scheduler import decide  # noqa: E402
from llmsched.core.snapshot import freeze, thaw  # noqa: E402
from llmsched.core.state import State  # noqa: E402
from llmsched.core.status import Status  # noqa: E402
from llmsched.core.workload import Topology, Workload  # noqa: E402
from llmsched.policies.registry import load  # noqa: E402

MOVES = 2  # of one gang to a faster flavor, of three, without a change from outside
RESIZES = 40  # of one gang after the last event from outside
FOLDS = 11  # every so many passes the journal is folded again, and the time until the next one is looked into
AT_ONCE = 25  # worlds that a process takes
CALM_S = 100.0  # after the last event from outside every node is back
BRINGS_NEWS = (decisions.Launch, decisions.Resize, decisions.Preempt, decisions.Stop)  # an executor answers
FROM_OUTSIDE = (
    facts.Submitted, facts.Configured, facts.Cancelled, facts.Scaled, facts.NodeJoined, facts.NodeLost,
    facts.NodeDraining, facts.DrainBegun, facts.DrainEnded, facts.ForeignUse, facts.Finished, facts.LaunchFailed,
)  # fmt: skip
PASSES = 4000  # with a decision, in one world
LATEST_S = 400_000.0


class BrokenPromise(AssertionError):
    """Which promise, and how."""


class Play:
    """One world from its first pass to the last: an executor that does what it is told, each thing a little later."""

    def __init__(self, world: World, told: bool = False, folds: int = FOLDS) -> None:
        self.world, self.told, self.folds = world, told, folds
        self.state, self.journal = State(), list[Any]()
        self.agenda: list[tuple[float, int, Any]] = []
        self.serial = 0
        self.now, self.passes, self.looks, self.is_calm = 0.0, 0, 0, False
        self.left = {f"{name}/0": seconds for name, seconds in world.takes.items()}
        self.since: dict[str, tuple[float, float, int]] = {}  # gang -> when it began, its speed, which Finished is due
        self.exchanged: dict[frozenset[str], bool] = {}  # of which one was evicted for the other: whether by rank
        self.went: Counter[tuple[str, str]] = Counter()  # who left for nobody, and why: since something has changed
        self.alive: set[str] = set()  # who waits or runs, and the turns of the clock: as of the last pass
        self.turns: tuple[Any, ...] = ()
        self.resized: Counter[str] = Counter()
        self.owed: dict[str, str] = {}  # for whom was evicted who, since something has changed from outside
        self.plan = Plan(0.0)  # of the last pass
        self.left_over = 0  # passes that started or stopped somebody, and left some who could grow until that is news
        self.configure(world.configuration)

    def configure(self, configuration: Configuration) -> None:
        self.configuration, self.policies = configuration, load(configuration.policies)

    def later(self, at: float, what: Any) -> int:
        self.serial += 1
        heapq.heappush(self.agenda, (at, self.serial, what))
        return self.serial

    def run(self) -> None:
        joined = [facts.NodeJoined(0.0, node) for node in self.world.nodes]
        self.one_pass([facts.Configured(0.0, self.configuration), *joined])
        for at, what, arguments in self.world.events:
            self.later(at, (what, arguments))
        self.later(max(at for at, _, _ in self.world.events) + CALM_S, ("calm", ()))
        quiet = 0
        settings = [self.configuration, *(given[0] for _, what, given in self.world.events if what == "configure")]
        booked = max((r.start + r.duration_s for each in settings for r in each.reservations), default=0.0)
        while self.agenda and self.agenda[0][0] <= LATEST_S and quiet < 60:
            self.now = self.agenda[0][0]
            said: list[Any] = []
            while self.agenda and self.agenda[0][0] <= self.now:
                _, serial, what = heapq.heappop(self.agenda)
                said += self.happens(serial, what)
            self.one_pass(said or [facts.Tick(self.now)])
            self.hold_the_silence()
            rests = (
                self.is_calm
                and self.now > booked
                and not self.state.holding
                and all(what is None for _, _, what in self.agenda)
            )
            quiet = quiet + 1 if rests else 0
        self.at_the_end()

    # What happens.

    def happens(self, serial: int, what: Any) -> Iterator[Any]:
        if isinstance(what, tuple):
            yield from getattr(self, "_" + what[0])(*what[1])
        elif what is not None:
            gang = self.state.gangs[what.gang]
            if gang.attempt != what.attempt:
                return
            if isinstance(what, facts.Finished) and self.since.get(gang.id, (0, 0, 0))[2] != serial:
                return  # it has changed size, or was stopped, since that was foreseen
            if isinstance(what, (facts.Bound, facts.Resized)):
                self.works(gang)
            yield replace(what, at=self.now)

    def _submit(self, workload: Workload) -> Iterator[Any]:
        yield facts.Submitted(self.now, workload)

    def _replace(self, workload: Workload) -> Iterator[Any]:
        if workload.id in self.state.workloads:
            self.begins_anew(f"{workload.id}/0")
            yield facts.Submitted(self.now, workload, replaces=True)

    def _configure(self, configuration: Configuration) -> Iterator[Any]:
        self.configure(configuration)
        yield facts.Configured(self.now, configuration)

    def _cancel(self, name: str, _: int) -> Iterator[Any]:
        yield facts.Cancelled(self.now, name, "ann")

    def _estimate(self, name: str, seconds: float) -> Iterator[Any]:
        yield facts.Estimated(self.now, f"{name}/0", float(seconds))

    def _scale(self, name: str, size: int) -> Iterator[Any]:
        record = self.state.workloads.get(name)
        if record is not None and not record.outcome and size in allowed_sizes(record.workload):
            yield facts.Scaled(self.now, name, size)

    def _lost(self, node: Node, _: int) -> Iterator[Any]:
        for gang in [self.state.gangs[name] for name in self.state.holding]:
            if any(placed.node == node.id for placed in gang.held):
                self.stops(gang)
                self.begins_anew(gang.id)
        yield facts.NodeLost(self.now, node.id)

    def _join(self, node: Node, _: int) -> Iterator[Any]:
        yield facts.NodeJoined(self.now, node)

    def _drain(self, node: Node, _: int) -> Iterator[Any]:
        yield facts.NodeDraining(self.now, node.id, self.now + 50.0)

    def _close(self, node: Node, by: int) -> Iterator[Any]:
        """An operator drains it; every other time with a deadline."""
        yield facts.DrainBegun(self.now, node.shown, self.now + 60.0 if by % 2 else None, "root")

    def _open(self, node: Node, _: int) -> Iterator[Any]:
        yield facts.DrainEnded(self.now, node.shown, "root")

    def _foreign(self, node: Node, gpus: int) -> Iterator[Any]:
        yield facts.ForeignUse(self.now, node.id, Resources(gpus * MILLI))

    def _calm(self) -> Iterator[Any]:
        self.is_calm = True
        for node in self.world.nodes:
            yield facts.NodeJoined(self.now, node)
            yield facts.DrainEnded(self.now, node.shown, "root")
            yield facts.ForeignUse(self.now, node.id, Resources())

    def works(self, gang: GangState) -> None:
        self.stops(gang)
        rate = gang.pace(size_of(gang.spec, gang.placement or ()) or gang.spec.min_size)
        ended = facts.Finished(0.0, gang.id, gang.attempt, "succeeded")
        serial = self.later(self.now + self.left[gang.id] / rate, ended)
        self.since[gang.id] = (self.now, rate, serial)

    def stops(self, gang: GangState) -> None:
        began, rate, _ = self.since.pop(gang.id, (self.now, 0.0, 0))
        self.left[gang.id] = max(0.5, self.left[gang.id] - (self.now - began) * rate)

    # One pass.

    def apply(self, entry: Any) -> None:
        self.state.apply(entry)
        self.journal.append(entry)
        if self.told and not isinstance(entry, facts.Configured):
            print(f"{self.now:9.1f}", entry)

    def one_pass(self, said: list[Any]) -> None:
        for fact in said:
            self.apply(fact)
            if isinstance(fact, (facts.Finished, facts.LaunchFailed)):
                self.begins_anew(fact.gang)
        if self.state.now < self.now:
            self.apply(facts.Tick(self.now))
        self.note_what_changed(said)
        self.hold_the_ledgers(said)
        plan = self.plan = self.decided()
        self.hold_the_priorities(plan)
        for decision in plan.decisions:
            self.apply(decision)
            self.carries_out(decision)
        self.hold_the_ledgers(plan.decisions)
        self.hold_the_victims(plan)
        if not plan.is_cut and not plan.asks_again:
            self.hold_the_promises()
        told = plan.reasons if self.looks % self.folds == 0 else None  # as people get it: that costs more
        for gang in self.state.gangs.values():
            tells = gang.status is not Status.QUEUED or gang.nomination is not None
            tells = tells or (gang.reason is not None if told is None else gang.id in told)
            if not tells and not plan.is_cut:
                raise BrokenPromise(f"reasons: {gang.id} waits at {self.now} and does not know why")
        if plan.by_clock and plan.wake_at is None:
            raise BrokenPromise(f"silence: at {self.now} time alone may change the plan, and it names no moment")
        self.passes += bool(plan.decisions)
        if self.passes > PASSES:
            raise BrokenPromise(f"progress: {self.passes} passes with a decision, and no end at {self.now}")
        if (
            plan.is_cut
            or plan.asks_again
            or any(isinstance(each, (decisions.Scale, decisions.RunAgain)) for each in plan.decisions)
        ):
            self.later(self.now, None)
        if plan.wake_at is not None:
            self.later(max(plan.wake_at, self.now), None)

    def decided(self) -> Plan:
        """What the state decides; at every second pass a fresh one, of a snapshot or (slower) of the journal, decides
        the same."""
        self.looks += 1
        folds = self.looks % self.folds == 0
        if not folds and (self.looks + self.world.seed) % 2:
            return decide(self.state, self.policies)
        again = State() if folds else thaw(freeze(self.state))
        if folds:
            for entry in self.journal:
                again.apply(entry)
        before = self.state.digest() if folds else ""
        plan = decide(self.state, self.policies)
        if folds and not self.state.digest() == again.digest() == before:
            raise BrokenPromise(f"purity: at {self.now} deciding changed the state, or the journal folded is another")
        fresh = decide(again, self.policies).decisions
        if fresh != plan.decisions:
            raise BrokenPromise(f"purity: at {self.now} decided\n{plan.decisions}\nand a fresh state\n{fresh}")
        return plan

    def carries_out(self, decision: Any) -> None:
        chance = random.Random(f"{self.world.seed} {type(decision).__name__} {self.serial} {self.now}")
        soon = self.now + chance.choice([0.5, 1.0, 3.0, 20.0])
        if isinstance(decision, decisions.Launch):
            self.owed.pop(decision.gang, None)
            if not self.is_calm and chance.random() < 0.03:
                self.later(soon, facts.LaunchFailed(0.0, decision.gang, decision.attempt, "no-capacity", ""))
            else:
                self.later(soon, facts.Bound(0.0, decision.gang, decision.attempt))
        elif isinstance(decision, decisions.Resize):
            size = size_of(self.state.gangs[decision.gang].spec, decision.placement)
            self.later(soon, facts.Resized(0.0, decision.gang, decision.attempt, size))
            self.resized[decision.gang] += self.is_calm
            if self.resized[decision.gang] > RESIZES:
                raise BrokenPromise(f"loops: {decision.gang} was resized {RESIZES} times: {decision}")
        elif isinstance(decision, (decisions.Preempt, decisions.Stop)):
            self.stops(self.state.gangs[decision.gang])
            self.later(min(soon, self.now + decision.grace_s), facts.Released(0.0, decision.gang, decision.attempt))
            if isinstance(decision, decisions.Preempt):
                self.hold_the_loops(decision)
        elif isinstance(decision, decisions.Withdraw) and decision.gang in self.owed:
            gang = self.owed.pop(decision.gang)
            if decision.why is None or decision.why.code != "withdraw.outranked":  # else a better right begins there
                raise BrokenPromise(f"vain: at {self.now} {decision}, for which {gang} was evicted")

    # What must hold.

    def hold_the_ledgers(self, after: list[Any]) -> None:
        broken = violations(self.state)
        if broken:
            names = [type(entry).__name__ for entry in after]
            raise BrokenPromise(f"ledgers: at {self.now} after {names}: {broken}")

    def hold_the_victims(self, plan: Plan) -> None:
        for name, victim in self.owed.items():
            gang = self.state.gangs[name]
            waits = gang.status is Status.QUEUED and not gang.blocked_by and gang.nomination is None
            if waits and not plan.is_cut:
                raise BrokenPromise(
                    f"vain: at {self.now} nothing is promised to {name}, for which {victim} was evicted"
                )

    def hold_the_promises(self) -> None:
        """Counted by hand, and of whole GPUs alone, as what is left of a device of which somebody holds a part is none;
        not where quota, a reservation or a lost node may stand before."""
        state = self.state
        if not state.nominated or state.quota.enforced or self.configuration.reservations:
            return
        free = {
            name: (node.node.total.gpus_milli - node.foreign.gpus_milli) // MILLI for name, node in state.nodes.items()
        }
        parted: set[tuple[str, int]] = set()  # devices of which parts are held
        for gang in [state.gangs[name] for name in state.holding]:
            for placed in gang.held:
                whole, part = divmod(amount_of(gang.spec, placed).gpus_milli, MILLI)
                free[placed.node] -= whole
                if part and (placed.node, placed.gpu_index) not in parted:
                    parted.add((placed.node, placed.gpu_index))
                    free[placed.node] -= 1
        for gang in [state.gangs[name] for name in state.nominated]:
            assert gang.nomination is not None
            amounts = [(placed.node, amount_of(gang.spec, placed)) for placed in gang.nomination.placement]
            if any(amount.gpus_milli % MILLI or amount.cpus_milli for _, amount in amounts):
                continue
            needs: Counter[str] = Counter()
            for node, amount in amounts:
                needs[node] += amount.gpus_milli // MILLI
            if all(free[node] >= need for node, need in needs.items()):
                raise BrokenPromise(f"promises: at {self.now} {gang.id} waits, and {dict(needs)} is free")

    def begins_anew(self, name: str) -> None:
        """Something has happened to it from outside: it may exchange a place with anybody."""
        self.exchanged = {pair: by_rank for pair, by_rank in self.exchanged.items() if name not in pair}

    def note_what_changed(self, said: list[Any]) -> None:
        """After a change from outside, or a turn of the clock, a pair may exchange a place once more."""
        alive = {gang.id for gang in self.state.gangs.values() if not gang.is_ended() and not gang.blocked_by}
        scheduling = self.configuration.scheduling
        spans = [window(each, self.now) for each in self.configuration.reservations]
        turns = (*spans, *(span is not None and span[0] <= self.now for span in spans))
        if scheduling.usage_half_life_s:
            turns = (*turns, int(self.now // scheduling.usage_half_life_s))
        changed = any(isinstance(fact, FROM_OUTSIDE) for fact in said) or alive != self.alive
        if changed or turns != self.turns:
            self.exchanged = {pair: by_rank for pair, by_rank in self.exchanged.items() if by_rank}
            self.went.clear()
        if changed or any(isinstance(fact, facts.Estimated) for fact in said):
            self.owed.clear()
        self.alive, self.turns = alive, turns

    def hold_the_loops(self, decision: decisions.Preempt) -> None:
        pair, went = frozenset((decision.gang, decision.beneficiary)), (decision.gang, decision.reason)
        if decision.beneficiary:
            if len(pair) < 2 or pair in self.exchanged:
                raise BrokenPromise(f"loops: {sorted(pair)} have exchanged a place before: {decision}")
            self.exchanged[pair] = decision.reason == "in_queue_rank"
        else:
            self.went[went] += 1
            if self.went[went] > (MOVES if decision.reason == "faster_flavor" else 1):
                raise BrokenPromise(f"loops: {decision.gang} has left before: {decision}")
            if decision.reason != "faster_flavor":
                self.begins_anew(decision.gang)
        if decision.beneficiary:
            self.owed[decision.beneficiary] = decision.gang

    def hold_the_silence(self) -> None:
        until = self.agenda[0][0] if self.agenda else self.now
        if self.looks % self.folds != self.folds // 2 or until - self.now < 2.0:
            return
        again = thaw(freeze(self.state))
        if not self.plan.by_clock:
            again.apply(facts.Tick(self.now + (until - self.now) * 0.6))
        found = decide(again, self.policies).decisions
        brings_news = any(isinstance(decision, BRINGS_NEWS) for decision in self.plan.decisions)
        if found and brings_news and all(self.grows(decision) for decision in found):
            self.left_over += 1
        elif found:
            raise BrokenPromise(f"silence: at {again.now}, before {until}, there is something to decide: {found}")

    def grows(self, decision: Any) -> bool:
        """Or moves to more or faster GPUs that are left over: both come last."""
        if isinstance(decision, decisions.Preempt) and decision.reason == "faster_flavor":
            return self.state.gangs[decision.gang].spec.is_elastic()
        if not isinstance(decision, decisions.Resize):
            return False
        return len(decision.placement) > len(self.state.gangs[decision.gang].held)

    def hold_the_priorities(self, plan: Plan) -> None:
        scheduling = self.configuration.scheduling
        if scheduling.backfill != "off" or self.configuration.policies.ordering != "priority":
            return
        if scheduling.order == "best_effort" or self.configuration.reservations:
            return
        chosen = {d.gang for d in plan.decisions if isinstance(d, (decisions.Launch, decisions.Nominate))}
        waiting = [self.state.gangs[n] for s in self.state.waiting.live.values() for _, n in s.entries]
        for decision in plan.decisions:
            gang = self.state.gangs.get(getattr(decision, "gang", ""))
            if not isinstance(decision, decisions.Launch) or gang is None or gang.nomination is not None:
                continue
            for other in waiting:
                if other.id in chosen or other.nomination is not None or not _has_the_better_right(other, gang):
                    continue
                if _asks_for_no_more(other.spec, gang.spec):
                    raise BrokenPromise(f"priority: at {self.now} {gang.id} starts, {other.id} waits: {other.reason}")

    def at_the_end(self) -> None:
        state = self.state
        if state.nominated or state.holding:
            raise BrokenPromise(f"progress: at {self.now} {[*state.nominated]} are promised, {[*state.holding]} hold")
        waiting = [gang for gang in state.gangs.values() if gang.status is Status.QUEUED]
        for gang in waiting:
            alone = State()
            alone.apply(facts.Configured(self.now, self.configuration))
            for node in self.world.nodes:
                alone.apply(facts.NodeJoined(self.now, node))
            alone.apply(facts.Submitted(self.now, gang.spec))
            starts = any(isinstance(d, decisions.Launch) for d in decide(alone, self.policies).decisions)
            if starts:
                raise BrokenPromise(f"progress: {gang.id} waits for ever, alone it starts: {gang.reason}")


def _has_the_better_right(one: GangState, other: GangState) -> bool:
    mine, theirs = (one.spec.priority, -one.submitted_at), (other.spec.priority, -other.submitted_at)
    return one.spec.queue == other.spec.queue and mine > theirs


def _asks_for_no_more(one: Workload, other: Workload) -> bool:
    """Whether wherever `other` fits `one` does too."""
    if len(one.groups) > 1 or len(other.groups) > 1 or one.preemptible < other.preemptible:
        return False
    if one.topology not in (Topology(), other.topology) or one.min_size > other.min_size:
        return False
    mine = {(option.flavor, option.resources) for option in one.groups[0].options}
    return mine >= {(option.flavor, option.resources) for option in other.groups[0].options}


def play(seed: int, told: bool = False, folds: int = FOLDS, plain: bool = False) -> int:
    """How many passes left some who could grow (see above). Raises BrokenPromise, or whatever the core raises."""
    played = Play(made(seed, plain), told, folds)
    played.run()
    return played.left_over


def broken(first: int, count: int, folds: int = FOLDS) -> tuple[list[str], int]:
    """What went wrong in so many worlds, and in how many a pass left some who could grow."""
    found, left_over = [], 0
    for seed in range(first, first + count):
        try:
            left_over += play(seed, folds=folds) > 0
        except Exception as error:
            found.append(f"{seed}: {type(error).__name__}: {str(error)[:400]}")
    return found, left_over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", type=int, nargs="?", default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--folds", type=int, default=FOLDS, help="passes from one that is looked into to the next")
    parser.add_argument("--show", type=int, help="play this one and print its journal")
    parser.add_argument("--plain", action="store_true", help="with --show: as it was before there were rich worlds")
    given = parser.parse_args()
    if given.show is not None:
        play(given.show, told=True, folds=given.folds, plain=given.plain)
        return 0
    began, wrong, left_over, last = time.monotonic(), 0, 0, given.first + given.worlds
    firsts = range(given.first, last, AT_ONCE)
    counts = [min(AT_ONCE, last - first) for first in firsts]
    with ProcessPoolExecutor(given.jobs) as pool:
        for number, (found, left) in enumerate(pool.map(broken, firsts, counts, [given.folds] * len(counts)), 1):
            wrong, left_over = wrong + len(found), left_over + left
            for line in found:
                print(line, flush=True)
            if number % 20 == 0:
                print(f"... {number * AT_ONCE} worlds, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{given.worlds} worlds from {given.first} on, {wrong} broken, {time.monotonic() - began:.0f} s")
    print(f"in {left_over} a pass that started or stopped somebody left some who could grow until that was news")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
