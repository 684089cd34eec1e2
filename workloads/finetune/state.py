"""What a checkpoint holds besides the weights: optimizer moments in safetensors, position and metrics in JSON.

No random state: all chance of a step comes from (seed, step, row). No schedule: it is a function of the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workloads.finetune.gradients import Stepper

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def write_state(stepper: Stepper, facts: dict[str, Any], folder: Path) -> None:
    """Add optimizer.safetensors and trainer.json to `folder`. `facts` is plain JSON data."""
    tensors = {
        f"{name}/{moment}": value.detach().cpu().contiguous()
        for name, param in stepper.params.items()
        for moment, value in stepper.optimizer.state.get(param, {}).items()
        if moment in _MOMENTS
    }
    save_file(tensors, folder / "optimizer.safetensors")
    scale = stepper.scaler.get_scale() if stepper.scaler.is_enabled() else None
    (folder / "trainer.json").write_text(json.dumps({**facts, "scale": scale}, indent=1))


def read_state(stepper: Stepper, folder: Path) -> dict[str, Any]:
    """Put the optimizer back as it was; returns the facts."""
    tensors = load_file(folder / "optimizer.safetensors")
    for name, param in stepper.params.items():
        found = {moment: tensors[key] for moment in _MOMENTS if (key := f"{name}/{moment}") in tensors}
        if found:
            moved = {moment: value.to(param.device) for moment, value in found.items() if moment != "step"}
            stepper.optimizer.state[param] = {"step": found["step"].to(torch.float32), **moved}
    facts: dict[str, Any] = json.loads((folder / "trainer.json").read_text())
    if facts.get("scale") and stepper.scaler.is_enabled():
        stepper.scaler = torch.amp.GradScaler(init_scale=facts["scale"])
    return facts
