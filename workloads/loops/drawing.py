"""Small grey pictures of a label, drawn from noise: a flow that is learnt and followed (rectified flow matching).

What is learnt is the way from noise to a picture at any point between the two (Lipman et al. 2023, Liu et al. 2023); a
picture is drawn by going that way in steps. A tenth of the labels is hidden, so that what a label adds can be told and
be followed further than it leads (classifier-free guidance, Ho and Salimans 2022). It leaves model.safetensors and
drawing.json; `Drawer` is both, ready to be asked.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmsched.data import media
from llmsched.runtime import artifact
from llmsched.runtime.context import current
from workloads import datasets
from workloads.loops.learning import learn, settings
from workloads.sources import BadInput

KNOWN = {"size": 8, "hidden": 512, "blocks": 3}
LARGEST = 64  # pixels of a side
STEPS = 24  # of a drawing
GUIDANCE = 1.5  # 1: as learnt; more is clearer and less varied
_HIDDEN = 0.1  # of the labels
_FREQUENCIES = 16


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    if not 2 <= chosen.size <= LARGEST or min(chosen.hidden, chosen.blocks) < 1:
        raise BadInput(f"config: size is of 2 to {LARGEST} pixels, hidden and blocks are above 0")
    rows = datasets.load(chosen.data, ["image", "label"], inputs=current().inputs)
    labels = sorted({str(row["label"]) for row in rows})
    if len(labels) < 2:
        raise BadInput(f"data set {chosen.data}: every label is the same")
    drawn = [_pixels(row["image"], chosen.size, str(place)) for row, place in zip(rows, rows.places, strict=True)]
    pictures, wanted = torch.stack(drawn), torch.tensor([labels.index(str(row["label"])) + 1 for row in rows])
    torch.manual_seed(chosen.seed)
    model = Flow(chosen.size, len(labels), chosen.hidden, chosen.blocks)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        of_step = slice(at, at + len(rows))  # each draws for the whole step, and takes its own
        noise = torch.randn(chosen.global_batch_size, pictures.shape[1], generator=chance)[of_step]
        time, hide = torch.rand(2, chosen.global_batch_size, 1, generator=chance)[:, of_step]
        true = pictures[rows]
        said = model(torch.lerp(noise, true, time), time, torch.where(hide[:, 0] < _HIDDEN, 0, wanted[rows]))
        loss: torch.Tensor = ((said - (true - noise)) ** 2).mean(1).sum()
        return loss

    learn(model, len(rows), loss_of, chosen)

    def write(folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        about = {"labels": labels, "size": chosen.size, "hidden": chosen.hidden, "blocks": chosen.blocks}
        (folder / "drawing.json").write_text(json.dumps(about))

    artifact.save(write)


class Flow(nn.Module):  # type: ignore[misc]
    """[rows, pixels], the time (0: noise, 1: a picture) and the label (0: hidden) -> where to go, [rows, pixels]."""

    def __init__(self, size: int, labels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, _FREQUENCIES + 1), persistent=False)
        self.labels = nn.Embedding(labels + 1, hidden)
        self.begins = nn.Linear(size * size + 2 * _FREQUENCIES, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))
            for _ in range(blocks)
        )
        self.ends = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, size * size))

    def forward(self, pictures: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        waves = time * self.frequencies
        state = self.begins(torch.cat([pictures, waves.sin(), waves.cos()], 1)) + self.labels(labels)
        for block in self.blocks:
            state = state + block(state)
        return self.ends(state)


class Drawer:
    """What the loop has left in `folder`, ready to be asked."""

    def __init__(self, folder: Path) -> None:
        about: dict[str, Any] = json.loads((folder / "drawing.json").read_text())
        self.labels: list[str] = about["labels"]
        self.size = int(about["size"])
        self._model = Flow(self.size, len(self.labels), about["hidden"], about["blocks"]).requires_grad_(False)
        self._model.load_state_dict(load_file(folder / "model.safetensors"))

    def draw(self, label: int, count: int, seed: int) -> np.ndarray:
        """[count, size, size] of uint8; the same for the same seed."""
        at = torch.randn(count, self.size**2, generator=torch.Generator().manual_seed(seed))
        named, hidden = torch.full((count,), label + 1), torch.zeros(count, dtype=torch.long)
        for step in range(STEPS):
            time = torch.full((count, 1), step / STEPS)
            plain = self._model(at, time, hidden)
            at = at + (plain + GUIDANCE * (self._model(at, time, named) - plain)) / STEPS
        drawn: np.ndarray = ((at.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return drawn.reshape(count, self.size, self.size)


def _pixels(source: media.Source, size: int, place: str) -> torch.Tensor:
    """[size * size], -1 to 1. Raises BadInput."""
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            grey = image.convert("L").resize((size, size))
    except Exception as error:  # a broken file breaks in many ways
        raise BadInput(f"{place} has an image that cannot be read") from error
    return torch.from_numpy(np.asarray(grey, np.float32).ravel() / 127.5 - 1)
