"""The plain way beside the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from prepare import DAY, KNOWN
from sklearn.linear_model import RidgeCV

from workloads.loops.times_ahead import inputs


def ridge(history: list[Any], coming: list[Any]) -> float:
    """A line for each half hour, from what the loop reads of it (times_ahead.py), learnt from every evening. How much
    it is held back is what leaves least error on evenings that it did not learn from."""
    rows, season = [*history, *coming], 7 * DAY
    needed = torch.tensor([row["demand"] for row in rows])
    known = torch.tensor([[float(row[name]) for name in KNOWN] for row in rows])
    scaled, known = ((each - each.mean(0)) / each.std(0) for each in (needed, known))

    def asked(starts: range) -> tuple[Any, Any]:
        """[evenings, DAY, inputs], and [evenings, DAY]: what differs from a week ago."""
        times = torch.tensor(starts)[:, None] + torch.arange(DAY)
        read = inputs(scaled, known, times[:, 0], season, DAY, DAY)
        return read.numpy(), (needed[times] - needed[times - season]).numpy()

    learnt, true_then = asked(range(2 * season, len(history), DAY))
    tested, true = asked(range(len(history), len(rows), DAY))
    off = []
    for half in range(DAY):
        line = RidgeCV([10.0**power for power in range(-1, 4)]).fit(learnt[:, half], true_then[:, half])
        off.append(np.abs(line.predict(tested[:, half]) - true[:, half]).mean())
    return float(np.mean(off))
