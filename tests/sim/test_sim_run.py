"""The wind tunnel itself: hand-computed runs, the clock, faults, and equal digests in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from llmsched.core import configuration
from llmsched.errors import SpecError
from llmsched.sim import faults, fleet, report, runtimes, setting, simulator
from llmsched.sim.recorder import Recorder
from llmsched.sim.traces import table

HEAD = "job_id,submit_s,num_gpus,duration_s\n"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "traces" / "train"


def run(
    text, nodes="1x4", *, recorder=None, estimates="exact", restart_cost_s=0.0, elastic=None, flavors=True, **given
):
    jobs = table.parse(text, "t.csv", elastic=elastic)
    machines = fleet.parse(nodes)
    extra = {name: given.pop(name) for name in ("seed", "until_s", "faults", "joining", "drains") if name in given}
    configuration = setting.configuration(jobs, restart_cost_s=restart_cost_s, **given)
    options = simulator.Options(
        machines,
        configuration,
        estimates=runtimes.parse_estimates(estimates, flavors=flavors),
        restart_cost_s=restart_cost_s,
        **extra,
    )
    return simulator.simulate(jobs, options, recorder)


def finished(found):
    return {outcome.job.id: outcome.finished_s for outcome in found.outcomes}


def test_fifo_without_backfill_starts_nobody_before_those_ahead():
    found = run(HEAD + "a,0,3,100\nb,1,4,10\nc,2,1,5\n", ordering="fifo", backfill="off")
    assert finished(found) == {"a": 100.0, "b": 110.0, "c": 115.0}
    assert found.preemptions == 0


def test_easy_backfill_lets_a_short_job_pass_a_blocked_head_without_delaying_it():
    found = run(HEAD + "a,0,3,100\nb,1,4,10\nc,2,1,50\nd,3,1,500\n", ordering="fifo", backfill="easy")
    assert finished(found) == {"a": 100.0, "b": 110.0, "c": 52.0, "d": 610.0}


def test_a_job_takes_its_own_time_to_start_and_to_leave_where_the_trace_has_it(tmp_path):
    text = HEAD.replace("\n", ",start_s,leave_s,priority\n") + "a,0,4,100,20 11,7,10\nb,45,4,10,,,90\nc,46,4,10,5,,50\n"
    found = run(text, ordering="priority", backfill="off", preempt=True, quantum_s=10.0, restart_cost_s=3.0)
    # a works from 20 to 50 and leaves until 57; b starts in the usual 3 s, c in 5; a in 11, with 70 to do
    assert finished(found) == {"b": 57 + 3 + 10, "c": 70 + 5 + 10, "a": 85 + 11 + 70}
    assert report.figures(found)["paid"].endswith("; 2 jobs have figures of their own in the trace")
    table.write([outcome.job for outcome in found.outcomes], tmp_path / "again.csv")
    again = table.read(tmp_path / "again.csv")
    assert [(job.start_s, job.leave_s) for job in again] == [((20.0, 11.0), (7.0,)), ((), ()), ((5.0,), ())]


def test_a_node_that_is_drained_gives_its_work_to_others_and_takes_some_again_when_it_is_given_back():
    drains = fleet.parse_drains(("n0=30..60",), fleet.parse("2x1"))
    found = run(HEAD + "a,0,1,100\nb,0,1,50\n", "2x1", ordering="fifo", restart_cost_s=2.0, drains=drains)
    # a works from 2 to 30 on n0 and leaves until 31; b has n1 until 52, where a goes on after its restart
    assert finished(found) == {"b": 2 + 50, "a": 52 + 2 + 72}
    later = run(HEAD + "a,0,1,100\nb,0,1,90\n", "2x1", ordering="fifo", restart_cost_s=2.0, drains=drains)
    assert finished(later) == {"b": 2 + 90, "a": 60 + 2 + 72}  # n0 is given back first


UNLIKE = "job_id,submit_s,num_gpus,runtime_1_s:A100,runtime_1_s:T4\n"


def test_a_job_takes_its_time_on_the_gpu_that_it_got_and_never_gets_one_that_it_cannot_use():
    jobs = UNLIKE + "a,0,1,100,400\nb,1,1,100,120\nc,2,1,100,\n"
    found = run(jobs, "1x1:T4,1x1:A100", ordering="fifo", restart_cost_s=0.0)
    assert finished(found) == {"a": 100.0, "b": 121.0, "c": 200.0}


def test_who_is_told_nothing_of_flavors_takes_the_first_free_gpu():
    jobs = UNLIKE + "a,0,1,100,400\nb,1,1,100,\n"
    found = run(jobs, "1x1:T4,1x1:A100", ordering="fifo", flavors=False)
    assert finished(found) == {"a": 400.0, "b": 101.0}


def test_the_figures_follow_their_definitions():
    found = run(HEAD + "a,0,4,100\nb,0,4,50\n", ordering="fifo", backfill="off")
    figures = report.figures(found)
    assert figures["avg_jct_s"] == (100 + 150) / 2
    assert figures["avg_wait_s"] == 50.0
    assert figures["p99_wait_s"] == 100.0
    assert figures["makespan_s"] == 150.0
    assert figures["utilisation"] == 1.0
    assert figures["gpu_hours"] == pytest.approx(600 / 3600, abs=1e-3)
    assert figures["worst_ftf"] == 3.0  # b: 150 s for 50 s of work; two jobs on four GPUs contend for nothing
    assert figures["unfair_pct"] == 50.0
    assert {"jobs", "finished", "p50_jct_s", "p99_jct_s", "preemptions", "resizes", "quota_violations", "turns"} <= set(
        figures
    )
    assert {"turn_p50_ms", "turn_p99_ms", "wall_s", "digest"} <= set(figures)
    json.dumps(figures)


def test_a_restart_cost_is_paid_at_every_start():
    found = run(HEAD + "a,0,4,100\n", ordering="fifo", restart_cost_s=30.0)
    assert finished(found) == {"a": 130.0}
    assert report.figures(found)["lost_gpu_hours"] == pytest.approx(120 / 3600, abs=1e-3)


def test_by_rank_a_short_job_runs_before_a_long_one_from_the_next_quantum_on():
    text = HEAD + "long,0,4,10000\n" + "".join(f"s{i},10,4,60\n" for i in range(3))
    found = run(text, ordering="shortest_remaining", quantum_s=100.0)
    ends = finished(found)
    assert [ends[f"s{i}"] for i in range(3)] == [161.0, 221.0, 281.0]  # long leaves in a second
    assert ends["long"] == 10181.0
    assert found.preemptions == 1


def test_an_elastic_job_takes_what_is_free_and_gives_it_back():
    curve = "job_id,submit_s,num_gpus,runtime_1_s,runtime_2_s,runtime_4_s\n"
    curve += "big,0,4,4000,2000,1000\nsmall,100,4,400,200,100\n"
    found = run(curve, ordering="finish_time_fair", elasticity="goodput", quantum_s=0.0)
    ends = finished(found)
    assert ends["small"] <= 350.0
    assert found.resizes + found.preemptions >= 1
    assert ends["big"] <= 1150.0


def test_the_clock_stops_at_until_and_says_why_the_rest_did_not_finish():
    found = run(HEAD + "a,0,4,100\nb,1,4,100\n", ordering="fifo", until_s=50.0)
    assert found.ended_s == 50.0
    assert finished(found) == {"a": None, "b": None}
    assert "4 x 1 GPU" in found.outcomes[1].why


def test_a_job_larger_than_the_cluster_is_refused_with_its_row():
    with pytest.raises(SpecError, match=r"row 3: column num_gpus: job b needs 5 GPUs, there are 4"):
        run(HEAD + "a,0,4,100\nb,1,5,100\n")


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(SpecError, match='Did you mean "fifo"'):
        run(HEAD + "a,0,4,100\n", ordering="fifi")


def test_a_lost_node_costs_the_work_since_the_last_checkpoint_and_the_job_goes_on():
    found = run(HEAD + "a,0,4,5000\n", faults=faults.Faults(2000.0, 100.0, 7))
    assert found.node_losses >= 1
    assert finished(found)["a"] > 5000.0
    assert found.outcomes[0].starts == found.node_losses + 1 or found.outcomes[0].starts >= 2


def test_nodes_that_join_later_are_used():
    joining = fleet.parse_joining(("100=1x4",), 1)
    found = run(HEAD + "a,0,4,1000\nb,0,4,1000\n", joining=joining, ordering="fifo")
    assert sorted(finished(found).values()) == [1000.0, 1100.0]


def test_estimates_are_wrong_by_a_factor_that_depends_on_seed_and_job_only():
    wrong = runtimes.parse_estimates("error:0.5")
    drawn = [wrong.factor(3, f"job-{i}") for i in range(400)]
    assert all(0.5 <= factor <= 1.5 for factor in drawn)
    assert 0.95 < sum(drawn) / len(drawn) < 1.05
    assert drawn == [wrong.factor(3, f"job-{i}") for i in range(400)]
    assert runtimes.Estimates("none").factor(3, "job-1") == 1.0
    with pytest.raises(SpecError):
        runtimes.parse_estimates("error:2")


def test_a_quota_is_never_exceeded_and_idle_quota_is_lent(tmp_path):
    file = tmp_path / "llmsched.yaml"
    file.write_text(
        "cohorts: [{name: all}]\nqueues:\n"
        '  - {name: a, cohort: all, quota: {"*": {nominal: 2, borrowing_limit: 1}}}\n'
        '  - {name: b, cohort: all, quota: {"*": {nominal: 2}}}\n'
        "scheduling: {order: best_effort, quantum: 60s, preemption: {within_queue: by_rank, reclaim: any}}\n"
    )
    text = "job_id,submit_s,num_gpus,duration_s,queue\n" + "".join(f"a{i},0,1,100,a\n" for i in range(6))
    recorder = Recorder()
    found = run(text, recorder=recorder, file=file, ordering="least_attained")
    assert max(held for _, held, _ in recorder.load) == 3  # two of its own, one borrowed
    assert found.quota_violations == 0


def test_the_timeline_knows_who_held_what_and_why_the_others_waited():
    recorder = Recorder()
    run(HEAD + "a,0,4,100\nb,1,4,10\n", recorder=recorder, ordering="fifo")
    assert [(stay.gang, stay.start, stay.end, stay.nodes) for stay in recorder.stays] == [
        ("a/0", 0.0, 100.0, (("n0", 4),)),
        ("b/0", 100.0, 110.0, (("n0", 4),)),
    ]
    (wait,) = [wait for wait in recorder.waits if wait.gang == "b/0"]
    assert (wait.start, wait.end, wait.code) == (1.0, 100.0, "nodes")


DIGEST = """
import sys
from llmsched.sim import fleet, runtimes, setting, simulator
from llmsched.sim.traces import table
jobs = table.parse(sys.stdin.read(), "t.csv")
configuration = setting.configuration(jobs, ordering="finish_time_fair", restart_cost_s=30.0)
options = simulator.Options(fleet.parse("4x4"), configuration, estimates=runtimes.Estimates("error", 0.5),
                            restart_cost_s=30.0, seed=5)
print(simulator.simulate(jobs, options).digest)
"""


def test_the_same_trace_gives_the_same_digest_in_two_processes_with_two_hash_seeds():
    rows = "".join(f"j{i},{i * 37 % 900},{1 + i % 5},{100 + i * 71 % 3000},q{i % 3}\n" for i in range(60))
    digests = set()
    for seed in ("1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            input="job_id,submit_s,num_gpus,duration_s,queue\n" + rows,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            timeout=PATIENCE_S,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert len(digests.pop()) == 64


@pytest.mark.skipif(not SHARED.exists(), reason="the development traces are not beside this checkout")
def test_shockwave_120_beats_every_published_figure_in_one_run():
    jobs = table.read(SHARED / "shockwave_120.csv", duration_column="true_duration_s")
    configuration = setting.configuration(jobs, ordering="finish_time_fair")
    found = report.figures(simulator.simulate(jobs, simulator.Options(fleet.parse("8x4:V100"), configuration)))
    assert found["makespan_s"] <= 21_100
    assert found["avg_jct_s"] <= 7_700
    assert found["worst_ftf"] <= 0.96
    assert found["unfair_pct"] == 0


def test_by_rank_nobody_is_started_on_what_others_have_reserved_only_to_be_evicted_again():
    text = "job_id,submit_s,num_gpus,min_gpus,max_gpus,duration_s,queue\na,0,1,1,4,9000,other\nb,5,1,1,1,9000,other\n"
    window = configuration.Reservation("demo", 1000.0, 3600.0, queue="default", gpus_milli=1000)
    jobs = table.parse(text, "t.csv")
    base = setting.configuration(jobs, ordering="finish_time_fair", quantum_s=60.0)
    base = replace(base, reservations=(window,), queues=(*base.queues, configuration.Queue("default")))
    found = simulator.simulate(jobs, simulator.Options(fleet.parse("1x2:V100"), base))
    assert all(one.finished_s is not None for one in found.outcomes)
    assert found.preemptions <= 2
