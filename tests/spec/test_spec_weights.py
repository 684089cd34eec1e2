"""How weights change beside the usual steps: what goes together, and the place of what does not."""

from __future__ import annotations

import pytest

from llmsched.errors import SpecError
from llmsched.spec.load import load

BASE = "name: a\nkind: train\ntrain: {base_model: m, datasets: [{path: d}]"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (BASE + ", objective: distill}", "3:8", '"objective: distill" and a "teacher" need each other'),
        (BASE + ", teacher: t}", "3:56", '"objective: distill" and a "teacher" need each other'),
        (BASE + ", dpo: {beta: 0.2}}", "3:52", '"train.dpo": goes with "objective: dpo"'),
        (BASE + ", objective: dpo, packing: true}", "3:72", "pairs of answers are not packed"),
        (BASE + ", task: seq2seq-lm, method: qlora}", "3:73", '"qlora" is for "task: causal-lm"'),
        (BASE + ", method: lora, prune: {amount: 0.3}}", "3:68", "an adapter fills the zeros again"),
        (BASE + ", method: lora, quantize: {bits: 8}}", "3:71", '"merge: true" makes a whole model'),
        (BASE + ", quantize: {bits: 4}}", "3:64", "expected 8"),
        (BASE + ", prune: {amount: 1}}", "3:63", "less than 1"),
        (BASE + ", training_args: {max_steps: 0}}", "3:74", '0 trains nothing: it goes with "prune" or "quantize"'),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(text, "a.yaml")
    problem = next(each for each in caught.value.problems if words in str(each))
    assert problem.where == f"a.yaml:{place}"
