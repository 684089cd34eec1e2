"""LoRA adapters on one base model, put in while it serves; rows of several of them go through it together.

An adapter is looked at before it touches the model: safetensors only, and every matrix must fit the layer it is for.
Not thread-safe: `check` may run anywhere, the rest belongs to the thread that runs the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_BASE = "__base__"  # PEFT's name for a row without an adapter
_MATRIX = re.compile(r"^(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


class AdapterError(ValueError):
    """This adapter cannot be used on this model; the message says why."""


class Adapters:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._peft: Any = None
        self._active: str | None = None
        self._alone: set[str] = set()  # adapters whose rows cannot go with others
        self._rows: list[str] | None = None  # the adapter of each row that goes through the model, where they differ
        self._told: set[Any] = set()  # layers that hear of it

    def check(self, folder: Path) -> None:
        """Raises AdapterError unless `folder` holds a LoRA adapter in safetensors whose shapes are this model's."""
        config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        if not config_file.is_file():
            raise AdapterError(f"no adapter_config.json in {folder.name}: not a PEFT adapter")
        if not weights.is_file():
            pickled = (folder / "adapter_model.bin").exists()
            why = "its weights are pickled, which can run code" if pickled else "it has no adapter_model.safetensors"
            raise AdapterError(f"{why}; save it as safetensors")
        try:
            kind = json.loads(config_file.read_text()).get("peft_type")
        except (ValueError, AttributeError) as error:
            raise AdapterError(f"adapter_config.json cannot be read: {error}") from None
        if kind != "LORA":
            raise AdapterError(f"it is of type {kind}; only LORA adapters are served")
        self._check_shapes(weights)

    def _check_shapes(self, weights: Path) -> None:
        from safetensors import SafetensorError, safe_open

        layers = dict(self._model.named_modules())
        found = 0
        try:
            with safe_open(weights, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  not a dict
                    match = _MATRIX.match(key)
                    if match is None:
                        continue
                    found += 1
                    layer = layers.get(match["layer"])
                    if layer is None:
                        raise AdapterError(f"it was made for another model: this one has no layer {match['layer']}")
                    given = tensors.get_slice(key).get_shape()[1 if match["side"] == "A" else 0]
                    wanted = _size(layer, match["side"])
                    if given != wanted:
                        way = "inputs" if match["side"] == "A" else "outputs"
                        raise AdapterError(
                            f"it was made for another model: {match['layer']} has {wanted} {way} here, {given} in it"
                        )
        except SafetensorError as error:
            raise AdapterError(f"adapter_model.safetensors is damaged: {error}") from None
        if not found:
            raise AdapterError("adapter_model.safetensors holds no LoRA matrices")

    def load(self, name: str, folder: Path) -> None:
        """Put the checked adapter into the model under `name`, which must be new."""
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
            else:
                self._peft.load_adapter(str(folder), adapter_name=name)
        finally:  # a load that broke off may have left its layers switched on
            for layer in self._model.modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.enable_adapters(False)
            self._active = None
        self._peft.eval()
        self._tell_layers()
        if not self._mixes(name):
            self._alone.add(name)

    def group(self, name: str | None) -> str | None:
        """Rows of one group may go through the model together."""
        return name if name in self._alone else None

    def run(self, names: Sequence[str | None], **inputs: Any) -> Any:
        """One forward pass; `names`: the adapter of each row, None for the base alone; of one group."""
        if self._peft is None or len(set(names)) == 1:
            self._use(names[0])
            return self._model(**inputs)
        self._peft.base_model.enable_adapter_layers()
        self._active = _BASE  # of no single one
        self._rows = [name or _BASE for name in names]
        try:
            return self._model(**inputs)
        finally:
            self._rows = None

    def _tell_layers(self) -> None:
        """Their own argument `adapter_names` is filled in here, and not by PEFT's model: that leaves its hooks in the
        layers for ever where a pass fails."""
        from peft.tuners.lora import LoraLayer
        from peft.utils import AuxiliaryTrainingWrapper

        def with_rows(layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "adapter_names": self._rows} if self._rows is not None else kwargs

        for layer in self._model.modules():
            if isinstance(layer, (LoraLayer, AuxiliaryTrainingWrapper)) and layer not in self._told:
                layer.register_forward_pre_hook(with_rows, with_kwargs=True)
                self._told.add(layer)

    def _mixes(self, name: str) -> bool:
        """Whether a row of it says beside one of the base what it says alone: PEFT cannot mix all that it can load
        (DoRA, experts in one tensor)."""
        ids = torch.tensor([[0, 1, 2], [2, 1, 0]], device=self._model.device)
        try:
            with torch.inference_mode():
                mixed = self.run([name, None], input_ids=ids).logits
                alone = [self.run([one], input_ids=ids[n : n + 1]).logits for n, one in enumerate((name, None))]
        except (ValueError, TypeError, IndexError, RuntimeError):
            return False
        near = 1e-3 if mixed.dtype == torch.float32 else 0.05
        return all(torch.allclose(mixed[n], one[0], rtol=near, atol=near) for n, one in enumerate(alone))

    def _use(self, name: str | None) -> None:
        """The next forward passes are with this adapter; None: the base alone."""
        if name == self._active or self._peft is None:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(name, inference_mode=True)
        self._active = name

    def drop(self, name: str) -> None:
        """Free an adapter nobody uses any more."""
        self._peft.delete_adapter(name)
        self._alone.discard(name)
        self._active = name  # deleting may have switched another one on
        self._use(None)


def _size(layer: Any, side: str) -> int:
    """Inputs (A) or outputs (B) of a linear layer; GPT-2's Conv1D keeps its weight the other way round."""
    size = getattr(layer, "in_features" if side == "A" else "out_features", None)
    if size is not None:
        return int(size)
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dim() != 2:
        raise AdapterError("it changes a layer that is not linear, which is not served")
    return int(weight.shape[0 if side == "A" else 1])
