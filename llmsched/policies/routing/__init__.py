"""Which replica takes a request. A policy ranks candidates; it never counts calls and never refuses one.

Used by the gateway on every request, so a choice is a few comparisons and no allocation worth naming. The spec's names
are looked up with `named`. Of tokens `work.py` says what they weigh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar


class Candidate(Protocol):
    """A replica that may take one more request. `tokens` is the estimated work of what it is busy with."""

    @property
    def name(self) -> str: ...
    @property
    def ongoing(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class Ask(NamedTuple):
    """A request: its `body` as the client sent it, the `text` of its prompt, and the `session` that its client says it
    belongs to ("" for none)."""

    body: Mapping[str, Any]
    text: str = ""
    session: str = ""


NAMES = ("power-of-two", "least-tokens", "prefix-cache", "round-robin", "session-affinity")

C = TypeVar("C", bound=Candidate)


class Routing(Protocol):
    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        """One of `candidates`, which is never empty, and how many tokens of the prompt it will have to read."""


def named(name: str, seed: int) -> Routing:
    """The policy a spec calls `name`. `seed` feeds the ones that need chance. Raises KeyError for an unknown name."""
    from llmsched.policies.routing.least_tokens import LeastTokens
    from llmsched.policies.routing.power_of_two import PowerOfTwo
    from llmsched.policies.routing.prefix_cache import PrefixCache
    from llmsched.policies.routing.round_robin import RoundRobin
    from llmsched.policies.routing.session_affinity import SessionAffinity

    made: dict[str, Routing] = {
        "power-of-two": PowerOfTwo(seed),
        "least-tokens": LeastTokens(),
        "prefix-cache": PrefixCache(seed),
        "round-robin": RoundRobin(),
        "session-affinity": SessionAffinity(seed),
    }
    return made[name]
