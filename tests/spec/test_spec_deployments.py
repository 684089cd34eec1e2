"""`serve.deployments`: what of an app is placed by itself, and what cannot be."""

import pytest

from llmsched.core.amounts import flavor_of, need_milli
from llmsched.core.resources import Resources
from llmsched.core.workload import Option
from llmsched.errors import SpecError
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load, load_json


def test_each_deployment_of_an_app_that_is_named_is_a_group_of_the_replicas_gang():
    serve = {
        "app": "desk:app",
        "deployments": {"Large": {"accelerators": "L4:1", "cpus": 2, "replicas": 2}, "Tiny": {}},
    }
    workload = compile_workload(load_json({"name": "desk", "kind": "serve", "serve": serve, "replicas": "1..3"}))
    assert [(one.name, one.count) for one in workload.groups] == [("workers", 1), ("Large", 2), ("Tiny", 1)]
    assert workload.groups[1].options == (Option("L4", Resources(gpus_milli=1000, cpus_milli=2000)),)
    assert (workload.min_size, workload.max_size, workload.max_replicas) == (1, 1, 3)
    assert [flavor_of(workload, 0), need_milli(workload, 1, 0)] == ["L4", 2000]


@pytest.mark.parametrize(
    ("resources", "serve", "words"),
    [
        ("{}", "{model: {source: m}, deployments: {A: {}}}", '"serve.deployments": goes with "app"'),
        (
            "{}",
            "{model: {source: m}, task: image-classification, engine_kwargs: {num_speculative_tokens: 4}}",
            'goes with "task: causal-lm"; a model of image-classification has no use for it',
        ),
        ("{}", "{model: {source: m}, task: feature-extraction, routing: prefix-cache}", "that go on with a text"),
        ("{}", "{app: 'm:a', deployments: {workers: {}}}", "is how the replica's own part is called"),
        ("{}", "{app: 'm:a', deployments: {'-x': {}}}", "expected the name of a deployment: letters, digits"),
        ("{}", "{app: 'm:a', deployments: {A: {num_replicas: 2}}}", 'Did you mean "replicas"?'),
        ("{}", "{app: 'm:a', deployments: {A: {num_gpus: 1}}}", 'Did you mean "accelerators"?'),
        ("{}", "{app: 'm:a', deployments: {A: {use_spot: true}}}", 'unknown key "use_spot"'),
        (
            "{accelerators: 'A100:1'}",
            "{app: 'm:a', deployments: {A: {accelerators: 'L4:1'}}}",
            '"serve.deployments.A.accelerators": has L4 and resources has A100: all GPUs of a replica are of one type',
        ),
    ],
)
def test_what_deployments_cannot_be_given_is_refused_where_it_stands(resources, serve, words):
    with pytest.raises(SpecError) as refused:
        load(f"name: a\nkind: serve\nresources: {resources}\nserve: {serve}\n", "a.yaml")
    (told,) = map(str, refused.value.problems)
    assert words in told, told
