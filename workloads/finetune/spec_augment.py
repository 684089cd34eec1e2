"""SpecAugment (Park et al. 2019): while it learns, a model of audio does not hear spans of time and bands of features.

Which ones is chance of the row and the step (`dropout.RowChance`), so they do not depend on what else is in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workloads.sources import BadInput

_AFTER = "feature_projection"  # of wav2vec 2.0 and its relatives: what is heard, place by place


def put_on(model: torch.nn.Module, settings: Mapping[str, Any]) -> None:
    """`settings` by transformers' names. Raises BadInput for a model that has no such place."""
    found = [part for name, part in model.named_modules() if name.rpartition(".")[2] == _AFTER]
    if len(found) != 1:
        raise BadInput(f"spec_augment: this base model has no {_AFTER}, as wav2vec 2.0 and its relatives have")

    def mask(part: torch.nn.Module, given: Any, heard: Any) -> Any:
        if not part.training:
            return heard
        return (masked(heard[0], settings), *heard[1:]) if isinstance(heard, tuple) else masked(heard, settings)

    found[0].register_forward_hook(mask)


def masked(heard: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """[rows, places, features]"""
    rows, places, features = heard.shape
    silent = _spans(rows, places, settings["mask_time_prob"], settings["mask_time_length"], heard.device)
    absent = _spans(rows, features, settings["mask_feature_prob"], settings["mask_feature_length"], heard.device)
    return heard.masked_fill(silent[:, :, None] | absent[:, None, :], 0.0)


def _spans(rows: int, places: int, share: float, length: int, device: torch.device) -> torch.Tensor:
    """True for about `share` of the places, in spans of `length`."""
    begins = torch.rand((rows, places), device=device) < share / length
    inside = begins.clone()
    for later in range(1, min(length, places)):
        inside[:, later:] |= begins[:, :-later]
    return inside
