"""Drafts from what stands in a sequence already: fewer passes, and the same answers."""

import asyncio
import json

import tiny_models
from test_inference_engine import CPU, say, tokens

from workloads.inference.batch import Decoder
from workloads.inference.drafts import Drafts
from workloads.inference.engine import Settings, TransformersEngine


def test_drafts_take_fewer_passes_and_change_no_answer_however_it_is_drawn(tmp_path, monkeypatch):
    """Long, short, stopped in the middle of a draft, by a seed, and by a grammar."""
    schema = json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 6, "maxItems": 9})
    repeats = {"logit_bias": tuple((ord(letter), 50.0) for letter in "ab")}  # it says a and b, in turns that come again
    asked = [
        {"max_tokens": 64, **repeats},
        {"max_tokens": 7, **repeats},
        {"max_tokens": 64, "temperature": 0.2, "seed": 3, "logprobs": 1, **repeats},
        {"max_tokens": 24},
        {"max_tokens": 40, "schema": schema},
    ]
    folder, passes, run = tiny_models.llama(tmp_path), 0, Decoder._run

    def counted(self, *args, **kwargs):
        nonlocal passes
        passes += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Decoder, "_run", counted)

    async def main(engine):
        nonlocal passes
        passes = 0
        said = [await say(engine, prompt, **one) for prompt in ("a cat and a cat and a", "12 12 12") for one in asked]
        said.append(await say(engine, "a cat and a cat and a", max_tokens=64, stop=("aa",), **repeats))
        answer = [each.token for piece in said[7] for each in piece.said]
        said.append(await say(engine, [*tokens(engine, "12 12 12"), *answer, *tokens(engine, "?")]))
        return [[(piece.text, piece.finish_reason) for piece in pieces] for pieces in said], passes

    found = []
    for drafted in (0, 8):
        engine = TransformersEngine(folder, Settings(num_speculative_tokens=drafted), CPU)
        try:
            found.append(asyncio.run(main(engine)))
        finally:
            engine.close()
    (without, many), (with_drafts, fewer) = found
    assert with_drafts == without
    assert fewer < 0.7 * many, (fewer, many)


def test_drafts_that_are_wrong_become_rare():
    drafts, made = Drafts([1, 2, 3, 1, 2]), 0
    for token in range(200):
        if draft := drafts.next():
            drafts.told(len(draft), 0)
            made += 1
        drafts.add(1 + token % 2)
    assert 4 <= made <= 12
