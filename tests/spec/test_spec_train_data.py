"""What a training says of its data and its result, and how that is refused, with its place."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load, load_json


def spec(dataset: str = "{path: d}", rest: str = "", after: str = "") -> str:
    return f"name: a\nkind: train\ntrain:\n  base_model: m\n  datasets:\n    - {dataset}\n{rest}{after}"


def test_how_data_is_read_and_what_a_result_is_can_be_said() -> None:
    dataset = "{path: hf://a/b@1, subset: main, format: alpaca, on_bad_row: skip, columns: {instruction: q, output: a}}"
    text = spec(dataset, "  method: lora\n  merge: true\n", "publish: {to: b, as: model}\n")
    train = load(text)[0].train  # type: ignore[union-attr]
    assert train.merge and train.datasets[0].subset == "main" and train.datasets[0].columns["output"] == "a"
    plain = load(spec("{path: a.csv, encoding: latin-1}"))[0].train.datasets[0]  # type: ignore[union-attr]
    assert (plain.format, plain.on_bad_row, plain.encoding) == ("auto", "refuse", "latin-1")


SMOOTHED = "  task: image-classification\n  objective: regress\n  training_args:\n    label_smoothing_factor: 0.1\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (spec(rest="  merge: true\n"), 7, '"train.merge": goes with "method: lora"'),
        (
            spec(rest="  method: lora\n  merge: true\n", after="publish: {to: b, as: adapter}\n"),
            9,
            '"train.merge" makes a whole model',
        ),
        (
            spec(rest="  method: lora\n", after="publish: {to: b, as: model}\n"),
            8,
            'a model needs "train.merge: true" or "full"',
        ),
        (spec(rest="  evaluation: {fraction: 0.1, best: f1, every: 5}\n"), 7, '"f1" says nothing of causal-lm'),
        (spec(rest="  evaluation: {fraction: 0.1, patience: 2, every: 5}\n"), 7, 'needs "best"'),
        (spec(rest="  evaluation: {fraction: 0.1, best: loss}\n"), 7, 'needs "every"'),
        (spec(rest="  evaluation: {on: train, fraction: 0.1}\n"), 7, '"on" names a split and "fraction" makes one'),
        (spec(rest="  init: random\n  method: lora\n"), 7, "an adapter of random weights"),
        (spec(rest="  task: object-detection\n  method: lora\n"), 8, '"object-detection" is trained whole'),
        (spec(rest="  spec_augment: {mask_time_prob: 0.1}\n"), 7, "is for tasks that read audio"),
        (
            spec(rest=SMOOTHED),
            10,
            'says nothing of image-classification with "objective: regress"',
        ),
        (spec("{path: d, format: csv}"), 6, "'auto', 'chat', 'sharegpt', 'alpaca', 'prompt', 'preference', 'text'"),
        (spec("{path: d, encoding: utf-9}"), 6, "expected an encoding that Python knows"),
        (spec("{path: d, on_bad_row: drop}"), 6, "'refuse', 'skip'"),
        (spec("{path: d, subset: x}"), 6, "goes with a data set of a hub"),
        (spec("{path: hf://a/b, encoding: utf-8}"), 6, "a data set of a hub says itself"),
        (spec("{path: d, columns: {prompt: x}}"), 6, "prompt"),
    ],
)
def test_what_does_not_go_together_is_refused_at_its_place(text: str, line: int, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text, "a.yaml")
    matching = [problem for problem in caught.value.problems if words in str(problem)]
    assert matching, str(caught.value)
    assert matching[0].where.startswith(f"a.yaml:{line}:")


def test_a_held_out_fraction_is_the_same_on_the_other_side_of_a_connection() -> None:
    """Before, the default of "on" travelled with it, and every controller refused the two of them."""
    held_out = load(spec(rest="  evaluation: {fraction: 0.2, every: 5, best: loss}\n"))[0]
    assert load_json(held_out.dump()) == held_out == load_json(held_out.written())
    assert (held_out.train.evaluation.on, held_out.train.evaluation.fraction) == (None, 0.2)  # type: ignore[union-attr]
    usual = load(spec("{path: d, split: test}\n    - {path: d}", "  evaluation: {}\n"))[0]
    assert usual.train.evaluation.on == "test" and load_json(usual.dump()) == usual  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("split", "rest", "words"),
    [
        ("test", "", '"split: test": there is no evaluation, such as {on: test}'),
        ("dev", "  evaluation: {on: train}\n", 'the rows of "split: dev": "evaluation.on" is "train"'),
        ("dev", "  evaluation: {fraction: 0.1}\n", '"split: dev": "evaluation.fraction" evaluates on a part'),
        ("dev, weight: 2", "  evaluation: {on: dev}\n", "how often rows are learnt from; these are evaluated"),
    ],
)
def test_rows_that_nobody_would_read_are_refused(split: str, rest: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(spec(f"{{path: d}}\n    - {{path: e, split: {split}}}", rest), "a.yaml")
    assert words in str(caught.value) and str(caught.value).startswith("a.yaml:7:")
