"""Words of other systems, TrainingArguments, SkyPilot and the like: where they lead."""

from __future__ import annotations

import pytest
from test_spec_load import TASK, TRAIN, refusal


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            TASK + "resources: {gpus: 1}",
            'Did you mean "accelerators"? Write its kind and number: accelerators: "A100:1"',
        ),
        (TASK + "resources: {cloud: aws}", "work runs on the nodes of this cluster"),
        (TASK + "runtime_env: {container: {image: a}}", 'Did you mean "environment"? That takes pip; env_vars are'),
        (TASK + "output_dir: out", "llmsched models pull NAME DIR"),
        (TRAIN[:-2] + ", training_args: {per_device_train_batch_size: 4}}", 'Did you mean "train.micro_batch_size"?'),
        (TRAIN[:-2] + ", training_args: {save_steps: 500}}", 'Did you mean "checkpoint.every"? A time, such as "10m"'),
        (TRAIN[:-2] + ", training_args: {eval_steps: 50}}", 'Did you mean "train.evaluation"?'),
        (TRAIN[:-2] + ", per_device_train_batch_size: 4}", 'Did you mean "micro_batch_size"?'),
    ],
)
def test_a_word_of_another_system_leads_to_ours_wherever_that_stands(text, words):
    (problem,) = refusal(text).problems
    assert words in problem.hint


def test_a_task_of_skypilot_is_known_as_one_and_each_of_its_words_is_answered():
    problems = refusal(
        """\
        name: sky
        resources: {accelerators: "A100:8", infra: aws}
        num_nodes: 2
        setup: pip install x
        run: python train.py
        """
    ).problems
    assert "SkyPilot" in problems[0].hint
    assert [each.where for each in problems] == ["a.yaml:1:1", "a.yaml:2:37", "a.yaml:3:1", "a.yaml:4:1", "a.yaml:5:1"]
    assert ['"workers"' in each.hint or '"task.' in each.hint for each in problems] == [False, False, True, True, True]
