"""Reasons: why a gang waits, what would start it, and when it probably starts.

The stage that refuses a gang writes its reason; nobody guesses later. Codes: SPEC.md section 4.
"""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """One dominant reason. `counts` are (stage or filter, number of nodes or bundles it refused)."""

    code: str  # impossible over_limit quota nodes fragmentation topology victims_leaving reservation order dependency
    #            backoff budget capacity_coming insecure
    message: str  # for people, one or two sentences, no name in front
    counts: tuple[tuple[str, int], ...] = ()
    next_change: str = ""  # the smallest change that would start it
    eta: float | None = None  # stamp
    eta_basis: str = ""
