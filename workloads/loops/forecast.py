"""The next numbers of a series: what differs from the same time a season ago, from what did so far.

A network that learns the whole series has to learn the season first; the difference is what is left to say. The end of
the series is held out. `eval.mae_season` is what saying "as a season ago" comes to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional

from llmsched.runtime import artifact
from workloads.loops.learning import layers, learn, numbers_in, rows_of, settings
from workloads.sources import BadInput

KNOWN = {"column": str, "season": int, "horizon": 1, "window": 0, "hidden": [64], "held_out": 0.2}


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    season, ahead = chosen.season, chosen.horizon
    window = chosen.window or 2 * ahead
    series = torch.tensor(numbers_in(rows_of(chosen.data, chosen.column), chosen.column, chosen.data))
    if not 0 < chosen.held_out < 1 or not 0 < ahead <= season or window < 1:
        raise BadInput("config: held_out lies between 0 and 1, horizon between 1 and season, window above 0")
    away = series[season:] - series[:-season]
    size = len(away) - window - ahead + 1
    tested = round(chosen.held_out * len(away))
    if size - tested - ahead < 1 or tested < ahead:
        raise BadInput(
            f"data set {chosen.data}: {len(series):,} numbers are few for a season of {season}, a window of {window} "
            f"and {ahead} ahead"
        )
    learnt = size - tested - ahead + 1  # no number that is asked about is in what is learnt
    spread = float(away[: learnt + window].std()) or 1.0
    before = away.unfold(0, window, 1)[:size] / spread
    after = away[window:].unfold(0, ahead, 1) / spread
    torch.manual_seed(chosen.seed)
    model = layers(window, chosen.hidden, ahead)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        return functional.smooth_l1_loss(model(before[rows]), after[rows], reduction="sum") / ahead

    learn(model, learnt, loss_of, chosen)
    with torch.no_grad():
        off = (model(before[size - tested :]) - after[size - tested :]) * spread
    alone = after[size - tested :] * spread

    def write(folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        about = {"season": season, "window": window, "horizon": ahead, "hidden": chosen.hidden, "spread": spread}
        (folder / "forecast.json").write_text(json.dumps(about, indent=1))

    artifact.save(write)
    artifact.metrics(**{"eval.mae": float(off.abs().mean()), "eval.mae_season": float(alone.abs().mean())})
