"""The next numbers of a series: what differs from the same time a season ago, from what did so far.

A network that learns the whole series has to learn the season first; the difference is what is left to say. Columns
that are `known` ahead (the weather that is forecast, holidays) are read for the time that is asked about and a season
before, and the time within a season with them. The end of the series is held out: `eval.mae_season` is what saying "as
a season ago" comes to, and how far off the held-out numbers were, `errors`, makes a band around a forecast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from llmsched.runtime import artifact
from workloads.loops.learning import layers, learn, numbers_in, rows_of, settings
from workloads.sources import BadInput

KNOWN = {"column": str, "season": int, "horizon": 1, "window": 0, "hidden": [64], "held_out": 0.2, "known": []}
QUANTILES = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]  # of the errors, for each step ahead
HARMONICS = 8  # of a season


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    season, ahead = chosen.season, chosen.horizon
    window = chosen.window or 2 * ahead
    rows = rows_of(chosen.data, chosen.column, *chosen.known)
    series = torch.tensor(numbers_in(rows, chosen.column, chosen.data))
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
    known = torch.tensor([numbers_in(rows, name, chosen.data) for name in chosen.known]).reshape(-1, len(series)).T
    middle = known[:learnt].mean(0)
    width = ((known[:learnt] - middle) ** 2).mean(0).sqrt()
    width = torch.where(width > 0, width, 1.0)
    known = (known - middle) / width
    starts = torch.arange(season + window, season + window + size)
    before = away.unfold(0, window, 1)[:size] / spread
    if chosen.known:
        before = torch.cat([before, ahead_of(known, starts, season, ahead)], 1)
    after = away[window:].unfold(0, ahead, 1) / spread
    torch.manual_seed(chosen.seed)
    model = layers(before.shape[1], chosen.hidden, ahead)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        return functional.smooth_l1_loss(model(before[rows]), after[rows], reduction="sum") / ahead

    learn(model, learnt, loss_of, chosen)
    with torch.no_grad():
        off = (model(before[size - tested :]) - after[size - tested :]) * spread
    alone = after[size - tested :] * spread
    errors = torch.quantile(-off, torch.tensor(QUANTILES), dim=0).contiguous()  # what was, less what was said

    def write(folder: Path) -> None:
        save_file({**model.state_dict(), "errors": errors}, folder / "model.safetensors")
        about = {"season": season, "window": window, "horizon": ahead, "hidden": chosen.hidden, "spread": spread}
        about |= {"column": chosen.column, "known": chosen.known}
        about |= {"mean": middle.tolist(), "std": width.tolist()}
        (folder / "forecast.json").write_text(json.dumps(about, indent=1))

    artifact.save(write)
    artifact.metrics(**{"eval.mae": float(off.abs().mean()), "eval.mae_season": float(alone.abs().mean())})


def ahead_of(known: torch.Tensor, starts: torch.Tensor, season: int, ahead: int) -> torch.Tensor:
    """[starts, inputs]: the `known` columns ([times, columns], scaled) of the `ahead` times from each start on and a
    season before, and where in its season the start lies."""
    times = starts[:, None] + torch.arange(ahead)
    angles = starts[:, None] * (2 * torch.pi / season) * torch.arange(1, HARMONICS + 1)
    values = [known[times].flatten(1), known[times - season].flatten(1)]
    return torch.cat([*values, torch.sin(angles), torch.cos(angles)], 1)


class Curve(NamedTuple):
    """[horizon] each."""

    middle: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


class Learnt:
    """What the loop has left in `folder`, ready to be asked."""

    def __init__(self, folder: Path) -> None:
        about: dict[str, Any] = json.loads((folder / "forecast.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self._errors = weights.pop("errors")
        self.column, self.known = str(about["column"]), [str(name) for name in about["known"]]
        self.season, self.ahead, self._window = (int(about[name]) for name in ("season", "horizon", "window"))
        self._spread = float(about["spread"])
        self._scale = torch.tensor([about["mean"], about["std"]]).reshape(2, -1)
        self._model = layers(weights["0.weight"].shape[1], about["hidden"], self.ahead)
        self._model.load_state_dict(weights)

    @property
    def needed(self) -> int:
        """Times that have to have passed."""
        return self.season + self._window

    def curve(self, past: torch.Tensor, first: int, known: torch.Tensor, band: tuple[float, float]) -> Curve:
        """`past` [times, 1 + columns]: the numbers and what is known of them, from the time `first` on (0: where the
        loop began to learn). `known` [horizon, columns]: of the times ahead. `band`: two of QUANTILES."""
        values, now = past[:, 0], len(past)
        inputs = ((values[self.season :] - values[: -self.season])[-self._window :] / self._spread)[None]
        if self.known:
            scaled = (torch.cat([past[:, 1:], known]) - self._scale[0]) / self._scale[1]
            skipped = first % self.season  # of the times before, only their place in a season matters
            scaled = torch.cat([torch.zeros(skipped, len(self.known)), scaled])
            inputs = torch.cat([inputs, ahead_of(scaled, torch.tensor([now + skipped]), self.season, self.ahead)], 1)
        with torch.no_grad():
            middle = values[now - self.season :][: self.ahead] + self._model(inputs)[0] * self._spread
        low, high = (self._errors[QUANTILES.index(each)] for each in band)
        return Curve(middle, middle + low, middle + high)
