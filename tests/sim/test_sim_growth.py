"""The cluster grows for whoever waits and shrinks when nobody does: what it asks for, when it comes, what it costs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsched.cli.main import cli
from llmsched.core.configuration import Configuration, Flavor, NodeType, Queue
from llmsched.sim import fleet, provider, report, simulator
from llmsched.sim.faults import Faults
from llmsched.sim.traces import table

HEADER = "job_id,submit_s,num_gpus,duration_s,flavor\n"
A100 = Flavor("a100", (("ray.io/accelerator-type", "A100"),), price_per_gpu_hour=2.0)
L4 = Flavor("l4", (("ray.io/accelerator-type", "L4"),), price_per_gpu_hour=0.5)
BIG = NodeType("big", "a100", gpus=8, max=4, idle_timeout_s=300.0)
SMALL = NodeType("small", "l4", gpus=1, max=4, idle_timeout_s=300.0)


def run(text, types=(BIG,), nodes="", ceiling=None, shortages=(), until_s=None):
    jobs = table.parse(HEADER + text, "t.csv")
    configuration = Configuration(
        queues=(Queue("default"),), flavors=(A100, L4), node_types=tuple(types), price_ceiling_per_hour=ceiling
    )
    options = simulator.Options(
        fleet.parse(nodes) if nodes else (), configuration, startup_s=100.0, shortages=tuple(shortages), until_s=until_s
    )
    found = simulator.simulate(jobs, options)
    return found, {each.job.id: each.finished_s for each in found.outcomes}, report.figures(found)


def test_a_node_is_asked_for_comes_after_its_delay_and_is_paid_for_until_it_leaves():
    found, ends, figures = run("a,0,8,1000,A100\nb,5000,1,10,A100\n")
    assert ends == {"a": 1100.0, "b": 5110.0}
    first, second = found.stays
    assert (first.joined, first.left) == (100.0, 1400.0)  # until it was idle for 300 s
    assert figures["nodes_asked"] == 2 and figures["nodes_released"] == 1
    assert figures["cost"] == pytest.approx((1300 + 10) / 3600 * 16, abs=0.01)
    assert figures["peak_price_per_hour"] == 16.0


def test_room_that_is_there_is_not_asked_for_again():
    found, ends, figures = run("a,0,16,100,A100\n", nodes="1x8:A100")
    assert figures["nodes_asked"] == 1 and ends["a"] == 200.0


def test_jobs_that_fit_together_share_one_new_node():
    _, ends, figures = run("".join(f"j{i},0,2,50,A100\n" for i in range(4)))
    assert figures["nodes_asked"] == 1 and set(ends.values()) == {150.0}


def test_no_node_is_asked_for_above_the_price_ceiling_and_whoever_waits_is_told():
    _, ends, figures = run("a,0,8,1000,A100\nb,0,8,1000,A100\n", ceiling=16.0)
    assert sorted(ends.values()) == [1100.0, 2100.0]
    assert figures["peak_price_per_hour"] == 16.0


def test_another_type_is_tried_when_one_does_not_come_and_the_first_again_when_it_may_be_back():
    other = BIG._replace(name="other")
    never = provider.Shortage("big", 0.0, 1e6)
    found, ends, figures = run("a,0,8,1000,A100\n", types=(BIG, other), shortages=(never,))
    assert ends["a"] == 900.0 + 100.0 + 1000.0  # stood up for a quarter of an hour
    assert [stay.node.node_type for stay in found.stays] == ["other"]
    late = provider.Shortage("big", 0.0, 3000.0)
    found, ends, _ = run("a,0,8,1000,A100\n", shortages=(late,))
    assert ends["a"] == 3000.0 + 100.0 + 1000.0  # there is no other: it goes on waiting for this one


def test_a_node_goes_when_it_is_idle_although_somebody_waits_for_another_kind():
    found, ends, _ = run("a,0,8,100,A100\nb,0,4,2000,L4\nc,0,1,2000,L4\n", types=(BIG, SMALL), until_s=1500.0)
    (big,) = [stay for stay in found.stays if stay.node.node_type == "big"]
    assert big.left == 500.0
    assert ends["c"] is None


def test_a_lost_node_is_replaced_without_asking_again():
    jobs = table.parse(HEADER + "a,0,8,20000,A100\n", "t.csv")
    configuration = Configuration(queues=(Queue("default"),), flavors=(A100,), node_types=(BIG,))
    options = simulator.Options((), configuration, startup_s=100.0, faults=Faults(9000.0, 600.0, 3))
    found = simulator.simulate(jobs, options)
    assert found.node_losses >= 1 and found.outcomes[0].finished_s is not None
    assert len(found.stays) == found.node_losses + 1


JOB = st.tuples(
    st.integers(0, 4000), st.sampled_from([1, 2, 8, 12]), st.integers(10, 3000), st.sampled_from(["A100", "L4"])
)


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(JOB, min_size=1, max_size=12), least=st.integers(0, 2), ceiling=st.sampled_from([None, 34.0, 64.0])
)
def test_whatever_comes_the_bounds_hold_and_everything_runs_in_the_end(jobs, least, ceiling):
    big, small = BIG._replace(min=least, max=4), SMALL._replace(max=12)
    rows = [(at, gpus if kind == "A100" else min(gpus, 4), length, kind) for at, gpus, length, kind in sorted(jobs)]
    text = "".join(f"j{i},{at},{gpus},{length},{kind}\n" for i, (at, gpus, length, kind) in enumerate(rows))
    found, ends, figures = run(text, types=(big, small), ceiling=ceiling)
    assert all(end is not None for end in ends.values())
    for node_type in (big, small):
        at_once = provider.bill([s for s in found.stays if s.node.node_type == node_type.name], 0.0, 1e9).peak_nodes
        assert at_once <= node_type.max
    assert ceiling is None or figures["peak_price_per_hour"] <= ceiling
    assert figures["nodes_asked"] <= least + sum(gpus for _, gpus, _, _ in rows)  # nobody asks in circles


def test_the_command_line_rents_a_whole_cluster_and_says_what_it_cost(tmp_path):
    trace, config = tmp_path / "t.csv", tmp_path / "c.yaml"
    trace.write_text("job_id,submit_s,num_gpus,duration_s\na,0,8,1000\n")
    config.write_text(
        "flavors: [{name: A100, price_per_gpu_hour: 2}]\nnode_types: [{name: p4d, flavor: A100, gpus: 8, max: 2}]\n"
    )
    words = ["sim", "run", str(trace), "--config", str(config), "--startup-delay", "60"]
    found = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    figures = json.loads(found.stdout)
    assert (figures["nodes_asked"], figures["gpus"], figures["avg_jct_s"]) == (1, 8, 1060.0)
    assert figures["cost"] == pytest.approx(1000 / 3600 * 16, abs=0.01)
    drawn = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert "4.44 for 0.3 node hours; at most 16.00 an hour" in drawn.output
    assert "p4d-1" in (tmp_path / "out" / "timeline.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--nodes: is missing"),
        (["--nodes", "1x8", "--shortage", "p4d"], "is not TYPE=FROM..TO"),
        (["--nodes", "1x8", "--shortage", "p4d=0..9"], 'no node type is called "p4d"'),
        (["--nodes", "2x8", "--drain", "n1=9"], "is not NODE=FROM..TO"),
        (["--nodes", "2x8", "--drain", "n2=0..9"], 'no node is called "n2". There are n0 to n1.'),
    ],
)
def test_words_that_make_no_cluster_are_refused(tmp_path, words, said):
    trace = tmp_path / "t.csv"
    trace.write_text("job_id,submit_s,num_gpus,duration_s\na,0,8,1000\n")
    found = CliRunner().invoke(cli, ["sim", "run", str(trace), *words])
    assert found.exit_code == 2 and said in found.output
