"""The best weights so far, by one metric of the evaluations, and whether it is worth going on.

They lie in a file of this process, and beside each checkpoint, so that a stop does not lose them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llmsched.data.tasks import LESS_IS_BETTER

_FILE = "best.safetensors"


class Best:
    """`metric` None: nothing is kept. `patience`: evaluations in a row that may bring nothing better; None: any."""

    def __init__(self, metric: str | None, patience: int | None) -> None:
        self.metric, self.patience = metric, patience
        self.step: int | None = None
        self.value = 0.0
        self.in_vain = 0

    def consider(self, step: int, numbers: Mapping[str, float], params: Mapping[str, Any]) -> None:
        """The weights of this step, as they were evaluated. The same step twice counts once."""
        if self.metric is None or self.step == step:
            return
        value = numbers[self.metric]
        is_better = value < self.value if self.metric in LESS_IS_BETTER else value > self.value
        if self.step is not None and not is_better:
            self.in_vain += 1
            return
        self.step, self.value, self.in_vain = step, value, 0
        save_file({name: param.detach().cpu().contiguous() for name, param in params.items()}, self._file)

    @property
    def is_enough(self) -> bool:
        return self.patience is not None and self.in_vain >= self.patience

    def put_back(self, params: Mapping[str, Any]) -> None:
        """The best weights into the model."""
        with torch.no_grad():
            for name, tensor in load_file(self._file).items():
                params[name].copy_(tensor)

    def save(self, folder: Path) -> dict[str, Any]:
        """Into a checkpoint; what its facts must hold."""
        if self.step is None:
            return {}
        shutil.copyfile(self._file, folder / _FILE)
        return {"best": {"step": self.step, "value": self.value, "in_vain": self.in_vain}}

    def read(self, facts: Mapping[str, Any], folder: Path) -> None:
        """From a checkpoint."""
        if self.metric is not None and (kept := facts.get("best")) and (folder / _FILE).is_file():
            self.step, self.value, self.in_vain = kept["step"], kept["value"], kept["in_vain"]
            shutil.copyfile(folder / _FILE, self._file)

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="llmsched-best-")

    @property
    def _file(self) -> Path:
        return Path(self._folder.name, _FILE)
