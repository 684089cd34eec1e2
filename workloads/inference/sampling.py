"""The next token of each row of a batch. A row's draw depends on its own seed and past only, never on who shares the
batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from llmsched.data.parameters import Sampling

_GREEDY_BELOW = 1e-5


class Said(NamedTuple):
    """A token of an answer, the logarithm of its probability as the model gave it, and the likeliest at its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Grammar(Protocol):
    """What may come next, of one answer."""

    def mask(self) -> torch.Tensor:
        """(vocabulary,), True for tokens that may come."""

    def take(self, token: int) -> None: ...


class Sampler:
    """Draws for one sequence, with a generator of its own. Of those whose `sampling.logprobs` is a number, `said` grows
    by what was drawn, until somebody takes it."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = (), grammar: Grammar | None = None) -> None:
        self.is_greedy = sampling.temperature < _GREEDY_BELOW
        self.said: list[Said] = []
        self._asked, self._grammar = sampling, grammar
        self._made: Counter[int] = Counter()
        self._seen = torch.tensor(sorted(set(prompt)), dtype=torch.long)
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % (1 << 63))
        self._is_moved = bool(
            sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1.0
            or sampling.logit_bias or grammar is not None
        )  # fmt: skip
        self.is_plain = self.is_greedy and not self._is_moved and sampling.logprobs is None

    def draw(self, logits: torch.Tensor) -> int:
        """`logits`: (vocabulary,), on any device."""
        logits = logits.float().cpu()
        moved = self._moved(logits) if self._is_moved else logits
        token = int(moved.argmax()) if self.is_greedy else self._drawn(moved)
        if self._asked.logprobs is not None:
            self.said.append(_told(logits, token, self._asked.logprobs))
        if self._is_moved:
            self._made[token] += 1
        if self._grammar is not None:
            self._grammar.take(token)
        return token

    def _moved(self, logits: torch.Tensor) -> torch.Tensor:
        """By what came before, by wishes, and by what may come at all."""
        asked, moved = self._asked, logits.clone()
        made = torch.tensor([*self._made], dtype=torch.long)
        if asked.repetition_penalty != 1.0:
            seen = torch.cat([self._seen[self._seen < len(moved)], made]).unique()
            there = moved[seen]
            moved[seen] = torch.where(there > 0, there / asked.repetition_penalty, there * asked.repetition_penalty)
        if len(made) and (asked.frequency_penalty or asked.presence_penalty):
            counts = torch.tensor([*self._made.values()], dtype=moved.dtype)
            moved[made] -= asked.frequency_penalty * counts + asked.presence_penalty
        for token, bias in asked.logit_bias:
            moved[token] += bias
        if self._grammar is not None:
            moved.masked_fill_(~self._grammar.mask(), -torch.inf)
        return moved

    def _drawn(self, logits: torch.Tensor) -> int:
        asked = self._asked
        if 0 < asked.top_k < logits.shape[-1]:
            least = logits.topk(asked.top_k).values[-1]
            logits = logits.masked_fill(logits < least, -torch.inf)
        chances = torch.softmax(logits / asked.temperature, dim=-1)
        if asked.min_p > 0.0:
            chances = chances.masked_fill(chances < asked.min_p * chances.max(), 0.0)
        if asked.top_p < 1.0:
            ranked, order = chances.sort(descending=True, stable=True)
            beyond = (
                ranked.cumsum(0) - ranked > asked.top_p * ranked.sum()
            )  # the one that crosses the line is kept, and the first always
            ranked[beyond] = 0.0
            return int(order[torch.multinomial(ranked, 1, generator=self._generator)])
        return int(torch.multinomial(chances, 1, generator=self._generator))


def _told(logits: torch.Tensor, token: int, count: int) -> Said:
    chances = torch.log_softmax(logits, dim=-1)
    best = chances.topk(count) if count else None
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True) if best is not None else ()
    return Said(token, float(chances[token]), tuple(rows))


def next_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | Exception]:
    """`logits`: (rows, vocabulary). Of a row that cannot be drawn, why not: it says nothing about the others."""
    greedy = logits.argmax(dim=-1).tolist()
    return [_next(*row) for row in zip(greedy, logits, samplers, strict=True)]


def _next(best: int, logits: torch.Tensor, sampler: Sampler) -> int | Exception:
    try:
        return best if sampler.is_plain else sampler.draw(logits)
    except Exception as error:
        return error
