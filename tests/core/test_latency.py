"""What is learnt of latency against load, and how much load a target allows."""

from __future__ import annotations

import pytest

from llmsched.core.latency import AIM, FORGOTTEN_S, LEVELS_KEPT, SURE, Curve, Latency, fitted, learnt, mean_s, most_load
from llmsched.core.workload import Slo

ANSWER_2S = Slo(latency_p95_s=2.0 / AIM)


def measured(*points: tuple[float, float], at: float = 0.0) -> Curve:
    """A curve from (load, p95 of the whole answer)."""
    curves: tuple[Curve, ...] = ()
    for load, seconds in points:
        curves = learnt(curves, Latency("m", "L4", load, 100, seconds / 2, latency_p95_s=seconds), at)
    (curve,) = curves
    return curve


def test_between_two_levels_the_load_is_where_the_line_meets_the_target() -> None:
    reach = most_load(measured((1.0, 1.0), (4.0, 1.6), (8.0, 2.4)), ANSWER_2S, 2.0)
    assert reach.load == pytest.approx(6.0) and (reach.seconds, reach.at_load) == (1.6, 4.0)


def test_a_level_that_by_chance_was_faster_than_a_lower_one_is_no_reason_to_load_more() -> None:
    curve = measured((2.0, 1.0), (4.0, 3.0), (8.0, 1.4))
    assert fitted(curve.levels, "latency_p95") == [(2.0, 1.0), (4.0, 2.2), (8.0, 2.2)]
    assert most_load(curve, ANSWER_2S, 2.0).load == pytest.approx(2.0 + 2.0 * 1.0 / 1.2)


def test_beyond_what_was_measured_one_step_is_tried_and_not_what_a_line_would_promise() -> None:
    assert most_load(measured((1.0, 0.2), (4.0, 0.3)), ANSWER_2S, 2.0).load == pytest.approx(5.0)
    assert most_load(measured((0.1, 0.2)), ANSWER_2S, 2.0).load == 2.0, "an idle replica says nothing against 2"
    assert most_load(measured((1.0, 0.5), (2.0, 1.9)), ANSWER_2S, 9.0).load < 2.1, "the knee is near"


def test_at_the_target_itself_every_second_measurement_would_be_over_it() -> None:
    curve = measured((1.0, 0.1), (8.0, 2.0))
    loads = [most_load(curve, Slo(latency_p95_s=seconds), 2.0).load for seconds in (2.0, 2.0 / AIM)]
    assert loads[0] < loads[1] == pytest.approx(8.0)
    assert most_load(measured((0.5, 1.95), (2.0, 2.5)), Slo(latency_p95_s=2.0), 2.0).load == 0.5, "it is just held"


def test_a_target_that_one_request_alone_misses_is_out_of_reach_and_a_high_load_is_halved_first() -> None:
    assert most_load(measured(*[(0.4, 2.5)] * SURE), ANSWER_2S, 2.0).load == 0.0
    assert most_load(measured((8.0, 2.5)), ANSWER_2S, 2.0).load == 4.0


def test_one_slow_measurement_which_met_a_cold_start_does_not_say_that_nothing_helps() -> None:
    slow_once = [(0.4, 2.5)] * (SURE - 1)
    assert most_load(measured(*slow_once), ANSWER_2S, 2.0).load is None
    assert most_load(measured(*slow_once, (0.8, 3.0)), ANSWER_2S, 2.0).load == 0.0, "another load, and slow as well"
    assert (most_load(measured(*slow_once, *[(0.4, 0.5)] * 5), ANSWER_2S, 2.0).load or 0) > 0.4, "it has warmed up"


def test_of_two_targets_the_tighter_binds_and_one_that_nobody_measured_does_not() -> None:
    curve = Curve("m", "L4")
    found = (Latency("m", "L4", 2.0, 50, 1.0, 0.2, 0.03, 1.4), Latency("m", "L4", 6.0, 50, 1.5, 0.4, 0.08, 2.2))
    for each in found:
        (curve,) = learnt((curve,), each, 0.0)
    reach = most_load(curve, Slo(ttft_p95_s=0.6, tpot_p95_s=0.06), 2.0)
    assert reach.name == "tpot_p95" and 2.0 < reach.load < 6.0
    (silent,) = learnt((), Latency("m", "L4", 2.0, 50, 1.0), 0.0)
    assert most_load(silent, Slo(ttft_p95_s=0.5), 2.0).load is None


def test_what_is_kept_is_bounded_and_what_was_not_seen_for_long_is_forgotten() -> None:
    curves: tuple[Curve, ...] = ()
    for number in range(200):
        curves = learnt(curves, Latency("m", "L4", 0.06 * 1.07**number, 30, 1.0, latency_p95_s=1.0), number)
    assert len(curves[0].levels) == LEVELS_KEPT
    curves = learnt(curves, Latency("m", "L4", 3.0, 30, 1.0, latency_p95_s=1.0), 200 + FORGOTTEN_S)
    assert len(curves[0].levels) == 1
    for number in range(20):
        curves = learnt(curves, Latency(f"m{number}", "L4", 1.0, 30, 1.0), 0.0)
    assert len(curves) == 8 and curves[-1].model == "m19"


def test_an_answer_takes_in_the_mean_what_lies_between_its_neighbours() -> None:
    curve = measured((2.0, 2.0), (6.0, 4.0))
    assert [mean_s(curve, load) for load in (1.0, 4.0, 9.0)] == [1.0, 1.5, 2.0]
    assert mean_s(None, 1.0) is None
