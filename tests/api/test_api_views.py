"""What a state looks like to those who ask."""

from __future__ import annotations

from llmsched.api import views
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import AdapterLoaded, Bound, Fact, NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.render import ALL
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.registry import load


def test_an_endpoint_that_could_not_load_an_adapter_says_so_until_it_can() -> None:
    state = State()
    qwen = Workload("qwen", "qwen", "serve", (Group("workers", 1, (Option(None, Resources(0, 1000)),)),))
    facts: list[Fact] = [NodeJoined(0.0, Node("n0", Resources(0, 8000, 1 << 34))), Submitted(1.0, qwen)]
    turn(state, facts, load(PolicyNames()))
    state.apply(Bound(2.0, "qwen/0", 1))
    state.apply(AdapterLoaded(3.0, "qwen/0", 1, "sql", "s3://a/sql", "adapter sql: made for another model"))
    assert views.workload(state, state.workloads["qwen"], {}, ALL).message == "adapter sql: made for another model"
    state.apply(AdapterLoaded(4.0, "qwen/0", 1, "sql", "s3://a/sql-2"))
    assert views.workload(state, state.workloads["qwen"], {}, ALL).message == ""
