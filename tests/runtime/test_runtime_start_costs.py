"""What the start of a replica costs: measured in steps, read with care, told in its story."""

import pytest

from llmsched.runtime.start_costs import MOST_S, Laps, read, with_process


def test_each_lap_has_the_time_since_the_one_before():
    laps = Laps()
    laps.lap("imports")
    laps.lap("load")
    laps.lap("load")
    assert list(laps.took) == ["imports", "load"] and all(seconds >= 0 for seconds in laps.took.values())


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"load": 1.23456, "imports": 2}, {"imports": 2, "load": 1.235}),
        ({"load": float("nan"), "imports": -1, "first_token": "soon", "queue": None}, {}),
        ({"load": 1e300}, {"load": MOST_S}),
        ({"load": 1.0, "made up": 5.0}, {"load": 1.0}),
        ("nothing", {}),
        (None, {}),
    ],
)
def test_what_a_replica_says_is_made_valid(said, meant):
    assert read(said) == meant


def test_the_rest_of_the_whole_is_its_process_and_never_less_than_nothing():
    assert with_process({"load": 2.0}, 7.5) == {"load": 2.0, "process": 5.5}
    assert with_process({"load": 2.0}, 1.0) == {"load": 2.0, "process": 0.0}
    assert with_process({"load": 2.0}, None) == {"load": 2.0}
    assert with_process({"load": 2.0}, 7.5, is_fork=True) == {"load": 2.0, "fork": 5.5}
