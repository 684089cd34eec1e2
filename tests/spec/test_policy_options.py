"""A policy's own knobs in the cluster file: the policy says which there are, the file is told what is wrong with it."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.policies import registry
from llmsched.policies.ordering.finish_time_fair import GUARD
from llmsched.spec import cluster
from llmsched.spec.compile import compile_configuration

FILE = """
policies:
  ordering: finish_time_fair
  options:
    ordering:
      guard: {guard}
queues:
  - name: research
    policy_options:
      ordering: {{pole: 0.6}}
"""
ALONE = FILE.split("queues:")[0]


def refused(text: str) -> SpecError:
    with pytest.raises(SpecError) as found:
        cluster.load(text, "c.yaml")
    return found.value


def test_options_reach_the_policy_for_all_and_for_a_queue_over_them() -> None:
    configuration = compile_configuration(cluster.load(FILE.format(guard=2)), 1)
    knobs = registry.load(configuration.policies).ordering.policy._options
    assert (knobs.of("default").guard, knobs.of("default").pole) == (2, 0.8)
    assert (knobs.of("research").guard, knobs.of("research").pole) == (2, 0.6)
    assert (
        registry.load(compile_configuration(cluster.load(""), 1).policies).ordering.policy._options.of("research").guard
        == GUARD
    )


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("policies: {options: {ordering: {gaurd: 1}}}", "c.yaml:1:33", 'unknown key "gaurd" in the options', "guard"),
        (ALONE.format(guard="high"), "c.yaml:6:14", '"guard": expected a number, got "high"', ""),
        (ALONE.format(guard="[1, 2]"), "c.yaml:6:14", '"guard": expected a number, got a list', ""),
        (ALONE.format(guard=-1), "c.yaml:5:5", "every option must be more than 0", ""),
        ("policies: {ordering: fifo, options: {ordering: {guard: 1}}}", "c.yaml:1:38", '"fifo" has no options', ""),
        ("policies: {options: {odering: {guard: 1}}}", "c.yaml:1:22", 'unknown key "odering"', "ordering"),
        (
            "queues: [{name: a, policy_options: {elasticity: {period_s: 5}}}]", "c.yaml:1:50",
            '"period_s" of "goodput" is the same for all queues', "policies.options.elasticity",
        ),
        (
            "policies: {ordering: least_attained, options: {ordering: {levels_gpu_s: [9, a]}}}", "c.yaml:1:77",
            "expected a number", "",
        ),
        (
            "policies: {ordering: least_attained, options: {ordering: {levels_gpu_s: [9, 3]}}}", "c.yaml:1:48",
            "levels_gpu_s must rise", "",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_at_its_place(text: str, where: str, message: str, hint: str) -> None:
    error = refused(text)
    assert (error.where, message in error.message) == (where, True), error
    assert hint in error.hint


def test_over_the_wire_the_place_is_a_path() -> None:
    with pytest.raises(SpecError) as found:
        cluster.load_json({"queues": [{"name": "a", "policy_options": {"ordering": {"gard": 1}}}]}, "config")
    assert found.value.where == "config.queues[0].policy_options.ordering.gard"


def test_a_policy_that_is_not_installed_here_is_left_to_the_controller() -> None:
    spec = cluster.load("policies: {ordering: theirs, options: {ordering: {depth: 3}}}")
    with pytest.raises(SpecError, match='no ordering policy is called "theirs"'):
        registry.load(compile_configuration(spec, 1).policies)
