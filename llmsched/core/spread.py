"""Replicas of one endpoint lie on different nodes as far as there is room, so that a lost node takes few of them.

A preference among nodes that can hold one, for every placement policy alike: never a reason not to start, and nobody is
evicted for it. Replicas of one version keep clear of each other first, then of those of other versions, which will have
left when a rollout is over. An endpoint whose spec says `pack` is left to the policy. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llmsched.core.records import GangState
from llmsched.core.status import Status
from llmsched.core.workload import Placement

if TYPE_CHECKING:
    from llmsched.core.trial import Trial

ANYWHERE = -1


def spreads(gang: GangState) -> bool:
    return gang.spec.kind == "serve" and not gang.spec.packs


def steps(trial: Trial, gang: GangState) -> tuple[int, ...]:
    """Masks of nodes in the order in which they are tried: those with the fewest other replicas of its endpoint, then
    these and the next, at last all."""
    if not spreads(gang):
        return (ANYWHERE,)
    of_version, of_others = Counter[str](), Counter[str]()
    for other, places in _others(trial, gang):
        counts = of_version if other.revision == gang.revision else of_others
        counts.update({placed.node for placed in places})
    nodes, crowded = trial.state.nodes, dict[tuple[int, int], int]()
    for name in {**of_version, **of_others}:
        if name in nodes:
            rank = of_version[name], of_others[name]
            crowded[rank] = crowded.get(rank, 0) | 1 << nodes[name].slot
    mask = ANYWHERE
    for these in crowded.values():
        mask &= ~these
    found = [mask]
    for rank in sorted(crowded):
        mask |= crowded[rank]
        found.append(mask)
    return tuple(found)


def lies_apart(trial: Trial, gang: GangState, placement: Placement) -> bool | None:
    """Whether a placement has no node with another replica; None where there is no other, or it does not matter."""
    if not spreads(gang):
        return None
    taken = [{placed.node for placed in places} for _, places in _others(trial, gang) if places]
    return not set().union(*taken) & {placed.node for placed in placement} if taken else None


def crowding(leaving: Sequence[GangState], there: Sequence[GangState]) -> dict[str, int]:
    """For each of `leaving`, who go in that order: how many replicas its node has when its turn comes."""
    left, found = Counter(_node(gang) for gang in there), {}
    for gang in leaving:
        found[gang.id] = left[_node(gang)] if spreads(gang) else 0
        left[_node(gang)] -= 1
    return found


def _others(trial: Trial, gang: GangState) -> Iterator[tuple[GangState, Placement]]:
    """The other replicas that stay, each with what it holds or will."""
    state = trial.state
    for other in state.gangs_of(state.workloads[gang.workload_id]):
        if other is gang or other.is_ended() or other.status is Status.VACATING or other.id in trial.leaving:
            continue
        places = trial.places(other)
        if not places and (nomination := trial.nomination(other)) is not None:
            places = nomination.placement
        yield other, places


def _node(gang: GangState) -> str:
    return gang.placement[0].node if gang.placement else ""
