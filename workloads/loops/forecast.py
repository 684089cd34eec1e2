"""The next numbers of a series: what differs from the same time a season ago, from what did so far.

A network that learns the whole series has to learn the season first; the difference is what is left to say. Columns
that are `known` ahead (the weather that is forecast, holidays) are read for the time that is asked about and a season
before, and the time within a season with them. Where a season has a shorter `cycle` (a week has days), one network says
all times ahead: times_ahead.py. The end of the series is held out: `eval.mae_season` is what saying "as a season ago"
comes to, and how far off the held-out numbers were, `errors`, makes a band around a forecast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from llmsched.runtime import artifact
from workloads.loops import times_ahead
from workloads.loops.learning import layers, learn, numbers_in, rows_of, settings
from workloads.sources import BadInput

KNOWN = {
    "column": str, "season": int, "cycle": 0, "horizon": 1, "window": 0, "hidden": [64], "held_out": 0.2, "known": [],
}  # fmt: skip
QUANTILES = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]  # of the errors, for each step ahead
HARMONICS = 8  # of a season


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    season, ahead, cycle = chosen.season, chosen.horizon, chosen.cycle
    window = max(chosen.window or 2 * ahead, season if cycle else 0)
    rows = rows_of(chosen.data, chosen.column, *chosen.known)
    series = torch.tensor(numbers_in(rows, chosen.column, chosen.data))
    if not 0 < chosen.held_out < 1 or not 0 < ahead <= season or window < 1:
        raise BadInput("config: held_out lies between 0 and 1, horizon between 1 and season, window above 0")
    if cycle and (not ahead <= cycle <= season or season % cycle):
        raise BadInput(f"config.cycle: a season of {season} is no whole number of cycles of {ahead} times or more")
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
    level = float(series[: learnt + window].mean())
    if not cycle:
        before = away.unfold(0, window, 1)[:size] / spread
        if chosen.known:
            before = torch.cat([before, ahead_of(known, starts, season, ahead)], 1)

    def read(rows: torch.Tensor) -> torch.Tensor:
        if not cycle:
            return before[rows]
        return times_ahead.inputs((series - level) / spread, known, starts[rows], season, cycle, ahead)

    after = away[window:].unfold(0, ahead, 1) / spread
    torch.manual_seed(chosen.seed)
    model = layers(read(torch.tensor([0])).shape[-1], chosen.hidden, 1 if cycle else ahead)

    def said(rows: torch.Tensor) -> torch.Tensor:
        return model(read(rows)).reshape(len(rows), ahead)

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        return functional.smooth_l1_loss(said(rows), after[rows], reduction="sum") / ahead

    learn(model, learnt, loss_of, chosen)
    with torch.no_grad():
        off = (said(torch.arange(size - tested, size)) - after[size - tested :]) * spread
    alone = after[size - tested :] * spread
    errors = torch.quantile(-off, torch.tensor(QUANTILES), dim=0).contiguous()  # what was, less what was said

    def write(folder: Path) -> None:
        save_file({**model.state_dict(), "errors": errors}, folder / "model.safetensors")
        about = {"season": season, "window": window, "horizon": ahead, "hidden": chosen.hidden, "spread": spread}
        about |= {"column": chosen.column, "known": chosen.known, "cycle": cycle, "level": level}
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
        self._cycle, self._level = about.get("cycle", 0), about.get("level", 0.0)  # older ones have none
        self._scale = torch.tensor([about["mean"], about["std"]]).reshape(2, -1)
        self._model = layers(weights["0.weight"].shape[1], about["hidden"], 1 if self._cycle else self.ahead)
        self._model.load_state_dict(weights)

    @property
    def needed(self) -> int:
        """Times that have to have passed."""
        return self.season + self._window

    def curve(self, past: torch.Tensor, first: int, known: torch.Tensor, band: tuple[float, float]) -> Curve:
        """`past` [times, 1 + columns]: the numbers and what is known of them, from the time `first` on (0: where the
        loop began to learn). `known` [horizon, columns]: of the times ahead. `band`: two of QUANTILES."""
        values, now = past[:, 0], len(past)
        skipped = first % self.season  # of the times before, only their place in a season matters
        scaled = (torch.cat([past[:, 1:], known]) - self._scale[0]) / self._scale[1]
        scaled = torch.cat([torch.zeros(skipped, len(self.known)), scaled])
        start = torch.tensor([now + skipped])
        if self._cycle:
            series = torch.cat([torch.zeros(skipped), (values - self._level) / self._spread])
            inputs = times_ahead.inputs(series, scaled, start, self.season, self._cycle, self.ahead)
        else:
            inputs = ((values[self.season :] - values[: -self.season])[-self._window :] / self._spread)[None]
            if self.known:
                inputs = torch.cat([inputs, ahead_of(scaled, start, self.season, self.ahead)], 1)
        with torch.no_grad():
            middle = values[now - self.season :][: self.ahead] + self._model(inputs).reshape(-1) * self._spread
        low, high = (self._errors[QUANTILES.index(each)] for each in band)
        return Curve(middle, middle + low, middle + high)
