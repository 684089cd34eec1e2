"""The choice of sizes as an integer program, solved by HiGHS: the oracle that the greedy choice is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from llmsched.policies.elasticity.knapsack import Offer, take_best


def _steps(offers: Sequence[Offer]) -> tuple[np.ndarray, np.ndarray, csr_array]:
    """Gains, GPUs, and one row for each step that may only be taken after the step below it."""
    last: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    for number, offer in enumerate(offers):
        if offer.gang in last:
            rows.append((number, last[offer.gang]))
        last[offer.gang] = number
    data = [sign for _ in rows for sign in (1.0, -1.0)]
    where = ([i for i in range(len(rows)) for _ in (0, 1)], [column for row in rows for column in row])
    order = csr_array((data, where), shape=(len(rows), len(offers)))
    return np.array([o.gain for o in offers]), np.array([o.gpus for o in offers]), order


def relaxed(offers: Sequence[Offer], capacity: float) -> float:
    """The optimum when steps may be taken in part: no choice of sizes earns more."""
    gains, gpus, order = _steps(offers)
    rows = csr_array(np.vstack([gpus, order.toarray()])) if order.shape[0] < 2000 else None
    if rows is None:  # along a hull the gain per GPU only falls, so the best steps in part are the optimum
        total, free = 0.0, capacity
        for offer in sorted(offers, key=lambda o: -o.gain / o.gpus):
            part = min(1.0, free / offer.gpus)
            total, free = total + part * offer.gain, free - part * offer.gpus
            if free <= 0:
                break
        return total
    found = linprog(-gains, A_ub=rows, b_ub=[capacity, *[0.0] * order.shape[0]], bounds=(0, 1), method="highs")
    return float(-found.fun)


def optimum(offers: Sequence[Offer], capacity: float, rel_gap: float = 1e-5) -> float:
    """What the best choice of sizes earns, by HiGHS."""
    gains, gpus, order = _steps(offers)
    limits = [LinearConstraint(csr_array(gpus[None, :]), ub=capacity), LinearConstraint(order, ub=0.0)]
    found = milp(-gains, constraints=limits, integrality=np.ones(len(gains)), bounds=Bounds(0, 1),
                 options={"mip_rel_gap": rel_gap, "time_limit": 60.0})  # fmt: skip
    return float(-found.fun)


def chosen(offers: Sequence[Offer], capacity: float) -> float:
    """What the greedy choice earns."""
    return worth(offers, take_best(offers, capacity)[0])


def worth(offers: Sequence[Offer], sizes: dict[str, int]) -> float:
    """What these sizes earn; a size between two steps earns its part of the step."""
    total = 0.0
    for offer in offers:
        part = (sizes.get(offer.gang, 0) - offer.low) / (offer.high - offer.low)
        total += offer.gain * min(1.0, max(0.0, part))
    return total
