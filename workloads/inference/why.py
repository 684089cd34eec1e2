"""Why a text got its answer: what each of its words adds to the probability of the label, or to the number.

Integrated gradients (Sundararajan et al. 2017) on the vectors of the tokens: `STEPS` points on the straight way from a
text that says nothing, of masks or fillers alone, to the one that was asked about. So the weights of all words together
are about what the whole text changes against that one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from workloads.tasks.reads import Batch, Encoded

STEPS = 16
_AT_ONCE = 4096  # tokens, of several points together: gradients take several times the room of an answer

Weights = list[float]  # of each token


def weights(model: Any, batch: Batch, number: int, nothing: torch.Tensor) -> Generator[None, None, Weights]:
    """Of the one text in `batch`, by its tokens; a part of the work between two yields. `number`: of the label.
    `nothing`: [1, tokens], the ids of a text that says nothing. The model's weights need no gradient."""
    ids, embed = batch["input_ids"], model.get_input_embeddings()
    with torch.no_grad():
        start, whole = embed(nothing), embed(ids)
    total = torch.zeros_like(whole[0])
    at_once = max(1, min(STEPS // 4, _AT_ONCE // ids.shape[1]))
    for first in range(0, STEPS, at_once):
        points = torch.arange(first, min(first + at_once, STEPS), device=ids.device, dtype=whole.dtype)
        total += _slopes(model, batch, number, start + (whole - start) * (points[:, None, None] + 0.5) / STEPS)
        yield
    return [float(each) for each in ((whole - start)[0] * total / STEPS).sum(-1)]


def _slopes(model: Any, batch: Batch, number: int, points: torch.Tensor) -> torch.Tensor:
    """[tokens, size]: the gradients at all points, summed."""
    many = {name: tensor.expand(len(points), *tensor.shape[1:]) for name, tensor in batch.items()}
    ids = many["input_ids"]

    def instead(module: Any, given: Any, made: torch.Tensor) -> torch.Tensor:
        """A decoder that has the same module reads other ids."""
        is_input = bool(given) and given[0].shape == ids.shape and torch.equal(given[0], ids)
        return points if is_input else made

    handle = model.get_input_embeddings().register_forward_hook(instead)
    try:
        with torch.enable_grad():
            points.requires_grad_()
            logits = model(**many).logits.float()
            said = torch.softmax(logits, dim=-1) if logits.shape[-1] > 1 else logits
            (slopes,) = torch.autograd.grad(said[:, number].sum(), points)
    finally:
        handle.remove()
    return slopes.sum(0)


def words(row: Encoded, weights: Sequence[float]) -> list[dict[str, Any]]:
    """What is told of each word, in order: {"text", "weight", "at": {"start", "end"}}, and of a pair the "role".

    A word's weight is that of its tokens together. Tokens that frame a text belong to none and are left out."""
    found: list[dict[str, Any]] = []
    before: tuple[int | None, int | None] = (None, None)
    for weight, side, word, (start, end) in zip(weights, row["sides"], row["words"], row["places"], strict=True):
        if side is None or start == end:
            continue
        text = row["texts"][side]
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if found and side == before[0] and (word == before[1] or _goes_on(text, found[-1]["at"]["end"], start)):
            found[-1]["weight"] += weight
            found[-1]["at"]["end"] = max(end, found[-1]["at"]["end"])
        else:
            role = {"role": ("text", "text_pair")[side]} if len(row["texts"]) > 1 else {}
            found.append({"text": "", "weight": weight, "at": {"start": start, "end": end}, **role})
        found[-1]["text"] = text[found[-1]["at"]["start"] : found[-1]["at"]["end"]]
        before = side, word
    return found


def _goes_on(text: str, end: int, start: int) -> bool:
    """Whether an apostrophe joins what ends with what starts: don't is one word, however a tokenizer cuts it."""
    return 0 < end == start < len(text) and bool({text[end - 1], text[start]} & {"'", "’"})
