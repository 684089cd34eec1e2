"""Which replica takes a request. A policy ranks candidates; it never counts calls and never refuses one.

Used by the gateway on every request, so a choice is a few comparisons and no allocation worth naming. The spec's names
(`power-of-two`, `least-tokens`, `prefix-cache`, `round-robin`) are looked up with `named`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar


class Candidate(Protocol):
    """A replica that may take one more request. `tokens` is the estimated work of what it is busy with."""

    @property
    def name(self) -> str: ...
    @property
    def ongoing(self) -> int: ...
    @property
    def tokens(self) -> int: ...


NAMES = ("power-of-two", "least-tokens", "prefix-cache", "round-robin")

C = TypeVar("C", bound=Candidate)


class Routing(Protocol):
    def choose(self, candidates: Sequence[C], body: Mapping[str, Any]) -> C:
        """One of `candidates`, which is never empty. `body` is the request as the client sent it."""


def named(name: str, seed: int) -> Routing:
    """The policy a spec calls `name`. `seed` feeds the ones that need chance. Raises KeyError for an unknown name."""
    from llmsched.policies.routing.least_tokens import LeastTokens
    from llmsched.policies.routing.power_of_two import PowerOfTwo
    from llmsched.policies.routing.prefix_cache import PrefixCache
    from llmsched.policies.routing.round_robin import RoundRobin

    made: dict[str, Routing] = {
        "power-of-two": PowerOfTwo(seed),
        "least-tokens": LeastTokens(),
        "prefix-cache": PrefixCache(seed),
        "round-robin": RoundRobin(),
    }
    return made[name]
