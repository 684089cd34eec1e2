"""The routing policies, on candidates that are plain records."""

import collections
from dataclasses import dataclass

import pytest

from llmsched.policies.routing import NAMES, named


@dataclass
class Busy:
    name: str
    ongoing: int = 0
    tokens: int = 0


def chosen(policy, replicas, times, body=None):
    return collections.Counter(policy.choose(replicas, body or {}).name for _ in range(times))


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_takes_the_only_one(name):
    assert named(name, seed=1).choose([Busy("a", 9)], {"prompt": "x"}).name == "a"


def test_power_of_two_never_takes_the_busiest_and_draws_from_all():
    replicas = [Busy("a", 3), Busy("b", 0), Busy("c", 1)]
    counts = chosen(named("power-of-two", seed=1), replicas, 3000)
    assert counts["a"] == 0
    assert 1800 < counts["b"] < 2200  # two of the three pairs hold b


def test_power_of_two_repeats_under_one_seed():
    replicas = [Busy(str(n)) for n in range(8)]
    assert chosen(named("power-of-two", 5), replicas, 50) == chosen(named("power-of-two", 5), replicas, 50)


def test_round_robin_takes_each_in_turn():
    assert chosen(named("round-robin", 0), [Busy("a", 5), Busy("b")], 10) == {"a": 5, "b": 5}


def test_least_tokens_looks_at_the_work_not_at_the_number_of_requests():
    assert named("least-tokens", 0).choose([Busy("a", 1, 4000), Busy("b", 3, 90)], {}).name == "b"


def test_prefix_cache_returns_to_the_replica_that_saw_the_beginning():
    policy = named("prefix-cache", 3)
    replicas = [Busy(str(n)) for n in range(8)]
    system = {"role": "system", "content": "long " * 200}
    first = policy.choose(replicas, {"messages": [system, {"role": "user", "content": "one"}]}).name
    for question in ("two", "three", "four"):
        assert policy.choose(replicas, {"messages": [system, {"role": "user", "content": question}]}).name == first


def test_prefix_cache_yields_to_balance():
    policy = named("prefix-cache", 3)
    replicas = [Busy(str(n)) for n in range(4)]
    warm = policy.choose(replicas, {"prompt": "the same"})
    warm.ongoing = 50
    assert policy.choose(replicas, {"prompt": "the same"}) is not warm
