"""`kind: tune`: which fields a search may vary, what it may compare, and how many trials that makes."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load, load_json
from llmsched.spec.parcel import parcel_of, read
from llmsched.spec.tune import readings, trial, values_of

TRAIN = """\
  train:
    base_model: hf://a/b
    method: lora
    datasets: [{path: a.jsonl}, {path: b.jsonl, split: test}]
    evaluation: {metrics: [loss], every: 10}
    training_args: {max_steps: 100}
"""
LOOP = "  train: {loop: 'a.b:c'}\n"
TASK = "  task: {run: [python, a.py]}\n"


def spec(section: str, *lines: str) -> str:
    head = "name: sweep\nkind: tune\nresources: {accelerators: A100:1}\nworkers: 2\npriority: 9\ntune:\n"
    return head + section + "".join(f"  {line}\n" for line in lines)


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        load(text)
    return str(caught.value)


def test_a_field_is_named_by_its_path_or_an_argument_by_its_name_alone() -> None:
    space = "space: {learning_rate: {loguniform: [1.0e-5, 1.0e-3]}, train.lora.r: {grid: [4, 8]}, r: {choice: [1]}}"
    assert "stood there before" in refusal(spec(TRAIN, space))
    (made,) = load(spec(TRAIN, space.replace(", r: {choice: [1]}", ""), "samples: 3", "metric: eval.loss"))
    assert [*made.tune.space] == ["train.training_args.learning_rate", "train.lora.r"]
    assert (made.tune.total, made.tune.at_once) == (6, 6)
    (own,) = load(spec(LOOP, "space: {lr: {uniform: [0.1, 1.0]}}", "metric: loss"))
    assert [*own.tune.space] == ["train.config.lr"]
    assert read(parcel_of(own)).spec == own, "what is stored means the same"


REFUSED = [
    (TRAIN, ["space: {learnin_rate: {grid: [0.1]}}"], 'no field of a trial. Did you mean "learning_rate"?'),
    (TASK, ["space: {env.SEED: {grid: [1]}}"], 'Did you mean "envs.SEED"?'),
    (TRAIN, ["space: {learning_rate: {uniform: [-1.0, 1.0]}}"], "expected more than 0, got -1.0"),
    (TASK, ["space: {task.run: {grid: [[a], ['']]}}"], "names no program"),
    (TASK, ["space: {queue: {grid: [a, b]}}"], "the same for all trials"),
    (TASK, ["space: {secrets: {grid: [[A]]}}"], "the same for all trials"),
    (TRAIN + TASK, ["space: {envs.A: {grid: [1]}}"], 'exactly one of "train" and "task"'),
    (TRAIN, ["space: {seed: {grid: [1]}}", "metric: eval.los"], 'no trial would report "eval.los"; did you mean "eval'),
    (TRAIN, ["space: {seed: {grid: [1]}}", "scheduler: asha"], '"asha" compares trials: by which "metric"?'),
    (LOOP, ["space: {a: {grid: [1]}}", "metric: loss", "scheduler: asha"], "must know where a trial ends"),
    (LOOP, ["space: {a: {grid: [1]}}", "metric: a", "scheduler_args: {max_t: 3}"], 'goes with "scheduler: asha"'),
    (LOOP, ["space: {a: {grid: [1]}}", "metric: a", "searcher: optuna"], 'use "choice"'),
    (
        LOOP,
        ["space: {a: {grid: [1]}}", "metric: a", "scheduler: asha", "scheduler_args: {max_t: 3, grace_period: 4}"],
        "not less than a trial has, which ends at 3",
    ),
    (LOOP, ["space: {a: {grid: [1]}}", "samples: 9999", "metric: a", "trials: 3"], 'Did you mean "samples"?'),
    (TASK, ["space: {envs.A: {grid: [1, 2]}}", "samples: 9999"], "these are 19998 trials"),
    (TASK, ["space: {envs.A: {grid: [1, null]}}"], "null is no value of a variable"),
    (LOOP, ["space: {a: {uniform: [0.0, 1.0]}}", "metric: a", "scheduler: pbt"], "after how many steps trials are"),
    (LOOP, ["space: {a: {grid: [1]}}", "mode: max"], 'says which end of a "metric" is the better one'),
    (
        TRAIN,
        ["space: {global_batch_size: {grid: [8, 16]}, micro_batch_size: {grid: [2, 16]}}"],
        "'16' beside '8' of train.global_batch_size does not fit",
    ),
    (TASK, ["space: {envs.A: {grid: [1, 2, 1]}}"], '1 stands there twice; "samples" says how often'),
    (TASK, ["space: {envs.A: {grid: [1, '1']}}"], '"1" stands there twice'),
    (TASK, ["space: {envs.A: {grid: [1]}, envs: {grid: [{A: '2'}]}}"], 'is part of "envs", which is varied as a whole'),
    (TASK, ["space: {envs.A: {choice: [{uniform: [0, 1]}]}}"], "no domain has others in it"),
    (TASK, ["space: {envs.A: {uniform: [-1.0e+308, 1.0e+308]}}"], "too far apart"),
    (LOOP, ["space: {a: {uniform: [0.0, 1.0]}}", "metric: a", "searcher: optuna"], "compares trials, and this is one"),
    (
        LOOP,
        ["space: {a: {uniform: [0.0, 1.0]}}", "metric: a", "scheduler: asha", "scheduler_args: {max_t: 9}"],
        '"asha" compares trials, and this is one: "samples" says how many',
    ),
    (
        LOOP,
        ["space: {a: {grid: [1, 2]}}", "metric: a", "scheduler: asha", "scheduler_args: {max_t: 1}"],
        "no trial would ever be compared on its way",
    ),
    (
        LOOP,
        [
            "space: {a: {grid: [1, 2]}}",
            "metric: a",
            "scheduler: pbt",
            "concurrent: 1",
            "scheduler_args: {perturbation_interval: 2}",
        ],
        "compares trials that run at once",
    ),
    (TRAIN, ["space: {train.datasets.0.weight: {grid: [1, 2]}}"], 'vary the whole of it, "train.datasets"'),
]


def test_a_value_is_judged_beside_those_that_a_trial_has_and_not_beside_those_that_none_has() -> None:
    """Before, each was judged beside what the section says, which no trial had; and pairs were not looked at."""
    small = TRAIN + "    global_batch_size: 2\n"
    load(spec(small, "space: {micro_batch_size: {grid: [4, 8]}, global_batch_size: {grid: [8, 16]}}"))


def test_trials_that_read_something_else_are_told_apart() -> None:
    space = "space: {seed: {grid: [1, 2]}, base_model: {grid: [hf://a/b, hf://c/d]}, r: {grid: [4, 8]}}"
    (made,) = load(spec(TRAIN, space))
    found = readings(made.dump(), made.tune.space)
    assert [each.train["base_model"] for each in found] == ["hf://a/b", "hf://c/d"]
    assert found[1].why == 'train.base_model "hf://c/d"'


def test_a_search_says_that_it_asks_by_what_it_is() -> None:
    text = spec(TASK, "space: {envs.A: {grid: [1]}}")
    load(text)
    with pytest.raises(SpecError, match="a trial may ask for nothing"):
        load(text + "\nasks: true\n")


@pytest.mark.parametrize(("section", "lines", "words"), REFUSED)
def test_what_can_come_to_nothing_is_refused_with_what_was_meant(section: str, lines: list[str], words: str) -> None:
    assert words in refusal(spec(section, *lines))


def test_what_an_evaluation_measures_unasked_is_a_metric_of_a_search() -> None:
    """Before, eval.loss was refused where another number was asked for, and every trial reports it."""
    train = TRAIN.replace("metrics: [loss]", "metrics: [perplexity]")
    assert "perplexity" in train and load(spec(train, "space: {seed: {grid: [1]}}", "metric: eval.loss"))
    bare = TRAIN.replace("metrics: [loss], ", "")
    assert "metrics" not in bare and load(spec(bare, "space: {seed: {grid: [1]}}", "metric: eval.loss"))


def test_an_evaluation_at_the_end_alone_is_nothing_to_stop_trials_by() -> None:
    late = TRAIN.replace(", every: 10", "")
    lines = "space: {seed: {grid: [1, 2]}}", "metric: eval.loss", "scheduler: asha"
    assert "write train.evaluation.every" in refusal(spec(late, *lines))


def test_a_trial_has_what_the_spec_says_of_work_and_the_search_has_a_bit_of_a_cpu() -> None:
    (made,) = load(spec(TASK, "space: {envs.SEED: {grid: [1, two]}, envs.LR: {uniform: [0.0, 1.0]}}"))
    data = made.dump()
    values = {"envs.SEED": 1, "envs.LR": 0.25}
    one = trial(data, "t1", values)
    assert one["envs"] == {"SEED": "1", "LR": "0.25"} and values_of(data, one) == values
    workload = compile_workload(load_json(one))
    assert (workload.kind, workload.min_size, workload.groups[0].options[0].flavor) == ("task", 2, "A100")
    search = compile_workload(made)
    assert (search.kind, search.max_size, search.priority) == ("tune", 1, 9)
    assert search.groups[0].options[0].resources.gpus_milli == 0


def test_the_best_of_a_run_is_a_source_of_models_and_no_other() -> None:
    serve = "name: s\nkind: serve\nserve: {model: {source: 'run://sweep/best'}}\n"
    assert load(serve)[0].sources() == ["run://sweep/best"]
    assert "/best" in refusal("name: b\nkind: batch\nbatch: {model: a, input: {path: 'run://sweep/best'}}\n")


def test_what_a_command_does_not_do_yet_is_refused_of_a_search_where_it_stands() -> None:
    """Before, the controller refused it as `$.checkpoint.every`, of a trial that nobody had written."""
    text = (
        "name: s\nkind: tune\ncheckpoint: {every: 2s}\ntune:\n  task: {run: [a]}\n  space: {envs.N: {grid: [1, 2]}}\n"
    )
    with pytest.raises(SpecError) as refused:
        load(text, "s.yaml")
    assert str(refused.value).startswith('s.yaml:3:14: "checkpoint.every" is not supported yet. Leave it out.')
    assert load(text.replace("task: {run: [a]}", "train: {loop: 'm:f'}"))
