"""One network for every time ahead, where a season has a shorter cycle in it: a week that has days.

A network that says a whole curve at once learns each half hour of the day by itself. This one is asked time by time,
so all of them teach it: what was at the same time a cycle, a season and two seasons ago, what is known around it, how
the cycle that has just passed differed from a season before, and where in cycle and season it lies.
"""

from __future__ import annotations

import torch

_OF_CYCLE, _OF_SEASON, _LAST = 4, 8, 4  # harmonics; the newest times, by themselves


def inputs(
    series: torch.Tensor, known: torch.Tensor, starts: torch.Tensor, season: int, cycle: int, ahead: int
) -> torch.Tensor:
    """[starts, ahead, inputs]. `series` [times] and `known` [times, columns], scaled; of `series` nothing is read from
    a start on. Two seasons lie before each start, and ahead <= cycle <= season."""
    times = starts[:, None] + torch.arange(ahead)
    passed = starts[:, None] + torch.arange(-cycle, 0)
    away = series[passed] - series[passed - season]
    at_each = [series[times - lag][..., None] for lag in (cycle, season, 2 * season)]
    at_each += [known[times - lag] for lag in (*_before(cycle), cycle, season)]
    at_each += [part for angle in _angles(times, cycle, season) for part in (angle.sin(), angle.cos())]
    at_each.append((times - starts[:, None])[..., None] / ahead)
    coming = known[times]
    of_all = [coming.mean(1), coming.amax(1), coming.amin(1), known[passed].mean(1)]
    of_all += [part[:, -many:].mean(1, keepdim=True) for part in (away, series[passed]) for many in (cycle, _LAST)]
    everywhere = torch.cat(of_all, 1)[:, None].expand(-1, ahead, -1)
    return torch.cat([*at_each, everywhere], 2)


def _before(cycle: int) -> list[int]:
    """0, and powers of two, while they are a part of the cycle."""
    return [0, *(1 << power for power in range(1, cycle.bit_length()) if 2 << power < cycle)]


def _angles(times: torch.Tensor, cycle: int, season: int) -> list[torch.Tensor]:
    return [
        times[..., None] * (2 * torch.pi / length) * torch.arange(1, many + 1)
        for length, many in ((cycle, _OF_CYCLE), (season, _OF_SEASON))
    ]
