"""The next token of each row of a batch. A row's draw depends on its own seed only, never on who shares the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workloads.inference.openai import Sampling

_GREEDY_BELOW = 1e-5


class Sampler:
    """Draws for one sequence, with a generator of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.is_greedy = sampling.temperature < _GREEDY_BELOW
        self._temperature, self._top_p, self._top_k = sampling.temperature, sampling.top_p, sampling.top_k
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % (1 << 63))

    def draw(self, logits: torch.Tensor) -> int:
        """`logits`: (vocabulary,), on any device."""
        logits = logits.float().cpu()
        if 0 < self._top_k < logits.shape[-1]:
            least = logits.topk(self._top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        chances = torch.softmax(logits / self._temperature, dim=-1)
        if self._top_p < 1.0:
            ranked, order = chances.sort(descending=True, stable=True)
            beyond = (
                ranked.cumsum(0) - ranked > self._top_p
            )  # the one that crosses the line is kept, and the first always
            ranked[beyond] = 0.0
            return int(order[torch.multinomial(ranked, 1, generator=self._generator)])
        return int(torch.multinomial(chances, 1, generator=self._generator))


def next_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """`logits`: (rows, vocabulary)."""
    greedy = logits.argmax(dim=-1).tolist()
    return [
        best if sampler.is_greedy else sampler.draw(row)
        for best, row, sampler in zip(greedy, logits, samplers, strict=True)
    ]
