"""What a draw keeps to: the same rules as transformers' own, and probabilities that are the model's."""

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from llmsched.data.parameters import Sampling
from workloads.inference.sampling import Sampler

LOGITS = torch.tensor([2.0, 1.5, -0.5, 0.25, -3.0, 1.9])


def sampler(prompt=(), **asked):
    return Sampler(Sampling(max_tokens=9, **{"temperature": 0.0, "seed": 1, **asked}), prompt)


def drawn(count=400, **asked):
    one = sampler(**asked)
    return {one.draw(LOGITS) for _ in range(count)}


def test_min_p_keeps_what_transformers_keeps():
    for bound in (0.05, 0.3, 0.7, 1.0):
        kept = MinPLogitsWarper(bound)(None, LOGITS[None])[0].isfinite().nonzero().flatten().tolist()
        assert drawn(temperature=1.0, min_p=bound) == set(kept)


def test_a_repetition_penalty_moves_logits_as_transformers_does_prompt_included():
    prompt, made = (0, 4), (1, 1, 2)
    one = sampler(prompt, repetition_penalty=1.7)
    for token in made:
        one._made[token] += 1
    seen = torch.tensor([[*prompt, *made]])
    assert torch.allclose(one._moved(LOGITS), RepetitionPenaltyLogitsProcessor(1.7)(seen, LOGITS[None].clone())[0])


def test_frequency_counts_each_time_and_presence_once():
    one = sampler(frequency_penalty=0.5, presence_penalty=0.25)
    assert [one.draw(LOGITS) for _ in range(4)] == [0, 5, 1, 0]  # 2.0, 1.9, 1.5, then 2.0 - 0.75 beats 1.9 - 0.75
    assert torch.allclose(one._moved(LOGITS)[:2], torch.tensor([2.0 - 2 * 0.5 - 0.25, 1.5 - 0.5 - 0.25]))


def test_a_bias_forbids_and_demands():
    assert sampler(logit_bias=((0, -100.0),)).draw(LOGITS) == 5
    assert drawn(temperature=1.0, logit_bias=((4, 100.0),)) == {4}


def test_probabilities_are_of_the_model_whatever_was_asked_of_the_draw():
    one = sampler(logprobs=2, logit_bias=((0, -100.0),))
    assert one.draw(LOGITS) == 5
    (said,) = one.said
    told = torch.log_softmax(LOGITS, dim=0)
    assert said.logprob == pytest.approx(float(told[5]))
    assert said.likeliest == ((0, pytest.approx(float(told[0]))), (5, pytest.approx(float(told[5]))))


def test_only_a_plain_greedy_row_is_spared_the_draw():
    assert sampler().is_plain
    for asked in ({"logprobs": 0}, {"presence_penalty": 1.0}, {"temperature": 1.0}, {"logit_bias": ((1, 1.0),)}):
        assert not sampler(**asked).is_plain
