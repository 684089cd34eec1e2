"""Sequences that decode together: their keys and values in one cache, padded on the left so that all end at one column.

A sequence joins with the cache of its own prompt and leaves when it is done; the others do not notice. The mask hides
the padding and positions count real tokens only, so a row's result is that of the row alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Row(Protocol):
    last_token: int


R = TypeVar("R", bound=Row)


class Decoder:
    """A causal language model with the calls that a cache needs."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._config = model.config
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._keeps_last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # Keys and values of other sequences can be put beside one's own; the running states of a recurrent layer, or
        # what an unknown layer keeps, cannot: such models decode one sequence at a time.
        self.can_batch = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            for layer in DynamicCache(config=self._config).layers
        )

    def empty_cache(self) -> DynamicCache:
        # Without the config every layer keeps every column, also of a sliding window: the mask cuts the window, and
        # rows of unlike length stay aligned.
        return DynamicCache() if self.can_batch else DynamicCache(config=self._config)

    def prefill(self, tokens: Sequence[int], cache: DynamicCache, begin: int) -> torch.Tensor:
        """Run tokens[begin:] of one sequence after what `cache` holds; the logits (1, vocabulary) after the last."""
        ids = torch.tensor([tokens[begin:]], device=self.device)
        mask = torch.ones(1, len(tokens), dtype=torch.long, device=self.device)
        positions = torch.arange(begin, len(tokens), device=self.device)[None]
        return self._run(ids, mask, positions, cache)

    def step(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        return self._run(ids, mask, mask.sum(dim=1, keepdim=True) - 1, cache)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        where = {"position_ids": positions} if self._takes_positions else {}
        with torch.inference_mode():
            out = self.model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **where, **self._keeps_last
            )
        return out.logits[:, -1]


class Batch(Generic[R]):
    """Rows of one adapter. Column t of every tensor is the same moment for all rows."""

    def __init__(self, adapter: str | None) -> None:
        self.adapter = adapter
        self.rows: list[R] = []
        self._cache: DynamicCache
        self._mask: torch.Tensor  # (rows, columns), 1 where a row has a real token

    def join(self, row: R, cache: DynamicCache, length: int) -> None:
        """Take a sequence whose prompt of `length` tokens is in `cache`; `row.last_token` comes after it."""
        mask = torch.ones(1, length, dtype=torch.long, device=cache.layers[0].keys.device)
        if not self.rows:
            self._cache, self._mask, self.rows = cache, mask, [row]
            return
        width = max(length, self._mask.shape[1])
        with torch.inference_mode():
            for mine, other in zip(self._cache.layers, cache.layers, strict=True):
                mine.keys = torch.cat([_widen(mine.keys, width), _widen(other.keys, width)])
                mine.values = torch.cat([_widen(mine.values, width), _widen(other.values, width)])
        self._mask = torch.cat([pad(m, (width - m.shape[1], 0)) for m in (self._mask, mask)])
        self.rows.append(row)

    def step(self, decoder: Decoder) -> torch.Tensor:
        """One token further for every row; logits (rows, vocabulary)."""
        ids = torch.tensor([[row.last_token] for row in self.rows], device=self._mask.device)
        self._mask = pad(self._mask, (0, 1), value=1)
        return decoder.step(ids, self._mask, self._cache)

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with the rows at these indices only, in this order."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in kept]
        if not kept:
            del self._cache, self._mask
            return
        index = torch.tensor(kept, device=self._mask.device)
        self._mask = self._mask[index]
        unused = int(self._mask.argmax(dim=1).min())  # columns on the left that only the leavers had
        self._mask = self._mask[:, unused:]
        with torch.inference_mode():
            for layer in self._cache.layers:
                layer.keys = layer.keys[index, :, unused:]
                layer.values = layer.values[index, :, unused:]


def _widen(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """(rows, heads, columns, size), padded on the left."""
    return pad(tensor, (0, 0, columns - tensor.shape[-2], 0))
