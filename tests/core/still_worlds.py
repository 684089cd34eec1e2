"""Random small worlds in which nobody ends: in the end who comes first has what those after it could give.

Whole GPUs, parts of them, several bundles and elastic sizes, of one flavor, of several or of any, in one queue or in
two of which each owns a part; priorities, and who may not be evicted. What is asked in the end is asked of places, not
of the stages that decide: nobody waits for what is idle, for what a lower priority has, or for what another queue
borrows. But for who would delay one that comes before it and waits for the end of somebody whom it may not evict.

    python tests/core/still_worlds.py [FIRST] [COUNT]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ledger import Given, cluster

from llmsched.core import facts
from llmsched.core.amounts import bundle_milli
from llmsched.core.configuration import Queue, Quota
from llmsched.core.planned import earliest
from llmsched.core.records import GangState, allowed_sizes
from llmsched.core.resources import Resources
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.lesser import keeps
from llmsched.core.stages.place import Refused, find
from llmsched.core.trial import Trial
from llmsched.core.windows import Windows
from llmsched.core.workload import Group, Option, Placement, Workload
from llmsched.policies.registry import load

WAITS_S = (0, 0, 1, 30, 100, 400)  # from one submission to the next
RANKINGS = 12  # after the last one, a minute each
LONG = 8  # and then so often half an hour, for who has waited long


@dataclass
class World:
    given: Given
    arrivals: list[tuple[float, Workload]]
    owned: dict[str, dict[str, int]]  # queue -> row of quota -> thousandths; {} without quota


def made(seed: int) -> World:
    dice = random.Random(seed)
    flavors = dice.choice([["A"], ["A"], ["A", "B"], ["A", "B", "C"]])
    given = cluster(", ".join(f"{dice.choice([1, 1, 2, 3])} nodes x {dice.choice([1, 2, 4, 8])} {f}" for f in flavors))
    given.policies(
        ordering=dice.choice(["priority", "priority", "fair_share"]),
        elasticity=dice.choice(["goodput", "even", "marginal_throughput"]),
    )
    given.rules(dice.choice(["by_rank", "by_rank", "lower_priority"]), "any")
    given.scheduling(quantum_s=60.0, hold_after_s=dice.choice([0.0, 600.0, 1800.0]))
    owned = _two_queues(given, dice) if dice.random() < 0.5 else {}
    largest = max(node.total.gpus_milli for node in given.nodes) // 1000
    arrivals = [
        (float(dice.choice(WAITS_S)), _workload(f"w{number}", dice, flavors, largest, [*owned] or ["default"]))
        for number in range(dice.randint(2, 8))
    ]
    return World(given, arrivals, owned)


def _two_queues(given: Given, dice: random.Random) -> dict[str, dict[str, int]]:
    there: dict[str, int] = {}
    for node in given.nodes:
        there[node.flavor or ""] = there.get(node.flavor or "", 0) + node.total.gpus_milli // 1000
    rows = there if dice.random() < 0.5 else {"*": sum(there.values())}
    first = {row: dice.randint(0, gpus) * 1000 for row, gpus in rows.items()}
    owned = {"a": first, "b": {row: rows[row] * 1000 - milli for row, milli in first.items()}}
    for name, quotas in owned.items():
        given.queues.append(
            Queue(name, cohort="all", quotas=tuple((row, Quota(milli)) for row, milli in quotas.items()))
        )
    return owned


def _workload(name: str, dice: random.Random, flavors: list[str], largest: int, queues: list[str]) -> Workload:
    own: list[str | None] = [*dice.sample(flavors, dice.randint(1, len(flavors)))]
    if dice.random() < 0.2:
        own = [None]
    kind = dice.choice(["fixed", "fixed", "many", "part", "elastic", "elastic", "elastic parts"])
    least = most = 1
    match kind:
        case "fixed":
            milli = 1000 * dice.randint(1, largest)
        case "many":
            milli, least = 1000 * dice.choice([1, 1, 2]), dice.randint(2, 4)
            most = least
        case "part":
            milli = dice.choice([250, 500, 600])
        case "elastic":
            milli, least = 1000, dice.randint(1, 3)
            most = least + dice.randint(1, 6)
        case _:
            milli, most = 500, dice.randint(2, 6)
    group = Group("workers", 1, tuple(Option(flavor, Resources(milli)) for flavor in own))
    more = {"priority": dice.choice([10, 50, 50, 90]), "preemptible": dice.random() < 0.9, "queue": dice.choice(queues)}
    return Workload(name, name, "train", (group,), min_size=least, max_size=most, **more)  # type: ignore[arg-type]


def faults(seed: int) -> list[str]:
    """What is wrong when all has come to rest."""
    world = made(seed)
    given = world.given.after(1.0)
    for wait, workload in world.arrivals:
        given.after(wait, facts.Submitted(given.now + wait, workload)).settle()
    for _ in range(RANKINGS):
        given.after(61.0).settle()
    for _ in range(LONG):
        given.after(1801.0).settle().after(61.0).settle()
    return [*_wrong(world)]


def _wrong(world: World) -> Iterator[str]:
    given = world.given
    gangs = [given.state.gangs[f"{workload.id}/0"] for _, workload in world.arrivals]
    running = [gang for gang in gangs if gang.held]
    for gang in (gang for gang in gangs if not gang.held):
        name = gang.spec.name
        kept = _kept(world, gang, running)

        def waits_for(
            gone: list[GangState], held: dict[str, Placement], gang: GangState = gang, kept: set[str] = kept
        ) -> Placement:
            found = _place(given, gang, gone, held)
            return () if any(placed.node in kept for placed in found) else found

        if waits_for([], {}):
            yield f"{name} waits beside idle GPUs that it may have"
        mine = [one for one in running if one.spec.queue == gang.spec.queue and one.spec.preemptible]
        lower = [one for one in mine if one.spec.priority < gang.spec.priority]
        if given.names.ordering == "priority" and lower and waits_for(lower, {}):
            yield f"{name} waits for what lower priorities have"
        others = _borrowers(world, gang, running)
        gone = [one for one, _ in others]
        if (
            others
            and (placement := waits_for(gone, {one.id: held for one, held in others}))
            and _is_owned(world, gang, placement)
        ):
            yield f"{name} waits for what its queue owns and another one borrows"


def _kept(world: World, gang: GangState, running: list[GangState]) -> set[str]:
    """Nodes that are kept from it for those that come before it and wait until others end, which here they never do:
    these would not fit if all that they may evict left. With none of them owed a start, those of the same priority are
    not among these. By rank who may be evicted has them meanwhile."""
    given, found = world.given, set[str]()
    if gang.spec.preemptible and given.knobs.preemption.within_queue == "by_rank":
        return found
    for first in given.state.gangs.values():
        mine, theirs = ((-one.spec.priority, one.submitted_at, one.id) for one in (gang, first))
        most = first.spec.priority - (not given.knobs.hold_after_s)
        may_leave = [one for one in running if one.spec.preemptible and one.spec.priority <= most]
        if first.held or theirs >= mine or _place(given, first, may_leave):
            continue
        with Trial(given.state) as trial:
            this = Pass(trial, load(given.names))
            planned = earliest(this, first, first.spec.min_size, Windows(trial), [])
        found |= {placed.node for placed in planned.placement} if planned is not None else set()
    return found


def _place(given: Given, gang: GangState, gone: list[GangState], kept: dict[str, Placement] | None = None) -> Placement:
    """Where it would be without those, but for what they keep; and those with which it has exchanged a place stay."""
    stay = given.state.exchanges.of(gang.id)
    with Trial(given.state) as trial:
        for one in (one for one in gone if one.id not in stay):
            trial.hold(one, (kept or {}).get(one.id, ()))
        found = find(Pass(trial, load(given.names)), gang, gang.spec.min_size)
    return () if isinstance(found, Refused) else found


def _use(world: World, queue: str, gang: GangState | None = None, placement: Placement = ()) -> dict[str, int]:
    """Thousandths of GPUs by row of quota that a queue uses, with what a gang would hold."""
    used = dict.fromkeys(world.owned[queue], 0)
    held = [(one, one.held) for one in world.given.state.gangs.values() if one.spec.queue == queue]
    for one, places in [*held, *([(gang, placement)] if gang is not None else [])]:
        for row, milli in _rows(world, one, places).items():
            used[row] += milli
    return used


def _rows(world: World, gang: GangState, placement: Placement) -> dict[str, int]:
    found: dict[str, int] = {}
    for placed in placement:
        flavor = world.given.state.nodes[placed.node].node.flavor or ""
        row = "*" if "*" in world.owned[gang.spec.queue] else flavor
        found[row] = found.get(row, 0) + bundle_milli(gang.spec, placed.option)
    return found


def _borrowers(world: World, gang: GangState, running: list[GangState]) -> list[tuple[GangState, Placement]]:
    """Who may be evicted of the other queue while it uses more than it owns, the lowest priority first, then the
    newest; and what it keeps. By rank an elastic one keeps as much as is inside what its queue owns."""
    found: list[tuple[GangState, Placement]] = []
    by_rank = world.given.knobs.preemption.within_queue == "by_rank"
    for queue in (queue for queue in world.owned if queue != gang.spec.queue):
        used, owned = _use(world, queue), world.owned[queue]
        theirs = [one for one in running if one.spec.queue == queue and one.spec.preemptible]
        for one in sorted(theirs, key=lambda one: (one.spec.priority, -(one.launched_at or 0.0))):
            rows = _rows(world, one, one.held)
            if not any(used[row] > owned[row] for row in rows):
                continue
            used = {row: milli - rows.get(row, 0) for row, milli in used.items()}
            sizes = reversed(allowed_sizes(one.spec)) if by_rank and one.spec.is_elastic() else ()
            kept: Placement = ()
            for size in (size for size in sizes if size < one.size):
                less = keeps(one, size, one.held)
                if all(used[row] + milli <= owned[row] for row, milli in _rows(world, one, less).items()):
                    kept = less
                    break
            used = {row: milli + _rows(world, one, kept).get(row, 0) for row, milli in used.items()}
            found.append((one, kept))
    return found


def _is_owned(world: World, gang: GangState, placement: Placement) -> bool:
    queue = gang.spec.queue
    return all(milli <= world.owned[queue][row] for row, milli in _use(world, queue, gang, placement).items())


def main() -> int:
    first, count = (int(text) for text in (*sys.argv[1:3], *("0", "1000")[len(sys.argv) - 1 :]))
    broken = 0
    for seed in range(first, first + count):
        for fault in faults(seed):
            broken += 1
            print(f"world {seed}: {fault}", flush=True)
    print(f"{count} worlds, {broken} faults")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
