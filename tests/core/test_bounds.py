"""What one submission, and one user, may ask for at all, however little it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmsched.core.commands import Refusal, Submit, check
from llmsched.core.configuration import Configuration
from llmsched.core.facts import Cancelled, Configured, Submitted
from llmsched.core.open_work import Open
from llmsched.core.render import text
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload


def work(name: str, user: str = "ann", **more: Any) -> Workload:
    return Workload(name, name, "task", (Group("workers", 1, (Option(None, Resources()),)),), user=user, **more)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_size": 100_000, "max_size": 100_000}, "100000 workers; one workload may have 4096"),
        ({"kind": "serve", "min_replicas": 9_000, "max_replicas": 9_000}, "9000 replicas; one workload may have 1000"),
    ],
)
def test_one_submission_cannot_ask_for_more_than_a_workload_may_have(changes: dict[str, Any], words: str) -> None:
    refused = check(State(), Submit(1.0, replace(work("a"), **changes)))
    assert isinstance(refused, Refusal) and refused.code == "too_many"
    assert words in text(refused.message)


def test_a_user_has_so_many_gangs_in_open_work_and_what_ends_makes_room() -> None:
    state = State()
    state.apply(Configured(0.0, Configuration(max_gangs_per_user=3)))
    endpoint = replace(work("s"), kind="serve", max_replicas=2)
    for given in (endpoint, work("a")):
        state.apply(Submitted(1.0, given))
    more = Submit(2.0, work("b"))
    for refused in (check(state, more), check(state, Submit(2.0, replace(endpoint, max_replicas=3)))):
        assert isinstance(refused, Refusal) and refused.code == "too_many"
    assert isinstance(check(state, Submit(2.0, work("b", "bob"))), Submitted)
    state.apply(Cancelled(3.0, "a", "ann"))
    assert isinstance(check(state, more), Submitted)
    state.apply(Submitted(4.0, replace(endpoint, max_replicas=1), replaces=True))
    assert state.open_work.of_user("ann").gangs == 1


def test_the_specs_of_a_users_open_work_have_so_many_bytes_and_what_ends_makes_room() -> None:
    """5,000 tasks with variables of 800 KB each were taken: 9 GB in the memory of the controller of all."""
    state = State()
    state.apply(Configured(0.0, Configuration(max_spec_bytes_per_user=1_000)))
    state.apply(Submitted(1.0, work("a", parcel="x" * 600)))
    more = Submit(2.0, work("b", parcel="x" * 401))
    refused = check(state, more)
    assert isinstance(refused, Refusal) and refused.code == "too_many"
    assert "would have 1001 bytes; a user may have 1000" in text(refused.message)
    assert isinstance(check(state, Submit(2.0, work("b", "bob", parcel="x" * 401))), Submitted)
    assert isinstance(check(state, Submit(2.0, work("b", parcel="x" * 400))), Submitted)
    state.apply(Cancelled(3.0, "a", "ann"))
    assert isinstance(check(state, more), Submitted)
    assert state.open_work.of_user("ann") == Open()
