"""The world after everybody who leaves has gone, kept in step with the pass, is the one worked out afresh."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from ledger import cluster

from llmsched.core import facts
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.trial import Trial, Without
from llmsched.core.workload import Placed


def world() -> State:
    given = cluster("2 nodes x 4 A100").queue("a", 2).queue("b", 6)
    for name in ("j0", "j1", "j2"):
        given.running(name, gpus=1, queue="a")
    return given.running("k", gpus=2, queue="b").pending("w", gpus=2, queue="b").state


def act(trial: Trial) -> None:
    """One gang is promised a place, another lets go, two are told to leave, quota is kept."""
    gangs = trial.state.gangs
    trial.promise(gangs["w/0"], (Placed("workers", "a100-0", 0),))
    trial.leaving["j1/0"] = trial.leaving["j0/0"] = None
    trial.hold(gangs["k/0"], ())
    trial.hold_quota("b", "A100", 1000)


def ledgers(state: State) -> dict[str, Any]:
    return {
        "nodes": {name: (node.used, node.free_whole, node.promised) for name, node in state.nodes.items()},
        "free": state.capacity.by_free,
        "quota": {(row, name): b.used for row, tree in state.quota.rows.items() for name, b in tree.items()},
        "use": state.use,
    }


def test_kept_in_step_it_is_what_it_would_be_afresh_and_the_pass_itself_sees_none_of_it() -> None:
    state = world()
    with Trial(state) as trial:
        act(trial)
        before = ledgers(state.twin())
        afresh = trial.afterwards()
        free = afresh.state.nodes["a100-0"].free_whole
        assert free == state.nodes["a100-0"].free_whole + 2
        assert afresh.gone_from((Placed("workers", "a100-0", 0),)) == ["j1/0", "j0/0"]
        assert ledgers(state) == before
    with Trial(state) as trial:
        trial.afterwards()
        act(trial)
        assert ledgers(trial.afterwards().state) == ledgers(afresh.state)


@pytest.mark.parametrize("seed", range(5))
def test_without_the_first_so_many_it_is_as_if_each_had_let_go_and_the_trial_sees_none_of_it(seed: int) -> None:
    """To and fro, of groups with shares of a device, two groups, CPUs and memory, and of one that takes more."""
    draw, given = random.Random(seed), cluster("3 nodes x 4, 1 node x 2").queue("a", 4).queue("b", 6)
    for number in range(12):
        given.running(f"j{number}", gpus=draw.choice([0.5, 0.25, 1]), queue=draw.choice("ab"))
    state = given.state
    state.apply(facts.ForeignUse(given.now, "n-0", Resources(0, 2000)))
    state.apply(facts.ExcessUse(given.now, "j0/0", 1, (("n-0", Resources(0, 1000)),)))
    with Trial(state) as trial:
        trial.hold(state.gangs["j3/0"], ())
        before, world = ledgers(state.twin()), Without(trial)
        rows = [(gang, trial.held(gang)) for gang in state.gangs.values() if trial.held(gang)]
        draw.shuffle(rows)
        world.row = rows
        for count in [len(rows), 0, *(draw.randint(0, len(rows)) for _ in range(10))]:
            world.stand_at(count)
            mark = trial.mark()
            for gang, _ in rows[:count]:
                trial.hold(gang, ())
            assert ledgers(world.state) == ledgers(state)
            assert all(world.held(gang) == trial.held(gang) for gang in state.gangs.values())
            trial.rollback(mark)
            assert ledgers(state) == before


def test_what_was_made_beside_a_trial_is_made_anew_when_somebody_holds_something_else() -> None:
    state = world()
    gangs, made = state.gangs, list[int]()

    def make() -> int:
        made.append(len(made))
        return made[-1]

    with Trial(state) as trial:
        acts: list[Callable[[], object]] = [
            lambda: trial.hold(gangs["j0/0"], ()),
            lambda: trial.rollback(0),
            lambda: trial.hold(gangs["j1/0"], ()),
            lambda: trial.hold_quota("b", "A100", 1000),
            lambda: trial.leave(gangs["k/0"]),
            lambda: trial.stay(gangs["k/0"]),
            lambda: trial.let_go_of_quota(),
            lambda: trial.promise_first(gangs["w/0"], (Placed("workers", "a100-1", 0),)),
        ]
        for act_once in acts:
            first = trial.beside("it", make)
            assert trial.beside("it", make) == first
            act_once()
            assert trial.beside("it", make) == first + 1
        mark, last = trial.mark(), trial.beside("it", make)
        trial.hold(gangs["j0/0"], ())
        trial.rollback(mark)
        assert trial.beside("it", make) == last, "what was undone is as if it had never been"
