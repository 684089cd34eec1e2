"""What an endpoint's replicas are worth beside a fine-tune's speed, in GPUs that are of full use.

With all the replicas that its load asks for an endpoint is worth its GPUs; with fewer of them as much of that as its
learned curve says that requests hold their target. A fine-tune is worth its least GPUs times how much faster than with
those it is, times its weight among the others. Both along a concave hull, so that what is best per GPU can be taken
first and the rest left. What each has already counts more, by what a change costs, so that nothing goes to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmsched.core.policy import GangView, View, WorkloadView
from llmsched.policies.elasticity.knapsack import Offer, hull

ENDPOINT = ""  # the name of its offers: no gang has it


def in_gpus(offers: Sequence[Offer], gangs: Sequence[GangView], view: View) -> list[Offer]:
    """The same steps of gangs, whose gains are in speeds with their least GPUs, in GPUs of full use."""
    least = {gang.id: view.sizes(gang)[0] * view.gpus_per_bundle(gang) for gang in gangs}
    return [offer._replace(gain=offer.gain * least[offer.gang]) for offer in offers]


def offers_of(
    serve: WorkloadView, low: int, asked: int, gpus_each: float, weight: float, keeps: float, view: View
) -> list[Offer]:
    """Steps from `low` replicas to `asked`. `keeps`: how many times more those count that it has."""
    within = serve.within(serve.load_ahead(view.now))
    shares = [within(count) if within is not None else 0.0 for count in range(low, asked + 1)]
    each = weight * asked * gpus_each / max(shares[-1], 1e-9)
    points = [(count, each * share) for count, share in enumerate(shares, low)]
    found, (at, worth) = [], points[0]
    for high, more, parts in hull(points[0], points[1:]):
        has = serve.wanted_replicas
        for to in (has, high) if at < has < high else (high,):
            gain = (more - worth) * (to - at) / (high - at)
            some = tuple(size for size in parts if at < size < to)
            found.append(Offer(ENDPOINT, at, to, (to - at) * gpus_each, gain * keeps if to <= has else gain, some))
            at, worth = to, worth + gain
    return found
