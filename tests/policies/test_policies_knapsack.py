"""Goodput's choice of sizes against the optimum of the same choice, found by HiGHS."""

from __future__ import annotations

import random

import knapsack
import pytest

from llmsched.core import facts
from llmsched.core.configuration import PolicyNames
from llmsched.core.nodes import Node
from llmsched.core.policy import View
from llmsched.core.resources import MILLI, Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Workload
from llmsched.policies.elasticity.knapsack import Offer, take_best
from llmsched.policies.registry import load

SIZES = (1, 2, 4, 8, 16, 32)


def crowd(count: int, gpus: int, seed: int) -> State:
    """So many elastic gangs of all lengths and speed-ups that want more than there is."""
    draw = random.Random(seed)
    state = State()
    for number in range(gpus // 8):
        state.apply(facts.NodeJoined(0.0, Node(f"n{number}", Resources(8 * MILLI))))
    for number in range(count):
        scaling, bundle = draw.uniform(0.4, 0.98), draw.choice([1, 1, 1, 2])
        option = (Option(None, Resources(gpus_milli=bundle * MILLI)),)
        work = Workload(
            f"j{number}", f"j{number}", "train", (Group("workers", 1, option),), min_size=1, max_size=32, sizes=SIZES,
            estimated_runtime_s=draw.lognormvariate(9, 1.2), speedup=tuple((n, n**scaling) for n in SIZES),
        )  # fmt: skip
        state.apply(facts.Submitted(1.0, work))
    return state


@pytest.mark.parametrize(("count", "gpus"), [(300, 512), (600, 2048)])
def test_the_sizes_chosen_earn_within_half_a_per_cent_of_the_optimum(count: int, gpus: int) -> None:
    state = crowd(count, gpus, seed=count + gpus)
    offers = load(PolicyNames()).elasticity.policy.offers([*state.gangs.values()], View(state))
    best = knapsack.optimum(offers, gpus)
    assert 0.995 * best <= knapsack.chosen(offers, gpus) <= best * (1 + 1e-4)
    assert best <= knapsack.relaxed(offers, gpus) * (1 + 1e-9)


def test_whatever_is_offered_the_choice_misses_less_than_its_best_refused_step() -> None:
    draw = random.Random(5)
    for _ in range(200):
        offers = []
        for gang in "abcdefgh"[: draw.randint(1, 8)]:
            low, slope = 0, draw.uniform(1, 10)
            for high in (1, 2, 4):
                offers.append(Offer(gang, low, high, float(high - low), slope * (high - low)))
                low, slope = high, slope * draw.uniform(0.2, 1.0)
        capacity = draw.randint(1, 24)
        sizes, free = take_best(offers, capacity)
        assert sum(sizes.values()) + free == capacity and free >= 0
        refused = [o.gain for o in offers if sizes.get(o.gang, 0) <= o.low]
        assert knapsack.optimum(offers, capacity) - knapsack.worth(offers, sizes) <= max(refused, default=0.0) + 1e-6


@pytest.mark.parametrize("most", [5, 6, 7, 8])
def test_one_that_gains_the_same_by_each_gpu_has_as_many_as_there_are(most: int) -> None:
    """What is believed where nobody says anything is a straight line: it was one step, to be had whole or not at all,
    and where it did not fit all GPUs went to one that gained next to nothing by them."""
    state = State()
    state.apply(facts.NodeJoined(0.0, Node("n", Resources(8 * MILLI))))
    flat = tuple((size, 1.0 + 0.004 * (size - 1)) for size in range(1, 9))
    for name, high, curve in (("flat", 8, flat), ("line", most, ())):
        group = Group("w", 1, (Option(None, Resources(MILLI), curve),))
        spec = Workload(name, name, "train", (group,), estimated_runtime_s=20_000.0, max_size=high)
        state.apply(facts.Submitted(0.0, spec))
    policy = load(PolicyNames(elasticity="goodput")).elasticity
    found = policy.share([state.gangs["flat/0"], state.gangs["line/0"]], 8, View(state))
    assert found == {"line/0": min(most, 7), "flat/0": max(8 - most, 1)}
