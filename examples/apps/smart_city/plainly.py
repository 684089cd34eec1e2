"""The plain way beside the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from prepare import DAY, KNOWN
from sklearn.linear_model import Ridge

from workloads.loops.forecast import ahead_of


def ridge(history: list[Any], coming: list[Any]) -> float:
    """A line from what the loop reads (the last two days, weather of then and of a week before, time of the week)."""
    rows = [*history, *coming]
    needed = np.array([row["demand"] for row in rows])
    known = torch.tensor([[float(row[name]) for name in KNOWN] for row in rows])
    known = (known - known.mean(0)) / known.std(0)
    away, season = needed[7 * DAY :] - needed[: -7 * DAY], 7 * DAY

    def inputs(starts: Any) -> Any:
        past = np.stack([away[at - season - 2 * DAY : at - season] for at in starts])
        return np.concatenate([past, ahead_of(known, torch.tensor(starts), season, DAY).numpy()], 1)

    learnt = [*range(season + 2 * DAY, len(history) - DAY, 5)]
    model = Ridge(100.0).fit(inputs(learnt), np.stack([away[at - season : at - season + DAY] for at in learnt]))
    asked = [*range(len(history), len(rows), DAY)]
    true = np.stack([away[at - season : at - season + DAY] for at in asked])
    return float(np.abs(model.predict(inputs(asked)) - true).mean())
