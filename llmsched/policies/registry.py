"""From the names in a configuration to one policy of each family.

An outside package adds one under the entry-point group `llmsched.policies`, named `<family>.<name>`; the entry point
is a class without arguments. A name of ours wins over one of theirs, so that a configuration means the same everywhere.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from llmsched.core.configuration import PolicyNames
from llmsched.core.policy import Policies
from llmsched.errors import SpecError

GROUP = "llmsched.policies"
FAMILIES: dict[str, tuple[str, ...]] = {
    "ordering": ("fifo", "priority", "fair_share", "least_attained", "shortest_remaining", "finish_time_fair"),
    "placement": ("pack", "spread", "topology", "least_fragmentation"),
    "preemption": ("cheapest", "newest_first"),
    "elasticity": ("even", "marginal_throughput", "goodput"),
    "autoscaling": ("ongoing_requests", "token_latency"),
}


def names(family: str) -> tuple[str, ...]:
    """Every name of a family, ours first, then those of installed packages."""
    return (*FAMILIES[family], *sorted(set(_outside(family)) - set(FAMILIES[family])))


@lru_cache(maxsize=64)
def load(chosen: PolicyNames) -> Policies:
    """One policy of each family. Raises SpecError for a name nobody knows."""
    return Policies(**{family: _one(family, getattr(chosen, family)) for family in FAMILIES})


def _one(family: str, name: str) -> Any:
    if name in FAMILIES[family]:
        module = import_module(f"llmsched.policies.{family}.{name}")
        return getattr(module, class_name(name))()
    outside = _outside(family)
    if name in outside:
        return outside[name].load()()
    near = get_close_matches(name, names(family), 1)
    hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(names(family))}."
    raise SpecError(
        f'no {family} policy is called "{name}".', code="unknown_policy", where="policies." + family, hint=hint
    )


def class_name(policy: str) -> str:
    """The class that a module of ours holds: `fair_share` has `FairShare`."""
    return "".join(part.capitalize() for part in policy.split("_"))


def _outside(family: str) -> dict[str, Any]:
    found = {}
    for point in entry_points(group=GROUP):
        kind, _, name = point.name.partition(".")
        if kind == family and name:
            found[name] = point
    return found
