"""The small policies, each by the one thing it is for; and how policies are found."""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from llmsched.core.configuration import PolicyNames, PolicyOptions
from llmsched.core.facts import NodeJoined, Submitted
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.policy import NodeView, View, WorkloadView
from llmsched.core.records import WorkloadState
from llmsched.core.resources import Resources
from llmsched.core.scheduler import decide
from llmsched.core.state import State
from llmsched.core.workload import Autoscaling, Group, Option, Workload
from llmsched.errors import SpecError
from llmsched.policies import registry
from llmsched.policies.autoscaling.ongoing_requests import OngoingRequests
from llmsched.policies.placement.least_fragmentation import LeastFragmentation
from llmsched.spec.cluster import load as load_cluster

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))
from ledger import Launch, Nominate, Preempt, cluster


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_policy_we_name_can_be_loaded(family: str) -> None:
    for name in registry.FAMILIES[family]:
        loaded = registry.load(PolicyNames(**{family: name}))
        assert getattr(loaded, family) is not None


def test_an_unknown_policy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="Did you mean .pack.") as refused:
        registry.load(PolicyNames(placement="packed"))
    assert refused.value.where == "policies.placement"


def test_an_outside_package_can_add_a_policy_as_its_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(registry.__file__).parent / "README.md").read_text()
    code, announced = re.findall(r"```(?:python|toml)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_policies.py").write_text(code)
    points = tomllib.loads(announced)["project"]["entry-points"]["llmsched.policies"]
    about = tmp_path / "my_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-policies\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (about / "entry_points.txt").write_text("\n".join(["[llmsched.policies]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))

    assert "smallest_first" in registry.names("ordering")
    text = "policies: {ordering: smallest_first, options: {ordering: {patiense_s: 60}}}"
    with pytest.raises(SpecError, match='unknown key "patiense_s" in the options of "smallest_first"') as refused:
        load_cluster(text)
    assert 'Did you mean "patience_s"' in refused.value.hint
    page_options = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert page_options and all(load_cluster(each) for each in page_options)
    patient = PolicyOptions("ordering", '{"patience_s":1.0}')  # the large one has waited for as long
    for options, first in (((), Launch("small", gpus=1)), ((patient,), Launch("large", gpus=4))):
        given = cluster("1 node x 4").policies(ordering="smallest_first", options=options)
        given.pending("large", gpus=4)
        given.pending("small", gpus=1)
        assert given.decide().decisions == [first]


def test_shortest_remaining_overtakes_the_long_one() -> None:
    given = cluster("1 node x 1").policies(ordering="shortest_remaining")
    given.pending("long", gpus=1, estimated_runtime_s=900.0)
    given.pending("unknown", gpus=1)
    given.pending("short", gpus=1, estimated_runtime_s=60.0)
    assert given.decide().decisions == [Launch("short", gpus=1)]


def test_least_attained_lets_newcomers_before_those_who_have_had_much() -> None:
    given = cluster("1 node x 1").policies(ordering="least_attained").scheduling(elastic=False)
    given.pending("old", gpus=1)
    given.pending("new", gpus=1)
    given.state.gangs["old/0"].served_gpu_s = 7200.0
    given.state.waiting.attach("again", None, given.state.gangs)
    assert given.decide().decisions == [Launch("new", gpus=1)]


def test_fair_share_gives_the_next_start_to_the_queue_that_has_least() -> None:
    given = cluster("1 node x 3").queue("a", gpus=0).queue("b", gpus=0).queue("pool", gpus=3)
    given.policies(ordering="fair_share")
    given.running("a0", gpus=1, queue="a")
    given.running("a1", gpus=1, queue="a")
    given.pending("a2", gpus=1, queue="a")
    given.pending("b0", gpus=1, queue="b")
    assert given.decide().decisions == [Launch("b0", gpus=1)]


def test_pack_fills_the_fullest_node_and_spread_the_emptiest() -> None:
    for policy, expected in (("pack", "n-0"), ("spread", "n-1")):
        given = cluster("2 nodes x 4").policies(placement=policy)
        given.running("a", gpus=1)
        given.pending("b", gpus=1)
        (launch,) = given.decide().plan.decisions
        assert launch.placement[0].node == expected  # type: ignore[union-attr]


def test_topology_stays_in_the_rack_that_is_in_use() -> None:
    state = State()
    for number, rack in enumerate("aabb"):
        state.apply(NodeJoined(0.0, Node(f"n{number}", Resources(4000), "A100", (("rack", rack),))))
    state.capacity.change("n2", Resources(4000), -1, 1)
    policy = registry.load(PolicyNames(placement="topology")).placement
    scores = {node.node.id: policy.score(Resources(1000), node, View(state)) for node in state.nodes.values()}
    assert scores["n3"] > scores["n0"] == scores["n1"]  # n3 is as empty as they are, its rack is not


def test_least_fragmentation_keeps_whole_gpus_with_cpus_beside_them() -> None:
    given = cluster("2 nodes x 2").policies(placement="least_fragmentation")
    given.running("half", gpus=0.5)
    given.pending("whole", gpus=2)
    given.pending("other-half", gpus=0.5)
    placed = {d.gang: d.placement[0].node for d in given.decide().plan.decisions}  # type: ignore[union-attr]
    assert placed["whole/0"] != placed["other-half/0"]


class Counting(LeastFragmentation):
    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.alike = alike
        self.asked = 0

    def score(self, bundle: Resources, node: NodeView, view: View) -> int:
        self.asked += 1
        return super().score(bundle, node, view)


def test_one_node_of_a_likeness_is_asked_for_all_and_the_choice_is_the_same() -> None:
    state, few, every = State(), Counting(True), Counting(False)
    for number in range(12):
        state.apply(NodeJoined(0.0, Node(f"n{number:02}", Resources(4000, 8000 * (1 + number % 2), 1 << 34))))
    known = registry.load(PolicyNames())
    for number, gpus in enumerate((500, 2000, 1000, 300, 700, 4000, 1000, 500)):
        group = Group("task", 1, (Option(None, Resources(gpus, 3000, 1 << 30)),))
        state.apply(Submitted(float(number), Workload(f"w{number}", f"w{number}", "task", (group,))))
        chosen = decide(state, replace(known, placement=few)).decisions
        state.memo.clear()
        assert chosen == decide(state, replace(known, placement=every)).decisions
        state.apply(chosen[0])
        assert not violations(state)
    assert few.asked < every.asked / 2


def test_newest_first_takes_back_what_started_last() -> None:
    given = cluster("1 node x 2").queue("q", gpus=2).rules(within_queue="lower_priority")
    given.policies(preemption="newest_first")
    given.running("old", gpus=1, priority=10)
    given.running("new", gpus=1, priority=10)
    given.pending("in", gpus=1, priority=80)
    assert given.decide().decisions == [Preempt("new", "in_queue_priority"), Nominate("in", gpus=1)]


def endpoint(ongoing: float, replicas: int, **knobs: float) -> WorkloadView:
    group = Group("replica", 1, (Option(None, Resources(1000)),))
    spec = Workload("e", "e", "serve", (group,), min_replicas=0, max_replicas=9, autoscaling=Autoscaling(**knobs))  # type: ignore[arg-type]
    record = WorkloadState(spec, 0.0, [], {}, wanted_replicas=replicas)
    record.load = (ongoing, 0.0, 0.0)
    return WorkloadView(record)


def at(now: float) -> View:
    state = State()
    state.now = now
    return View(state)


def test_load_must_outlast_the_delay_before_replicas_follow() -> None:
    policy, serve = OngoingRequests(), endpoint(8.0, 1, target_ongoing_requests=2.0, upscale_delay_s=30.0)
    replicas, memory = policy.wanted(serve, "", at(0.0))
    assert replicas == 1 and memory
    assert policy.ask_again(serve, memory, at(1.0)) == 30.0, "not before: nothing can come of it"
    assert policy.wanted(serve, memory, at(29.0))[0] == 1
    assert policy.wanted(serve, memory, at(30.0)) == (4, "")


def test_the_last_replica_goes_only_after_its_own_longer_delay() -> None:
    knobs = {"downscale_delay_s": 60.0, "downscale_to_zero_delay_s": 600.0}
    policy, serve = OngoingRequests(), endpoint(0.0, 1, **knobs)
    _, memory = policy.wanted(serve, "", at(0.0))
    assert policy.wanted(serve, memory, at(60.0))[0] == 1
    assert policy.wanted(serve, memory, at(600.0))[0] == 0


def test_bounds_by_cron_hold_from_their_minute_on_though_nobody_asks_for_anything() -> None:
    policy = OngoingRequests()
    serve = endpoint(0.0, 1, bounds=(("30 0 * * *", 2, 2), ("45 0 * * *", 1, 2)))  # type: ignore[arg-type]
    noon = 43_200.0
    assert policy.wanted(serve, "", at(noon))[0] == 1
    assert policy.ask_again(serve, "", at(noon)) == 86_400.0 + 1800, "the next that fires, of any of them"
    assert policy.wanted(serve, "", at(86_400.0 + 1800))[0] == 2
    assert policy.ask_again(serve, "", at(86_400.0 + 1800)) == 86_400.0 + 2700
    assert policy.ask_again(endpoint(0.0, 1), "", at(noon)) is None


def test_a_request_wakes_an_endpoint_at_once() -> None:
    assert OngoingRequests().wanted(endpoint(1.0, 0, upscale_delay_s=30.0), "", at(0.0))[0] == 1
