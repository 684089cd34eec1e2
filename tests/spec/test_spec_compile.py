"""Spec -> core: what the scheduler is told, and what travels to the runs."""

from __future__ import annotations

import json

import pytest

from llmsched.core import configuration as core
from llmsched.core.resources import Resources
from llmsched.core.workload import Autoscaling, Option, Publish, Retry, Topology
from llmsched.errors import SpecError
from llmsched.spec import cluster
from llmsched.spec.compile import compile_configuration, compile_workload
from llmsched.spec.load import load, load_json
from llmsched.spec.parcel import parcel_of

TRAIN = """
name: tune-it
kind: train
queue: lab
priority: 70
resources: {accelerators: [A100:2, L4:0.5], cpus: 1.5, memory: 8GB, custom: {FPGA: 1, B: 0.5}}
topology: {required: rack, preferred: node}
placement: {labels: {disk: fast, arch: x86}}
workers: {min: 2, max: 8, step: 2}
max_runtime: 6h
estimated_runtime: 1h30m
after: [prepare@2, first@1]
retry: {on_events: [error], max_restarts: 1}
preemption: {grace: 500ms, min_runtime: 5m, enabled: false}
train:
  base_model: run://pretrain@3
  method: lora
  datasets: [{path: data/x.jsonl}]
publish: {to: chat}
"""


def compiled(text):
    return compile_workload(load(text)[0])


def test_a_train_workload_is_one_gang_with_an_option_for_each_accelerator():
    workload = compiled(TRAIN)
    rest = {"cpus_milli": 1500, "memory_bytes": 8 * 10**9, "custom": (("B", 500), ("FPGA", 1000))}
    (group,) = workload.groups
    assert group.options == (
        Option("A100", Resources(gpus_milli=2000, **rest)),
        Option("L4", Resources(gpus_milli=500, **rest)),
    )
    assert (group.count, workload.min_size, workload.max_size, workload.step) == (2, 2, 8, 2)
    assert (workload.id, workload.name, workload.run, workload.user) == ("tune-it", "tune-it", 1, "")
    assert (workload.queue, workload.priority) == ("lab", 70)
    assert workload.topology == Topology("rack", "node")
    assert workload.node_labels == (("arch", "x86"), ("disk", "fast"))
    assert (workload.max_runtime_s, workload.estimated_runtime_s) == (21600.0, 5400.0)
    assert (workload.grace_s, workload.min_runtime_s, workload.preemptible) == (0.5, 300.0, False)
    assert workload.retry == Retry(("error",), 1)
    assert workload.publish == Publish("chat", "adapter", "tune-it", None)
    assert workload.autoscaling is None


def test_run_times_are_alike_by_model_else_by_name():
    counted = compiled(TRAIN.replace("method: lora", "method: lora\n  training_args: {max_steps: 120}"))
    assert (counted.model, counted.steps) == ("run://pretrain@3", 120.0)
    assert compiled(TRAIN).steps is None
    task = compiled("name: nightly\nkind: task\ntask: {run: [x]}")
    assert (task.model, task.steps) == ("nightly", None)


def test_how_often_work_saves_is_known_where_the_loop_is_ours():
    assert compiled(TRAIN).saves_every_s == 600.0
    assert compiled(TRAIN + "checkpoint: {every: 90s}").saves_every_s == 90.0
    assert compiled(TRAIN + "checkpoint: {resume: never}").saves_every_s is None
    assert compiled("name: nightly\nkind: task\ntask: {run: [x]}").saves_every_s is None


def test_what_is_read_from_runs_is_waited_for():
    assert compiled(TRAIN).after == ("prepare@2", "first@1", "pretrain@3")
    serve = "name: s\nkind: serve\nafter: [a]\nserve: {model: {source: 'run://a'}, adapters: [{name: x, source: 'run://b'}]}"
    assert compiled(serve).after == ("a", "b")


def test_without_accelerators_a_bundle_fits_on_every_node():
    workload = compiled("name: t\nkind: task\ntask: {run: [x]}")
    assert workload.groups[0].options == (Option(None, Resources(cpus_milli=1000)),)
    assert (workload.kind, workload.min_size, workload.max_size) == ("task", 1, 1)


def test_a_serve_workload_is_one_gang_of_one_bundle_a_replica():
    text = "name: s\nkind: serve\nreplicas: {}\nautoscaling: {{target_ongoing_requests: 3, upscale_delay_s: 1}}\n"
    text += "drain_timeout: 10s\nserve: {{model: {{source: m}}}}"
    ranged = compiled(text.format("0..4"))
    assert (ranged.min_size, ranged.max_size, ranged.min_replicas, ranged.max_replicas) == (1, 1, 0, 4)
    wanted = Autoscaling(target_ongoing_requests=3.0, upscale_delay_s=1.0, most_ongoing=32, hold_s=120.0)
    assert ranged.autoscaling == wanted
    assert ranged.grace_s == 10.0
    fixed = "name: s\nkind: serve\nreplicas: 2\nserve: {model: {source: m}}"
    assert compiled(fixed).autoscaling is None


def test_the_same_spec_written_twice_travels_as_the_same_bytes():
    other = TRAIN.replace("8GB", "8000MB").replace("1h30m", "90m").replace("0.5}", "5.0e-1}").replace("6h", "21600")
    head, _, tail = other.partition("train:\n")
    publish = "publish: {as: adapter, to: chat}\n"
    reordered = publish + "train:\n" + tail.replace("publish: {to: chat}\n", "") + head
    assert reordered != TRAIN
    assert parcel_of(load(TRAIN)[0]) == parcel_of(load(reordered)[0])
    assert compiled(TRAIN) == compiled(reordered)


def test_the_parcel_is_the_spec_with_every_default_in_plain_numbers():
    spec = load(TRAIN)[0]
    parcel = json.loads(compiled(TRAIN).parcel)
    assert parcel == spec.dump()
    assert load_json(parcel) == spec
    assert parcel["resources"]["memory"] == 8 * 10**9
    assert parcel["resources"]["accelerators"] == ["A100:2", "L4:0.5"]
    assert parcel["workers"] == {"min": 2, "max": 8, "step": 2}
    assert parcel["checkpoint"] == {"uri": None, "every": 600.0, "keep": 3, "resume": "auto"}
    assert parcel["publish"] == {"to": "chat", "as": "adapter", "name": None, "when": None}
    assert parcel["train"]["lora"] == {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
    assert parcel["train"]["training_args"]["learning_rate"] == 5e-5
    assert parcel["train"]["objective"] == "sft"


def test_an_empty_cluster_file_is_the_default_configuration():
    assert compile_configuration(cluster.load(""), 0) == core.Configuration()
    assert compile_configuration(cluster.load_json(cluster.ClusterSpec().dump()), 0) == core.Configuration()


def test_queues_keep_their_quota_and_the_default_queue_always_exists():
    text = """
    storage: /data/llmsched
    cohorts: [{name: company}]
    queues:
      - name: lab
        cohort: company
        quota: {L4: {nominal: 0.5}, A100: {nominal: 24, borrowing_limit: 8, lending_limit: 0}}
        roles: {submitter: [alice], admin: [bob], viewer: ["*"]}
    policies: {ordering: fifo}
    limits: {max_pending_per_queue: 5, requests_per_s: 7, excess: warn, excess_after_s: 5, over_memory: "off"}
    """
    made = compile_configuration(cluster.load(text), 7)
    lab, default = made.queues
    assert lab.quotas == (("A100", core.Quota(24_000, 8_000, 0)), ("L4", core.Quota(500)))
    assert (lab.cohort, default) == ("company", core.Queue("default"))
    assert (lab.submitters, lab.admins, lab.viewers) == (("alice",), ("bob",), ("*",))
    assert made.cohorts == (core.Cohort("company"),)
    assert (made.version, made.storage, made.max_pending_per_queue) == (7, "/data/llmsched", 5)
    assert made.requests_per_s == 7
    assert (made.excess, made.excess_after_s, made.over_memory) == ("warn", 5, "off")
    assert made.policies.ordering == "fifo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queues: [{name: a}, {name: a}]", 'c.yaml:1:28: "queues[1].name": the name "a" stands here twice'),
        (
            "cohorts: [{name: company}]\nqueues: [{name: a, cohort: compny}]",
            'c.yaml:2:28: "queues[0].cohort": there is no cohort "compny"; did you mean "company"?',
        ),
        (
            "cohorts: [{name: a, parent: b}, {name: b, parent: a}]",
            'c.yaml:1:29: "cohorts[0].parent": the cohorts form a ring',
        ),
        (
            "queues: [{name: a, quota: {A100: {nominal: 2, lending_limit: 3}}}]",
            'c.yaml:1:62: "queues[0].quota.A100.lending_limit": above nominal (2)',
        ),
        (
            "queues: [{name: a, quota: {A100: {nominals: 2}}}]",
            'c.yaml:1:35: unknown key "nominals" in "queues[0].quota.A100". Did you mean "nominal"?',
        ),
        ("queue: []", 'c.yaml:1:1: unknown key "queue" in a cluster file. Did you mean "queues"?'),
        ("storage: gs://x", 'c.yaml:1:10: "storage": "gs:" is not a known kind of source'),
        ("a: 1\n---\nb: 2", "c.yaml:3:1: a cluster file has one document"),
        ("- a", "c.yaml:1:1: expected a cluster file: keys and values, not a list"),
        (
            "node_types: [{name: p4d, flavor: a100, gpus: 8}]",
            'c.yaml:1:34: "node_types[0].flavor": there is no flavor "a100"',
        ),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_place(text, message):
    with pytest.raises(SpecError) as caught:
        cluster.load(text, "c.yaml")
    assert any(str(problem).startswith(message) for problem in caught.value.problems), str(caught.value)


def test_work_that_asks_for_nothing_still_needs_a_node_with_a_cpu():
    spec = load_json({"name": "a", "kind": "task", "resources": {"cpus": 0}, "task": {"run": ["true"]}})
    (option,) = compile_workload(spec).groups[0].options
    assert option.resources == Resources(cpus_milli=1)


def test_an_argument_of_an_app_that_is_a_result_is_waited_for() -> None:
    args = {
        "model": "run://demand",
        "kept": "model://old@2",
        "note": "run:// is how one writes it",
        "many": ["run://x"],
    }
    spec = load_json({"name": "desk", "kind": "serve", "serve": {"app": "desk:Desk", "args": args}})
    assert spec.sources() == ["run://demand", "model://old@2"]
    assert compile_workload(spec).after == ("demand",)
