"""How slow replicas answer at which load, as the gateway measures it."""

from __future__ import annotations

import asyncio

import pytest
from gateway_house import House

from llmsched.core.latency import Latency
from llmsched.gateway.latencies import ENOUGH, LONGEST_S, Kind, Latencies

L4, A100 = Kind("hf://m", "L4"), Kind("hf://m", "A100")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measuring(**replicas: Kind) -> tuple[Latencies, Clock]:
    clock = Clock()
    latencies = Latencies(clock)
    latencies.routed({"qwen": replicas})
    return latencies, clock


def asked(latencies: Latencies, clock: Clock, replica: str, seconds: float, is_well: bool = True) -> None:
    took = latencies.begin("qwen", replica)
    clock.now += seconds
    took.end(is_well)
    latencies.end("qwen", replica, took)


def test_the_load_is_what_each_replica_of_a_flavor_had_in_flight_in_the_mean() -> None:
    latencies, clock = measuring(a=L4, b=L4, c=A100)
    for number in range(40):
        asked(latencies, clock, "a", 0.5 if number % 10 else 3.0)
    clock.now = 40.0
    (found,) = latencies.told()["qwen"]
    assert found == {
        "model": "hf://m", "flavor": "L4", "load": round(30.0 / 40 / 2, 4), "requests": 40, "mean_s": 0.75,
        "ttft_p95_s": None, "tpot_p95_s": None, "latency_p95_s": 3.0,
    }  # fmt: skip
    assert Latency(**found).flavor == "L4" and latencies.told() == {}, "each is told once"


def test_a_stream_tells_of_its_first_piece_and_of_the_time_between_pieces() -> None:
    latencies, clock = measuring(a=L4)
    for _ in range(ENOUGH):
        took = latencies.begin("qwen", "a")
        clock.now += 0.4
        took.piece()
        for _ in range(4):
            clock.now += 0.1
            took.piece()
        took.end(True)
        latencies.end("qwen", "a", took)
    clock.now = 60.0
    (found,) = latencies.told()["qwen"]
    assert (found["ttft_p95_s"], found["tpot_p95_s"]) == pytest.approx((0.4, 0.1)) and found["requests"] == ENOUGH


def test_of_too_few_no_percentile_is_told_however_long_they_take() -> None:
    latencies, clock = measuring(a=L4)
    for _ in range(ENOUGH - 1):
        asked(latencies, clock, "a", 1.0)
    clock.now = LONGEST_S
    assert latencies.told() == {}
    asked(latencies, clock, "a", 1.0)
    clock.now += 60.0
    assert latencies.told() == {}, "it began anew"


def test_a_replica_that_comes_or_goes_begins_the_measurement_anew() -> None:
    latencies, clock = measuring(a=L4)
    open_one = latencies.begin("qwen", "a")
    for _ in range(30):
        asked(latencies, clock, "a", 1.0)
    latencies.routed({"qwen": {"a": L4, "b": L4}})
    clock.now = 100.0
    assert latencies.told() == {}
    latencies.routed({"qwen": {"a": L4, "b": L4}})
    for _ in range(ENOUGH):
        asked(latencies, clock, "b", 0.1)
    clock.now = 140.0
    open_one.end(True)
    latencies.end("qwen", "a", open_one)
    (found,) = latencies.told()["qwen"]
    assert found["load"] == pytest.approx((110.0 + 2.0) / 110 / 2, abs=0.01), "who was asked before still counts"


def test_what_failed_or_went_to_a_replica_that_is_gone_is_not_measured() -> None:
    latencies, clock = measuring(a=L4)
    for _ in range(30):
        asked(latencies, clock, "a", 1.0, is_well=False)
        asked(latencies, clock, "gone", 1.0)
    assert latencies.told() == {} and not latencies._ongoing


def test_a_window_in_which_the_load_came_or_went_says_nothing_of_either() -> None:
    """A burst into an idle replica once looked like a small load with large latencies, and kept loads low for days."""
    latencies, clock = measuring(a=L4)
    clock.now = 20.0
    burst = [latencies.begin("qwen", "a") for _ in range(30)]
    for took in burst:
        clock.now += 0.5
        took.end(True)
        latencies.end("qwen", "a", took)
    clock.now = 36.0
    assert latencies.told() == {}


def test_the_gateway_tells_it_of_plain_answers_and_of_streams_but_not_of_errors() -> None:
    async def run() -> None:
        clock = Clock()
        house = House("a", "b", clock=clock)
        for row in house.table["models"].values():
            row["replicas"] = [{"app": name, "model": "hf://m", "flavor": "L4"} for name in ("a", "b")]
        house.gateway.route(house.table)
        for number in range(24):
            assert (await house.chat(**({"stream": True} if number % 2 else {}))).status_code == 200
        for _ in range(8):
            assert (await house.chat(fail=500)).status_code == 500
        clock.now = 40.0
        (found,) = house.gateway.load()["qwen"]["latencies"]
        assert (found["requests"], found["load"], found["latency_p95_s"]) == (24, 0.0, 0.0)
        assert found["flavor"] == "L4" and found["model"] == "hf://m"

    asyncio.run(run())
