"""From the names in a configuration to one policy of each family.

An outside package adds one under the entry-point group `llmsched.policies`, named `<family>.<name>`; the entry point
is a class without arguments, or one that has `Options` and takes them (core/policy.py). A name of ours wins over one of
theirs, so that a configuration means the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from llmsched.core.configuration import PolicyNames
from llmsched.core.policy import Knobs, Policies
from llmsched.errors import SpecError

GROUP = "llmsched.policies"
FAMILIES: dict[str, tuple[str, ...]] = {
    "ordering": ("fifo", "priority", "fair_share", "least_attained", "shortest_remaining", "finish_time_fair"),
    "placement": ("pack", "spread", "topology", "least_fragmentation"),
    "preemption": ("cheapest", "newest_first"),
    "elasticity": ("even", "marginal_throughput", "goodput"),
    "autoscaling": ("ongoing_requests",),
}

GONE = {  # names of before, and what to write instead
    "autoscaling.token_latency": "A target for latency stands in the endpoint: slo: {ttft_p95: 500ms}. "
    "ongoing_requests goes by it.",
}


def names(family: str) -> tuple[str, ...]:
    """Every name of a family, ours first, then those of installed packages."""
    return (*FAMILIES[family], *sorted(set(_outside(family)) - set(FAMILIES[family])))


@lru_cache(maxsize=64)
def load(chosen: PolicyNames) -> Policies:
    """One policy of each family, with its options. Raises SpecError for a name nobody knows, an option that the policy
    does not have, and what is no policy."""
    return Policies(**{family: _one(family, getattr(chosen, family), chosen) for family in FAMILIES})


def options_of(family: str, name: str) -> type | None:
    """The class of a policy's options: a dataclass. None: it has none. Raises SpecError."""
    found: type | None = getattr(_class(family, name), "Options", None)
    return found


def made(schema: type, values: Mapping[str, Any]) -> Any:
    """Options from plain data. Raises TypeError or ValueError."""
    return schema(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _one(family: str, name: str, chosen: PolicyNames) -> Any:
    given = {row.queue: json.loads(row.values) for row in chosen.options if row.family == family}
    schema = options_of(family, name)
    if schema is None and not given:
        return _class(family, name)()
    try:
        if schema is None:
            raise TypeError("it has none")
        common = given.pop("", {})
        by_queue = {queue: made(schema, {**common, **values}) for queue, values in given.items()}
        return _class(family, name)(Knobs(made(schema, common), by_queue))
    except (TypeError, ValueError) as error:
        raise SpecError(
            f'the options of the {family} policy "{name}": {error}.',
            code="invalid_spec",
            where=f"policies.options.{family}",
        ) from None


def _class(family: str, name: str) -> Any:
    if name in FAMILIES[family]:
        return getattr(import_module(f"llmsched.policies.{family}.{name}"), class_name(name))
    outside = _outside(family)
    if name in outside:
        try:
            return outside[name].load()
        except Exception as error:  # somebody else's module
            raise SpecError(
                f'the {family} policy "{name}" cannot be loaded: {type(error).__name__}: {error}.',
                code="bad_policy",
                where="policies." + family,
            ) from None
    near = get_close_matches(name, names(family), 1)
    hint = f'Did you mean "{near[0]}"?' if near else f"Known: {', '.join(names(family))}."
    hint = GONE.get(f"{family}.{name}", hint)
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
