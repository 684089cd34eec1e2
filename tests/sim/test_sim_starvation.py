"""Gangs as large as the whole pool, behind singles that ask for more than there is: each starts within its bound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmsched.core.lane import PART, PATIENCE, SHARE
from llmsched.sim import fleet, runtimes, setting, simulator
from llmsched.sim.traces.job import Job

GPUS, LASTS_S, EVERY_S = 4, 75.0, 17.0  # of each single: 1.1 times what there is
RUNS_S, CAME_S, QUANTUM_S = 100.0, (500.0, 505.0, 510.0), 60.0


def ran(ordering: str, told: str, until_s: float, hold_after_s: float) -> dict[str, simulator.Outcome]:
    jobs = [Job(f"s{n}", n * EVERY_S, 1, ((1, LASTS_S),)) for n in range(int(until_s / EVERY_S))]
    jobs += [Job(f"whole{n}", at, GPUS, ((GPUS, RUNS_S),)) for n, at in enumerate(CAME_S)]
    jobs.sort(key=lambda job: (job.submit_s, job.id))
    base = setting.configuration(jobs, ordering=ordering, quantum_s=QUANTUM_S)
    configuration = replace(base, scheduling=replace(base.scheduling, hold_after_s=hold_after_s))
    options = simulator.Options(
        fleet.parse("1x4"), configuration, estimates=runtimes.parse_estimates(told), leave_s=0.0, until_s=until_s
    )
    return {outcome.job.id: outcome for outcome in simulator.simulate(jobs, options).outcomes}


@pytest.mark.parametrize("told", ["none", "exact"])
def test_they_start_one_after_the_other_once_those_that_ran_have_ended(told: str) -> None:
    hold_s = 600.0
    found = ran("priority", told, 2500.0, hold_s)
    for number, came in enumerate(CAME_S):
        began = found[f"whole{number}"].first_start_s
        assert began is not None and began <= came + hold_s + LASTS_S + number * RUNS_S + 5.0
    assert any(outcome.finished_s is None for outcome in found.values()), "there was more than enough to do"


@pytest.mark.parametrize("ordering", ["shortest_remaining", "finish_time_fair"])
def test_by_rank_the_lane_pays_for_one_after_the_other(ordering: str) -> None:
    """What those that were there before it are owed, paid at a twentieth of the GPUs; who comes later adds nothing."""
    hold_s, until_s = 50.0, 16_000.0
    found = ran(ordering, "exact", until_s, hold_s)
    for number, came in enumerate(CAME_S):
        before = [each for each in found.values() if each.job.submit_s < came and (each.finished_s or until_s) > came]
        owed = sum(each.job.gpus * max(hold_s, 2 * each.job.runtimes[0][1]) for each in before)
        bound = came + PATIENCE * hold_s + owed / (SHARE * GPUS) + RUNS_S / PART + 4 * QUANTUM_S
        ended = found[f"whole{number}"].finished_s
        assert ended is not None and ended <= bound < until_s
    starved = ran(ordering, "exact", 8000.0, 0.0)  # without the lane
    assert [starved[f"whole{number}"].first_start_s for number in range(len(CAME_S))] == [None, None, None]


@pytest.mark.parametrize(("hold_s", "gpus"), [(60.0, 1), (600.0, 1), (60.0, 3)])
def test_where_all_wait_for_long_the_order_decides_among_those_that_are_alike(hold_s: float, gpus: int) -> None:
    """Each fits wherever one ends. Held for after the same time, all would begin as they came."""
    rows = [(n, (30.0, 120.0, 30.0, 600.0)[n % 4]) for n in range(160)]
    jobs = [Job(f"s{n}", n * EVERY_S, gpus, ((gpus, lasts),)) for n, lasts in rows]
    mean, worst = {}, {}
    for patience in (hold_s, 0.0):
        base = setting.configuration(jobs, ordering="shortest_remaining", preempt=False)
        configuration = replace(base, scheduling=replace(base.scheduling, hold_after_s=patience))
        told = runtimes.parse_estimates("exact")
        options = simulator.Options(fleet.parse(f"1x{4 * gpus}"), configuration, estimates=told, leave_s=0.0)
        found = simulator.simulate(jobs, options).outcomes
        waits = [each.first_start_s - each.job.submit_s for each in found if each.first_start_s is not None]
        assert len(waits) == len(jobs)
        mean[patience], worst[patience] = sum(waits) / len(waits), max(waits)
    assert worst[0.0] > 2 * hold_s, "there was more than enough to do"
    assert mean[hold_s] <= 1.02 * mean[0.0] and worst[hold_s] <= 1.02 * worst[0.0]
