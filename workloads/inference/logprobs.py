"""Probabilities of an answer's tokens, in the two forms that OpenAI's protocol has for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workloads.inference.sampling import Said

HALF = "\ufffd"  # what a tokenizer writes for bytes that are no whole character


def for_chat(said: Sequence[Said], tokenizer: Any) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": logprob, "bytes": None if HALF in text else [*text.encode()]}

    content = [
        {**one(each.token, each.logprob), "top_logprobs": [one(*other) for other in each.likeliest]} for each in said
    ]
    return {"content": content, "refusal": None}


def for_completions(said: Sequence[Said], tokenizer: Any, offset: int) -> dict[str, Any]:
    """`offset`: characters of the answer before these tokens."""
    texts = [tokenizer.decode([each.token]) for each in said]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [each.logprob for each in said],
        "top_logprobs": [{tokenizer.decode([token]): value for token, value in each.likeliest} for each in said],
        "text_offset": offsets,
    }
