"""Whether a count is more than chance, given those before it.

Two Poisson counts of one rate: given their sum, the newer one is binomial with the share of time that it took
(Przyborowski and Wilenski, Biometrika 31, 1940). So the rate needs no estimate and the test keeps its level for few
events, too. What people do comes in clumps, though: both counts are divided by how much more the earlier ones vary than
Poisson's do, as Farrington et al. do for outbreaks (J. R. Stat. Soc. A 159, 1996).
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def chance(count: int, before: Sequence[int], windows: int = 1) -> float:
    """Of `count` events or more in so many windows, if nothing has changed since those `before` (two or more)."""
    clumps, share = dispersion(before), windows / (len(before) + windows)
    return _beta(share, count / clumps, sum(before) / clumps + 1) if count else 1.0


def dispersion(counts: Sequence[int]) -> float:
    """Variance over mean, 1 or more."""
    mean = sum(counts) / len(counts)
    spread = sum((count - mean) ** 2 for count in counts) / (len(counts) - 1)
    return max(1.0, spread / mean) if mean else 1.0


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, 0 < x < 1: P(B >= a), B binomial of a + b - 1 tries of probability x,
    where these are whole. By its continued fraction (DLMF 8.17.22), in Lentz's way."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(1 - x, b, a)
    whole = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for part in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + part * d)
            c = _not_zero(1 + part / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return math.exp(whole) * fraction / a


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
