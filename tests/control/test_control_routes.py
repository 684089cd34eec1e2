"""The table of routes: what has changed is worked out again, and nothing else, however many endpoints there are."""

from dataclasses import replace

import pytest
from control_harness import serve

from llmsched.control import routes
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import Bound, Cancelled, LaunchFailed, NodeJoined, Submitted, Tick
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.policies.registry import load
from llmsched.spec.compile import compile_workload

MANY = 30
KEYS = [{"id": f"k{n}", "sha256": "", "user": user, "role": "submitter"} for n, user in enumerate(("ann", "bob"))]


@pytest.fixture
def state():
    made = State()
    made.apply(NodeJoined(0.0, Node("n", Resources(1_000_000, 1_000_000, 1 << 40), "A100")))
    facts = [submitted(f"talks-{n}") for n in range(MANY)]
    policies = load(PolicyNames())
    turn(made, facts, policies)
    for name in [*made.gangs]:
        made.apply(Bound(2.0, name, 1))
    assert all(gang.started_at for gang in made.gangs.values())
    return made


def submitted(name):
    return Submitted(1.0, replace(compile_workload(serve(name)), user="ann"))


@pytest.fixture
def made(monkeypatch):
    """The endpoints that were worked out."""
    found, original = [], routes.endpoint_of

    def endpoint_of(state, record):
        found.append(record.workload.id)
        return original(state, record)

    monkeypatch.setattr(routes, "endpoint_of", endpoint_of)
    return found


def test_an_entry_costs_the_row_of_the_endpoint_that_it_is_about(state, made):
    known = routes.Routes(1)
    assert len(known.changed(state, KEYS).models) == len(made) == MANY
    made.clear()
    state.apply(submitted("one-more"))
    table = known.changed(state, KEYS)
    assert made == ["one-more"] and len(table.models) == MANY + 1
    made.clear()
    state.apply(Cancelled(4.0, "talks-7"))
    assert known.changed(state, KEYS) is None, "it answers until it has left"
    assert made == ["talks-7"]
    state.apply(Tick(5.0))
    assert known.changed(state, KEYS) is None and made == ["talks-7"]


def test_it_is_the_table_that_is_made_anew(state):
    known = routes.Routes(1)
    known.changed(state, KEYS)
    for name in ("talks-3/0", "talks-9/0"):
        state.apply(Cancelled(6.0, name.partition("/")[0]))
        for decision in turn(state, (), load(PolicyNames())).decisions:
            assert decision.gang == name
        changed, anew = known.changed(state, KEYS), routes.Routes(1).changed(state, KEYS)
        assert changed is not None and (changed.models, changed.keys) == (anew.models, anew.keys)
        assert changed.models[name.partition("/")[0]]["replicas"] == []


def test_who_may_ask_is_worked_out_again_when_tokens_change(state):
    known = routes.Routes(1)
    known.changed(state, KEYS)
    fewer = known.changed(state, KEYS[:1])
    assert [(key["id"], len(key["models"])) for key in fewer.keys] == [("k0", MANY)]


def fails(state, name, known):
    """For good: what it was given is wrong."""
    turn(state, [submitted(name)], load(PolicyNames()))
    assert name in known.changed(state, KEYS).models
    state.apply(LaunchFailed(7.0, f"{name}/0", 1, "input", "no such model"))
    assert state.workloads[name].outcome == "failed"


def test_an_endpoint_that_failed_is_named_to_those_who_may_ask_for_it_until_it_is_there_again(state):
    known = routes.Routes(1)
    fails(state, "breaks", known)
    for each in (known, routes.Routes(2)):  # one that saw it fail, and one that begins then
        table = each.changed(state, KEYS)
        assert table.failed == {"breaks": "breaks"} and "breaks" not in table.models
        assert ["breaks" in key["models"] for key in table.keys] == [True, False]
    again = replace(compile_workload(serve("breaks")), user="ann", id="breaks@2", run=2)
    state.apply(Submitted(8.0, again))
    table = known.changed(state, KEYS)
    assert table.failed == {} and table.models["breaks"]["workload"] == "breaks@2"


def test_one_that_was_cancelled_is_not_named(state):
    known = routes.Routes(1)
    state.apply(submitted("goes"))
    known.changed(state, KEYS)
    state.apply(Cancelled(4.0, "goes"))
    assert state.workloads["goes"].outcome == "cancelled"
    assert known.changed(state, KEYS).failed == {}
