"""Chance in a forward pass as a function of (seed, step, row, place in the model, position): the same for a row
whatever it is batched or padded with, on any number of workers.

Dropout, also inside attention, and stochastic depth are taken over while `RowChance` is entered. What they draw is a
hash (lowbias32, by Chris Wellons): there is no state to share out. Attention with dropout is computed plainly then.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MASK = 0xFFFFFFFF
_PRIMES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646C)


def key_of(seed: int, step: int, row: int) -> int:
    """32 bits of a row in a step; of the step alone with row -1."""
    return _mixed_int(_mixed_int(_mixed_int(seed & _MASK) ^ (step & _MASK)) ^ ((row + 1) & _MASK))


class RowChance(TorchFunctionMode):  # type: ignore[misc]
    """While entered. `keys`: of the rows of the batch, as they lie in it; `shared`: what has no row draws from it."""

    def __init__(self, keys: torch.Tensor, shared: int, site: int = 0) -> None:
        super().__init__()
        self.keys, self.shared = keys, shared
        self.site = site  # how often was drawn: two layers differ

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in (functional.dropout, torch.dropout):
            given.pop("inplace", None)
            return self._dropout(*args[:3], **given)
        if func is functional.scaled_dot_product_attention and _dropout_of_attention(*args, **given):
            return self._attention(*args, **given)
        if func is torch.rand:
            shape = args[0] if args and not isinstance(args[0], int) else args or given.pop("size", ())
            return self._draw(tuple(shape), given.get("device")).to(given.get("dtype") or torch.float32) / (_MASK + 1)
        if func is torch.multinomial:  # patches of an image, chosen row by row: alike in all, so that no count shows
            chosen = args[0].cpu()
            given["generator"] = torch.Generator().manual_seed(self.shared)
            return func(chosen, *args[1:], **given).to(args[0].device)
        return func(*args, **given)

    def again(self) -> tuple[contextlib.AbstractContextManager[None], RowChance]:
        """For a part of the model that is computed again on the way back: what it is computed in first, and then."""
        return contextlib.nullcontext(), RowChance(self.keys, self.shared, self.site)

    def _dropout(self, input: torch.Tensor, p: float = 0.5, training: bool = True) -> Any:
        if not training or p <= 0.0:
            return input
        stays = self._draw(tuple(input.shape), input.device) >= int(p * (_MASK + 1))
        return input * stays.to(input.dtype).mul_(1.0 / (1.0 - p)) if p < 1.0 else input * 0.0

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        weights = query @ key.transpose(-2, -1) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            weights = weights.masked_fill(~attn_mask, -torch.inf) if is_bool else weights + attn_mask
        weights = torch.softmax(weights.float(), dim=-1).to(query.dtype)
        return self._dropout(weights, dropout_p) @ value

    def _draw(self, shape: tuple[int, ...], device: Any) -> torch.Tensor:
        """Whole numbers below 2**32. A first dimension that is a multiple of the rows belongs to them in order."""
        self.site += 1
        first, *others = shape or (1,)
        rows = len(self.keys)
        keys = self.keys.to(device)
        if shape and first % rows == 0:
            keys = keys.repeat_interleave(first // rows)
            within = torch.arange(first // rows, device=keys.device).repeat(rows)
        else:
            keys = torch.full((first,), self.shared, dtype=torch.int64, device=keys.device)
            within = torch.arange(first, device=keys.device)
        drawn = _mixed((keys ^ _mixed_int(self.site)) + within * _PRIMES[0])
        for size, prime in zip(others, _PRIMES[1:], strict=False):
            drawn = drawn[..., None] + torch.arange(size, device=keys.device) * prime
        return _mixed(drawn) if shape else _mixed(drawn)[0]


def _dropout_of_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *rest: Any, **others: Any
) -> bool:
    return dropout_p > 0.0


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    numbers = numbers & _MASK
    numbers ^= numbers >> 16
    numbers *= 0x7FEB352D
    numbers &= _MASK
    numbers ^= numbers >> 15
    numbers *= 0x846CA68B
    numbers &= _MASK
    numbers ^= numbers >> 16
    return numbers


def _mixed_int(number: int) -> int:
    number ^= number >> 16
    number = number * 0x7FEB352D & _MASK
    number ^= number >> 15
    number = number * 0x846CA68B & _MASK
    return number ^ number >> 16
