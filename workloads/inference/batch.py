"""Sequences that decode together: their keys and values in one cache, padded on the left so that all end at one column.

A sequence joins with the cache of its own prompt and leaves when it is done; the others do not notice. The mask hides
the padding and positions count real tokens only, so a row's result is that of the row alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from workloads.inference.adapters import Adapters
from workloads.inference.kv_layers import RoomyLayer
from workloads.inference.prefix_cache import Layers

_ROPE_BY_LENGTH = ("dynamic", "longrope")


class Row(Protocol):
    adapter: str | None
    last_token: int


R = TypeVar("R", bound=Row)


class Decoder:
    """A causal language model and its adapters, with the calls that a cache needs."""

    def __init__(self, model: Any, adapters: Adapters, device: torch.device) -> None:
        self._adapters = adapters
        self.device = device
        self._config = model.config
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._keeps_last = "logits_to_keep" in takes
        # Keys and values of other sequences can be put beside one's own; the running states of a recurrent layer, or
        # what an unknown layer keeps, cannot: such models decode one sequence at a time.
        self.can_batch = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            for layer in DynamicCache(config=self._config).layers
        )
        # What a token's keys are may depend on how long its sequence was when it was read.
        self.can_reuse = self.can_batch and not any(kind in _ROPE_BY_LENGTH for kind in _rope_kinds(self._config))

    def empty_cache(self) -> Cache:
        # Without the config every layer keeps every column, also of a sliding window: the mask cuts the window, and
        # rows of unlike length stay aligned.
        if self.can_batch:
            return Cache(layer_class_to_replicate=RoomyLayer)
        return DynamicCache(config=self._config)

    def filled_cache(self, pieces: Sequence[Layers]) -> Cache:
        """An empty one, and then copies of these columns."""
        cache = self.empty_cache()
        with torch.inference_mode():
            for piece in pieces:
                for number, (keys, values) in enumerate(piece):
                    cache.update(keys, values, number)
        return cache

    def prefill(self, tokens: Sequence[int], cache: Cache, begin: int, adapter: str | None) -> torch.Tensor:
        """Run tokens[begin:] of one sequence after what `cache` holds; the logits (1, vocabulary) after the last."""
        ids = torch.tensor([tokens[begin:]], device=self.device)
        mask = torch.ones(1, len(tokens), dtype=torch.long, device=self.device)
        positions = torch.arange(begin, len(tokens), device=self.device)[None]
        return self._run(ids, mask, positions, cache, [adapter])[:, -1]

    def step(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, adapters: Sequence[str | None]) -> torch.Tensor:
        return self._run(ids, mask, mask.sum(dim=1, keepdim=True) - 1, cache, adapters)[:, -1]

    def read_draft(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, adapter: str | None) -> torch.Tensor:
        """Of one row, whose newest tokens are `ids` (1, tokens); logits (tokens, vocabulary) after each of them."""
        count = ids.shape[1]
        positions = mask.cumsum(dim=1)[:, -count:] - 1
        return self._run(ids, mask, positions, cache, [adapter], keeps=count)[0]

    def _run(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        adapters: Sequence[str | None],
        keeps: int = 1,
    ) -> torch.Tensor:
        """Logits (rows, tokens, vocabulary), at least of the last `keeps` tokens."""
        where = {"position_ids": positions} if self._takes_positions else {}
        with torch.inference_mode():
            out = self._adapters.run(
                adapters,
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **where,
                **({"logits_to_keep": keeps} if self._keeps_last else {}),
            )
        logits: torch.Tensor = out.logits
        return logits


class Newcomer(NamedTuple, Generic[R]):
    """A sequence whose prompt of `length` tokens is in `cache`; `row.last_token` comes after it."""

    row: R
    cache: Cache
    length: int


class Batch(Generic[R]):
    """Column t of every tensor is the same moment for all rows. `group`: of which rows it is, by `Adapters.group`."""

    def __init__(self, group: str | None) -> None:
        self.group = group
        self.rows: list[R] = []
        self._cache: Cache
        self._mask: torch.Tensor  # (rows, columns), 1 where a row has a real token

    def join(self, newcomers: Sequence[Newcomer[R]]) -> None:
        device = newcomers[0].cache.layers[0].keys.device
        masks = [self._mask] if self.rows else []
        masks += [torch.ones(1, one.length, dtype=torch.long, device=device) for one in newcomers]
        caches = ([self._cache] if self.rows else []) + [one.cache for one in newcomers]
        width = max(mask.shape[1] for mask in masks)
        if len(caches) > 1:
            with torch.inference_mode():
                by_layer = zip(*(cache.layers for cache in caches), strict=True)
                self._cache = Cache(layers=[RoomyLayer.joined(layers, width) for layers in by_layer])
        else:
            self._cache = caches[0]
        self._mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self.rows += [one.row for one in newcomers]

    def step(self, decoder: Decoder) -> torch.Tensor:
        """One token further for every row; logits (rows, vocabulary)."""
        ids = torch.tensor([[row.last_token] for row in self.rows], device=self._mask.device)
        self._mask = pad(self._mask, (0, 1), value=1)
        return decoder.step(ids, self._mask, self._cache, [row.adapter for row in self.rows])

    def read_draft(self, decoder: Decoder, draft: Sequence[int]) -> torch.Tensor:
        """The only row's last token and what may follow it, in one pass; logits (1 + draft, vocabulary). `drop_last`
        takes back what did not follow."""
        (row,) = self.rows
        ids = torch.tensor([[row.last_token, *draft]], device=self._mask.device)
        self._mask = pad(self._mask, (0, ids.shape[1]), value=1)
        return decoder.read_draft(ids, self._mask, self._cache, row.adapter)

    def drop_last(self, columns: int) -> None:
        if columns:
            self._mask = self._mask[:, :-columns]
            for layer in self._cache.layers:
                layer.drop_last(columns)

    def columns(self, index: int) -> Layers:
        """Keys and values of all that the row at this index has read and said. Views: copy them."""
        begin = int(self._mask[index].argmax())
        row = slice(index, index + 1)
        return [(layer.keys[row, :, begin:], layer.values[row, :, begin:]) for layer in self._cache.layers]

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
                layer.keep(index, unused)


def layers_of(cache: Cache) -> Layers:
    """Of one sequence."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rope_kinds(config: Any) -> list[str]:
    """How positions are told, of each kind of layer."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    each = [given, *(one for one in given.values() if isinstance(one, dict))]
    return [str(one["rope_type"]) for one in each if one.get("rope_type")]
