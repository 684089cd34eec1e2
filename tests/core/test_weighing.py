"""An endpoint and elastic work that want the same GPUs out of one quota: who has them is what is worth most."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from ledger import Given, cluster

from llmsched.core.configuration import PolicyOptions
from llmsched.core.decisions import Scale
from llmsched.core.facts import LoadObserved
from llmsched.core.latency import Latency
from llmsched.core.render import text
from llmsched.core.scheduler import decide
from llmsched.core.status import Status
from llmsched.core.workload import Autoscaling, Slo
from llmsched.policies.elasticity.goodput import Goodput
from llmsched.policies.registry import load

PLACES, ALONE_S, TARGET_S = 16, 2.0, 4.0
SLO = Slo(latency_p95_s=TARGET_S)
KNOBS = Autoscaling(4.0, upscale_delay_s=0.0, downscale_delay_s=60.0, most_ongoing=PLACES)


def world(
    gpus: int = 8, priority: int = 50, low: int = 1, weight: float = 3.0, slo: Slo | None = SLO, **tune: Any
) -> Given:
    """An endpoint with one replica, whose latencies are known, and a fine-tune on all other GPUs."""
    given = cluster(f"1 node x {gpus}").queue("all", gpus=gpus).queue("train", gpus=gpus)
    given.scheduling(restart_cost_s=30.0)
    given.policies(options=(weighed(weight),))
    serving = {"min_replicas": low, "max_replicas": gpus, "autoscaling": KNOBS, "slo": slo}
    given.pending("chat", gpus=1, kind="serve", priority=priority, **serving).settle()
    more = {"elastic": (1, gpus - low), **tune}
    given.running("tune", gpus=more["elastic"][1], **more).after(600.0)
    return asks(given, 1.0, *(measured(each) for each in (1.0, 4.0, 8.0, 12.0, 16.0))).settle()


def weighed(weight: float) -> PolicyOptions:
    return PolicyOptions("elasticity", f'{{"replica_weight": {weight}}}')


def measured(load: float) -> Latency:
    seconds = ALONE_S * (1 + load / PLACES)
    return Latency("", "", load, 100, seconds, latency_p95_s=1.2 * seconds)


def asks(given: Given, load: float, *latencies: Latency) -> Given:
    return given.after(10.0, LoadObserved(given.now + 10.0, "chat", load, 0.0, latencies))


def replicas(given: Given) -> int:
    return given.state.workloads["chat"].wanted_replicas


def told(given: Given) -> str:
    message = given.state.workloads["chat"].held_back
    return text(message)


def test_replicas_that_the_target_needs_take_gpus_from_a_fine_tune_and_the_last_ones_for_next_to_nothing_do_not() -> (
    None
):
    given = asks(world(), 60.0).settle()
    everything = asks(world(weight=0.0), 60.0).settle()
    assert 1 < replicas(given) < replicas(everything) and told(everything) == ""
    assert given.state.gangs["tune/0"].size == 8 - replicas(given), "what it does not have is of use to somebody"


@pytest.mark.parametrize("more", [{"priority": 60}, {"slo": None}, {"queue": "train"}])
def test_who_comes_first_has_no_target_or_owns_another_quota_is_not_weighed(more: dict[str, Any]) -> None:
    given = asks(world(weight=0.01, **more), 60.0)
    given.turn()
    assert replicas(given) > 1 and told(given) == ""


def test_what_is_there_for_both_is_given_to_both() -> None:
    given = world(elastic=(1, 2), gpus=8, weight=0.01)
    assert replicas(asks(given, 30.0).settle()) == replicas(asks(world(weight=0.0), 30.0).settle()) > 1


def test_why_says_who_has_the_gpus_and_what_that_costs() -> None:
    given = asks(world(weight=1.0), 60.0).settle()
    said = told(given)
    assert "that load asks for, as tune makes more of the GPUs" in said and "% of the requests hold the target" in said
    asks(given, 1.0).after(120.0).settle()
    assert told(given) == "", "it has all that it asks for again"


@pytest.mark.parametrize("seed", range(12))
def test_it_keeps_its_least_and_both_come_to_rest(seed: int) -> None:
    chance = random.Random(seed)
    low, weight = chance.randint(1, 3), chance.choice((0.0, 0.2, 1.0, 3.0, 10.0))
    given = world(gpus=chance.choice((6, 8, 12)), low=low, weight=weight)
    for _ in range(4):
        load = chance.uniform(0.0, 150.0)
        asks(given, load).settle()
        for _ in range(8):  # the delay before replicas go is over
            asks(given, load).settle()
        tune = given.state.gangs["tune/0"]
        settled = replicas(given), tune.size
        assert tune.status is Status.RUNNING and replicas(given) >= low and tune.size >= 1
        for _ in range(3):
            asks(given, load).settle()
            assert (replicas(given), tune.size) == settled, "nobody takes turns while the load stays as it is"


def test_the_more_a_replica_weighs_the_more_there_are_and_all_where_it_is_not_weighed() -> None:
    counts = [replicas(asks(world(weight=weight), 90.0).settle()) for weight in (0.01, 0.3, 1.0, 3.0, 30.0, 0.0)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] > 3


@pytest.mark.parametrize("answer", [None, (0, ""), (99, ""), (2, "nobody/0"), "many", (True, "tune/0"), [2, ""]])
def test_an_answer_that_is_none_leaves_the_endpoint_all_that_it_asks_for(answer: Any) -> None:
    class Wrong(Goodput):
        def replicas(self, *about: Any) -> Any:
            return answer

    given = asks(world(), 60.0)
    plan = decide(given.state, replace(load(given.names), elasticity=Wrong()))
    (scale,) = [one for one in plan.decisions if isinstance(one, Scale)]
    all_of_them = asks(world(weight=0.0), 60.0)
    all_of_them.turn()
    assert scale.replicas == replicas(all_of_them) and scale.asked == 0
    assert (plan.troubles != ()) == (answer is not None)
