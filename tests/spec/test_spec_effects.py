"""What is well-formed by itself and comes to nothing beside the rest of a spec is refused by name, with its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from llmsched.errors import SpecError
from llmsched.spec.effects import ASKED
from llmsched.spec.load import load, load_json

DATA = "datasets: [{path: d}, {path: e, split: test}]"
TELL = "notify: [{url: 'https://a.example/x', when: '%s'}]\n"
APP = "name: a\nkind: serve\nserve: {app: 'workloads.apps.retriever:Retriever', args: {documents: d, model: words}}\n"
SERVE = "name: a\nkind: serve\n"
BATCH = "name: a\nkind: batch\n"


def train(rest: str, after: str = "") -> str:
    return f"name: a\nkind: train\ntrain:\n  base_model: m\n  {DATA}\n{rest}{after}"


def evaluated(evaluation: str, steps: int = 100) -> str:
    return train(f"  training_args: {{max_steps: {steps}}}\n  evaluation: {{{evaluation}}}\n")


def args(words: str) -> str:
    return train(f"  training_args: {{{words}}}\n  evaluation: {{on: test}}\n")


def search(more: str, training: str = "max_steps: 100") -> str:
    section = f"base_model: m, {DATA}, evaluation: {{on: test, every: 10}}, training_args: {{{training}}}"
    space = "space: {learning_rate: {choice: [0.1]}}\n  samples: 4"
    return f"name: a\nkind: tune\ntune:\n  train: {{{section}}}\n  {space}\n{more}"


REFUSED = [
    (evaluated("every: 101"), "train.evaluation.every", "101 steps are more than the training has, which ends at step"),
    (evaluated("every: 100, best: loss"), "train.evaluation.every", "of 100 steps makes one; write less"),
    (evaluated("every: 40, best: loss, patience: 2"), "train.evaluation.patience", "write at most 1"),
    (evaluated("every: 50, best: loss, patience: 1"), "train.evaluation.patience", 'write a smaller "every"'),
    (args("warmup_steps: 9, warmup_ratio: 0.1"), "train.training_args.warmup_ratio", '"warmup_steps" says it already'),
    (args("warmup_ratio: 0.1, lr_scheduler_type: constant"), "train.training_args.warmup_ratio",
     'use "lr_scheduler_type: constant_with_warmup"'),
    (args("max_steps: 9, num_train_epochs: 2"), "train.training_args.num_train_epochs", '"max_steps" says already'),
    (args("bf16: true"), "train.training_args.bf16", "resources.accelerators names none"),
    (train("  evaluation: {on: test}\n", "max_runtime: 1h\ncheckpoint: {every: 2h}\n"), "checkpoint.every",
     "never save on the way"),
    (train("  evaluation: {on: test}\n", "publish: {to: b, as: model, when: 'eval.los < 1'}\n"), "publish.when",
     'the result has no "eval.los"; did you mean "eval.loss"?'),
    ("name: a\nkind: train\ntrain: {base_model: m, datasets: [{path: d}]}\n"
     "publish: {to: b, as: model, when: eval.loss < 1}\n", "publish.when", '"eval.loss" is of no evaluation'),
    (train("  evaluation: {on: test}\n", TELL % "eval.los < 1"), "notify[0].when", 'did you mean "eval.loss"?'),
    (train("", TELL % "eval.loss < 1").replace(", {path: e, split: test}", ""), "notify[0].when",
     "there is no evaluation. Write train.evaluation"),
    (SERVE + TELL % "rate > 1" + "serve: {model: {source: m}}\n", "notify[0].when", "it is for code of your own"),
    (BATCH + TELL % "rows_pers > 1" + "batch: {input: {path: a}, model: m}\n", "notify[0].when", '"rows_per_s"?'),
    (BATCH + TELL % "lag_s > 1" + "batch: {input: {path: a}, model: m}\n", "notify[0].when", "is no number that it"),
    (train("  evaluation: {on: test}\n", "calls: [b]\n"), "calls", "our own loop asks no endpoint"),
    (train("  evaluation: {on: test}\n", "asks: true\n"), "asks", "our own loop asks for no work"),
    (BATCH + "batch: {input: {path: a}, model: m}\ncalls: [b]\n", "calls", "a model asks no endpoint"),
    (BATCH + "batch: {input: {path: a.parquet, encoding: cp1252}, model: m}\n", "batch.input.encoding", "a table such"),
    (BATCH + "batch: {input: {path: a}, model: m, task: feature-extraction, engine_kwargs: {enable_prefix_caching: "
     "true}}\n", "batch.engine_kwargs.enable_prefix_caching", "has no use for it"),
    (APP, "serve.args.model", "write calls: [words] beside serve"),
    (SERVE + "serve: {model: {source: m}}\ncalls: [b]\n", "calls", "a model asks no endpoint"),
    (SERVE + "serve: {app: 'a:B', task: seq2seq-lm}\n", "serve.task", 'goes with "model"'),
    (SERVE + "serve: {app: 'a:B', engine: transformers}\n", "serve.engine", 'goes with "model"'),
    (SERVE + "serve: {model: {source: m}, task: feature-extraction, adapters: [{name: a, source: 'run://b'}]}\n",
     "serve.adapters", "go on a language model"),
    (SERVE + "serve: {model: {source: m}, engine: vllm, engine_kwargs: {quantization: int8}}\n",
     "serve.engine_kwargs.quantization", "is of our own engine"),
    (SERVE + "serve: {model: {source: m}, engine_kwargs: {enable_prefix_caching: false, prefix_cache_mib: 9}}\n",
     "serve.engine_kwargs.prefix_cache_mib", "keeps nothing"),
    (SERVE + "replicas: 2\nautoscaling: {upscale_delay_s: 1}\nserve: {model: {source: m}}\n",
     "autoscaling.upscale_delay_s", "Write a range, such as 1..4"),
    ("name: a\nkind: task\nbudget: {gpu_hours: 1}\ntask: {run: ['true']}\n", "budget",
     "resources.accelerators names none"),
    ("name: a\nkind: task\ntask: {run: [python train.py]}\n", "task.run",
     'write ["python", "train.py"], or for a shell'),
    (search("  metric: eval.loss\n  mode: max\n"), "tune.mode", "is better the lower it is: write mode: min"),
    (search("  metric: eval.loss\n  scheduler: asha\n  scheduler_args: {max_t: 50}\n"), "tune.scheduler_args.max_t",
     "a trial ends at its max_steps, 100"),
    (search("  metric: eval.loss\n  scheduler: asha\n  scheduler_args: {grace_period: 100}\n"),
     "tune.scheduler_args.grace_period", "none would ever be compared"),
    (search("  metric: eval.loss\n  scheduler: pbt\n  scheduler_args: {perturbation_interval: 100}\n"),
     "tune.scheduler_args.perturbation_interval", "none would ever be compared"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "field", "words"), REFUSED, ids=[each[1] for each in REFUSED])
def test_what_would_have_no_effect_is_refused_by_name(text: str, field: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text)
    assert f'"{field}": ' in str(caught.value) and words in str(caught.value)


ACCEPTED = [
    evaluated("every: 100"),
    evaluated("every: 50, best: loss"),
    evaluated("every: 30, best: loss, patience: 2"),
    evaluated("every: 5, best: loss, patience: 2", -1),
    args("warmup_steps: 9, lr_scheduler_type: constant_with_warmup"),
    train("  evaluation: {on: test}\n", "max_runtime: 5m\n"),  # the usual 10m is nobody's wish
    train("  evaluation: {on: test}\n", "publish: {to: b, as: model, when: eval.perplexity_before > 1}\n"),
    APP + "calls: [words]\n" + TELL % "anything > 1",
    train("  evaluation: {on: test}\n", TELL % "eval.loss < 1"),
    train("  evaluation: {on: test}\n", TELL % "tokens_per_s < 1"),
    BATCH + TELL % "lag_s > 60" + "batch: {input: {path: /a}, model: m, follow: 5s, output: /b}\n",
    BATCH + TELL % "mine > 60" + "batch: {input: {path: a}, map: 'a:b'}\n",
    "name: a\nkind: task\nbudget: {gpu_hours: 1}\nasks: true\ntask: {run: ['true']}\n",  # of what it asks for
    "name: a\nkind: batch\nbatch: {input: {path: a}, map: 'a:b'}\ncalls: [b]\n",
    search("  metric: eval.loss\n  scheduler: asha\n  scheduler_args: {max_t: 100, grace_period: 10}\n"),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_has_effect_stays_accepted_also_as_it_is_kept(text: str) -> None:
    (spec,) = load(text)
    assert load_json(spec.dump()) == spec


def test_every_app_that_comes_along_and_asks_an_endpoint_says_by_which_argument() -> None:
    folder, asks = Path(__file__).parents[2] / "workloads" / "apps", set()
    for name, arguments in ASKED.items():
        module, _, kind = name.partition(":")
        tree = ast.parse((folder / f"{module.rpartition('.')[2]}.py").read_text())
        (made,) = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == kind]
        (begin,) = [each for each in made.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        known = {each.arg for each in (*begin.args.args, *begin.args.kwonlyargs)}
        assert {*arguments} <= known
        asks.add(module.rpartition(".")[2])
    callers = {file.stem for file in folder.glob("*.py") if "runtime import calls" in file.read_text()}
    assert callers - {"embedder", "events", "watchman"} <= asks, "events asks for monitor; the others are programs"
