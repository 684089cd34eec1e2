"""Weights of linear layers as whole numbers of 8 bits with one scale a row, as compressed-tensors writes them
(`int-quantized`), which transformers reads with the package of that name. Here such a folder is made whole again, once
a cache, and used like any other.

    X.weight: int8 [out, in]      X.weight_scale: float32 [out, 1]      weight = X.weight * X.weight_scale
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever looks at a folder need not load it
    import torch

_METHOD, _FORMAT, _SCALE = "compressed-tensors", "int-quantized", "_scale"


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, module) of the body of a transformers model: without the last layer, which is small or the embedding."""
    from torch import nn

    body = getattr(model, model.base_model_prefix, model)
    inside = {id(module) for module in body.modules()}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) in inside:
            yield name, module


def rows_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [out, in] and float32 [out, 1]: each row as even steps up to its largest number."""
    import torch

    whole = weight.detach().float()
    scale = whole.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return torch.round(whole / scale).clamp_(-127, 127).to(torch.int8), scale


def settings(model: Any) -> dict[str, Any]:
    """The `quantization_config` of a model whose linear_layers are written so."""
    from torch import nn

    mine = {name for name, _ in linear_layers(model)}
    others = [name for name, module in model.named_modules() if type(module) is nn.Linear and name not in mine]
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = {**eight, "strategy": "channel", "dynamic": False}
    given = {**eight, "strategy": "token", "dynamic": True}  # without it, that library looks for another layout
    group = {"targets": ["Linear"], "weights": weights, "input_activations": given, "output_activations": None}
    return {
        "quant_method": _METHOD,
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": others,
    }


def is_int8(folder: Path) -> bool:
    """Whether it is what `unpack` takes."""
    try:
        config = json.loads((folder / "config.json").read_text())
        found = config["quantization_config"]
        return bool(found["quant_method"] == _METHOD and found["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def unpack(folder: Path, target: Path) -> None:
    """`target` becomes the same model with whole weights, in the precision that its config names."""
    import shutil

    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("model") and file.name != "config.json":
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    found: dict[str, Any] = {}
    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  not a dict
    whole = {
        name: (tensor.float() * found[f"{name}{_SCALE}"].float()).to(dtype) if tensor.dtype == torch.int8 else tensor
        for name, tensor in found.items()
        if not name.endswith(f".weight{_SCALE}")
    }
    save_file(whole, target / "model.safetensors", metadata={"format": "pt"})
