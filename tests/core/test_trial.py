"""The world after everybody who leaves has gone, kept in step with the pass, is the one worked out afresh."""

from __future__ import annotations

from typing import Any

from ledger import cluster

from llmsched.core.state import State
from llmsched.core.trial import Trial
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
