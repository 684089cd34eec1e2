"""Weights that become fewer or coarser: `prune` before the first step, `quantize` after the last.

Pruned weights are zero and stay zero: their gradients are, so that an optimizer leaves them alone. Which ones they are
needs no note beside a checkpoint, as no other weight of those layers is exactly zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import prune as library

from workloads import int8
from workloads.sources import BadInput


def _layers(model: Any) -> list[tuple[str, Any]]:
    """Raises BadInput where there are none, as in GPT-2, whose layers are of another kind."""
    found = list(int8.linear_layers(model))
    if not found:
        raise BadInput("prune and quantize are of linear layers, and this model has none")
    return found


def prune(model: Any, amount: float) -> None:
    """The smallest `amount` (0..1) of the weights of each linear layer of the body become zero."""
    smallest = library.L1Unstructured(amount)
    with torch.no_grad():
        for _, layer in _layers(model):
            layer.weight.mul_(smallest.compute_mask(layer.weight, torch.ones_like(layer.weight)))


def keep_zeros(model: Any) -> None:
    """From here on the zeros of those layers are not learnt."""
    for _, layer in _layers(model):
        mask = (layer.weight != 0).to(layer.weight.dtype)
        layer.weight.register_hook(lambda slope, mask=mask: slope * mask)


def zeros(model: Any) -> float:
    """Their part of all weights of the model."""
    found = sum(int((layer.weight == 0).sum()) for _, layer in _layers(model))
    return float(found / sum(param.numel() for param in model.parameters()))


def make_coarse(model: Any) -> None:
    """The weights become those that 8 bits can say, in the precision that they have: what is evaluated is what is
    saved."""
    with torch.no_grad():
        for _, layer in _layers(model):
            whole, scale = int8.rows_of(layer.weight)
            layer.weight.copy_(whole.float() * scale)


def save_coarse(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """`folder` becomes the model with its linear layers in 8 bits, all else in `dtype`."""
    coarse = {name: int8.rows_of(layer.weight) for name, layer in _layers(model)}
    state = model.to(dtype).state_dict()
    for name, (whole, scale) in coarse.items():
        state |= {f"{name}.weight": whole, f"{name}.weight_scale": scale}
    model.config.quantization_config = int8.settings(model)
    model.save_pretrained(folder, state_dict=state)
