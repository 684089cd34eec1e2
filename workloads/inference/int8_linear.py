"""Linear layers that compute in whole numbers of 8 bits on the CPU (`engine_kwargs.quantization: int8`).

Weights have a scale a row (`workloads/int8.py`), and so has what goes in, measured as it comes: what one request is
answered depends on no other in its batch. The kernel is oneDNN's, which torch's own compiler uses; all use of it is
here. Weights take a quarter of float32's place, twice: as the kernel reads them, and plain, for gradients (`why.py`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from workloads import int8

_MIDDLE = 128  # of what goes in: the kernel takes whole numbers from 0 to 255


class _Int8Linear(nn.Linear):  # type: ignore[misc]
    """Still a Linear, so that PEFT can put an adapter around it; `weight` has a shape and no place in memory."""

    plain: torch.Tensor
    packed: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.requires_grad and torch.is_grad_enabled():  # the kernel has no way back
            return functional.linear(input, self.plain.to(input.dtype) * self.scale[:, None], self.bias)
        rows = input.reshape(-1, self.in_features)
        largest = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        steps = largest.clamp_min_(1e-12).div_(127)
        coarse = rows.mul(steps.reciprocal()).add_(_MIDDLE + 0.5).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            coarse, 1.0, _MIDDLE, self.packed, self.scale, self.offset, None, 1.0, 0, torch.float32, "none", [], ""
        )
        out = out.mul_(steps) if self.bias is None else out.mul_(steps).add_(self.bias)
        return out.view(*input.shape[:-1], self.out_features)


def make_int8(model: nn.Module) -> None:
    """The linear layers of a float32 model's body. Raises ValueError where that cannot be."""
    layers = [layer for _, layer in int8.linear_layers(model)]
    if not layers:
        raise ValueError("quantization: int8 is of linear layers, and this model has none")
    if any(layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32 for layer in layers):
        raise ValueError("quantization: int8 computes on CPUs, from float32: leave it out on a GPU, and dtype too")
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ValueError("quantization: int8 needs a torch with oneDNN, which this one lacks")
    for layer in layers:
        plain, scale = int8.rows_of(layer.weight)
        layer.__class__ = _Int8Linear
        layer.plain, layer.scale = plain, scale[:, 0].contiguous()
        layer.packed = torch.ops.onednn.qlinear_prepack(plain, None)
        layer.offset = torch.zeros(len(plain), dtype=torch.int64)
        layer.weight = nn.Parameter(torch.zeros(1).expand(plain.shape), requires_grad=False)
