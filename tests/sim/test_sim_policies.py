"""What the measured policies are for, each on the smallest trace that shows it."""

from __future__ import annotations

import pytest

from llmsched.sim import fleet, report, runtimes, setting, simulator
from llmsched.sim.recorder import Recorder
from llmsched.sim.traces import table

RIGID = "job_id,submit_s,num_gpus,duration_s\n"
CURVE = "job_id,submit_s,num_gpus,runtime_1_s,runtime_2_s,runtime_3_s,runtime_4_s\n"


def run(text, *, nodes="1x4", estimates="exact", restart_cost_s=0.0, recorder=None, quantum_s=60.0, **given):
    jobs = table.parse(text, "t.csv")
    configuration = setting.configuration(jobs, restart_cost_s=restart_cost_s, quantum_s=quantum_s, **given)
    options = simulator.Options(
        fleet.parse(nodes),
        configuration,
        estimates=runtimes.parse_estimates(estimates),
        restart_cost_s=restart_cost_s,
    )
    found = simulator.simulate(jobs, options, recorder)
    return found, {outcome.job.id: outcome.finished_s for outcome in found.outcomes}


def test_marginal_throughput_gives_gpus_to_the_job_that_scales():
    recorder = Recorder()
    text = CURVE + "scales,0,1,900,450,300,225\nstuck,0,1,900,890,880,870\n"
    run(text, recorder=recorder, ordering="fifo", elasticity="marginal_throughput", quantum_s=0.0)
    first = {stay.gang: sum(count for _, count in stay.nodes) for stay in recorder.stays if stay.start == 0.0}
    assert first == {"scales/0": 3, "stuck/0": 1}


def test_goodput_lets_whoever_ends_soon_go_first_when_gpus_are_short():
    text = CURVE + "".join(f"long{i},0,1,9000,4500,3000,2250\n" for i in range(4)) + "short,10,1,60,30,20,15\n"
    _, ends = run(text, ordering="finish_time_fair", elasticity="goodput", quantum_s=0.0)
    assert ends["short"] <= 10 + 60
    assert max(ends.values()) <= 9200  # 36,060 GPU-seconds on four GPUs, and nothing is thrown away


@pytest.mark.parametrize("longs", [1, 4, 40])
def test_goodput_lets_a_minute_of_work_wait_for_no_hours_although_a_restart_costs_something(longs):
    text = CURVE + "".join(f"long{i},0,1,9000,4500,3000,2250\n" for i in range(longs)) + "short,500,1,60,30,20,15\n"
    _, ends = run(text, ordering="finish_time_fair", elasticity="goodput", quantum_s=0.0, restart_cost_s=30.0)
    assert ends["short"] <= 500 + 60 + 30 + 30, "its work, its start, and who makes room"


def test_goodput_does_not_restart_a_job_that_is_nearly_done_for_little():
    text = CURVE + "a,0,1,100,50,34,25\nb,60,1,100,50,34,25\n"
    found, _ = run(text, ordering="finish_time_fair", elasticity="goodput", restart_cost_s=30.0, quantum_s=0.0)
    assert found.resizes == 0


def test_equals_of_unknown_length_do_not_take_turns_every_quantum():
    """A replay of elastic jobs of which each could use all GPUs spent its days in 53,994 preemptions."""
    text = CURVE + "".join(f"j{i},{i},1,80000,40000,26667,20000\n" for i in range(3))
    found, ends = run(text, ordering="finish_time_fair", estimates="none", restart_cost_s=30.0)
    assert found.preemptions <= 12  # a level or two each
    assert max(ends.values()) < 60000 + 30 * (3 + found.preemptions + found.resizes) + 180


def test_a_long_pole_starts_early_so_that_it_does_not_run_alone_at_the_end():
    text = RIGID + "pole,0,1,1000\n" + "".join(f"s{i},0,1,200\n" for i in range(15))
    _, by_time = run(text, ordering="shortest_remaining")
    _, by_tiers = run(text, ordering="finish_time_fair")
    assert max(by_time.values()) > 1500
    assert max(by_tiers.values()) < 1400  # not 1000: jobs that waited for long were let through in between


def test_without_run_times_short_jobs_still_pass_a_long_one():
    text = RIGID + "long,0,4,50000\n" + "".join(f"s{i},{9000 + i},1,100\n" for i in range(4))
    _, ends = run(text, ordering="finish_time_fair", estimates="none")
    assert max(ends[f"s{i}"] for i in range(4)) < 9300


def test_nobody_is_evicted_for_a_job_that_would_not_fit_all_the_same():
    text = RIGID + "a,0,2,1000\nb,0,2,1000\nlarge,5,4,10\n"
    found, ends = run(text, nodes="1x4", ordering="finish_time_fair", preempt=False)
    assert found.preemptions == 0
    assert ends["large"] == 1010.0


def test_measured_steps_find_the_long_pole_behind_a_wrong_estimate():
    """Twelve short jobs show that users are wrong by two either way, and how long a step takes; then the pole comes."""
    columns = "job_id,submit_s,num_gpus,duration_s,model,steps,estimated_s\n"
    told = (100, 400, 190, 350)
    past = "".join(f"p{i},{250 * (i // 4)},1,200,m,200,{told[i % 4]}\n" for i in range(12))
    crowd = "".join(f"s{i},1000,1,300,m,300,310\n" for i in range(24))
    text = columns + past + "pole,1000,1,2400,m,2400,300\n" + crowd
    _, counted = run(text, estimates="column", ordering="finish_time_fair")
    _, told_only = run(text.replace("steps", "count"), estimates="column", ordering="finish_time_fair")
    assert counted["pole"] < 3700 < 4100 < told_only["pole"]


def test_a_report_says_that_steps_and_models_were_told():
    text = "job_id,submit_s,num_gpus,duration_s,job_type,total_steps\na,0,1,60,m,10\n"
    job = table.parse(text, "t.csv")[0]
    assert (job.model, job.steps) == ("m", 10.0)
    for words, steps, told in (
        ("exact", True, "exact run times, numbers of steps, models by name"),
        ("exact", False, "exact run times, models by name"),
        ("none", True, "no run times, models by name"),
    ):
        estimates = runtimes.parse_estimates(words, steps)
        options = simulator.Options(fleet.parse("1x1"), setting.configuration([job]), estimates=estimates)
        assert report.figures(simulator.simulate([job], options))["told"] == told
        assert (runtimes.workload_of(job, estimates, 1.0, 0.0).steps is not None) == (steps and words != "none")
