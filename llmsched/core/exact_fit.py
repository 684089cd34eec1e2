"""Whether exactly these places are free, of nodes, devices and quota: asked of a placement that was found before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

from llmsched.core.capacity import NodeState
from llmsched.core.records import GangState, amount_of, weigh
from llmsched.core.resources import MILLI
from llmsched.core.stages.place import over_quota
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement, Workload


def fits(trial: Trial, spec: Workload, placement: Placement) -> bool:
    """Whether it may take exactly these places now, by nodes, devices and quota."""
    return fits_exactly(trial, spec, placement) and over_quota(trial, spec, placement) is None


def fits_exactly(trial: Trial, spec: Workload, placement: Placement) -> bool:
    """Whether exactly these places are free (devices of shares included), whatever quota says."""
    nodes = trial.state.nodes
    undo = []
    try:
        for name, amount, device in weigh(spec, placement).amounts:  # like bundles side by side are one question
            node = nodes.get(name)
            if node is None or node.draining:
                return False
            share = amount.gpus_milli % MILLI
            if share:
                if node.shares.get(device, 0) + share > MILLI:
                    return False
                need_whole = amount.gpus_milli // MILLI + (device not in node.shares)
                if node.free_whole < need_whole:
                    return False
                plain = amount._replace(gpus_milli=0)
                if not node.room(plain, 1):
                    return False
            elif not node.room(amount, 1):
                return False
            trial.state.capacity.change(name, amount, device, 1)
            undo.append((name, amount, device))
        return True
    finally:
        for name, amount, device in reversed(undo):
            trial.state.capacity.change(name, amount, device, -1)


def free_at_last(trial: Trial, open_to: Callable[[GangState], AbstractContextManager[int]]) -> dict[str, None]:
    """Nominated gangs all of whose promised places are free by now, in the order of the promises: whoever else is
    promised something on the same nodes, or in the same quota, waits for victims of its own. What is free of the places
    of an earlier one, and comes from none of its victims, is not taken by a later one meanwhile. `open_to`: what a gang
    may start on, see `_open_to` of stages/redeem.py."""
    state = trial.state
    promised = [(state.gangs[name], state.gangs[name].nomination) for name in state.nominated]
    able = {gang.id for gang, one in promised if one and may_be_free(trial, gang.spec, one.placement)}
    ready: dict[str, None] = {}
    if not able:
        return ready
    mark = trial.mark()
    for name in state.nominated:
        trial.unpromise(state.gangs[name])
    left = len(able)
    for gang, nomination in promised:
        if nomination is None:
            continue
        placement, is_free = nomination.placement, False
        if gang.id in able:
            left -= 1
            with open_to(gang) as only:
                is_open = all(only >> state.nodes[placed.node].slot & 1 for placed in placement)
                is_free = is_open and fits(trial, gang.spec, placement)
        if is_free:
            trial.hold(gang, placement)
            ready[gang.id] = None
        elif not left:
            break
        elif fits(trial, gang.spec, there := _of_no_victim(trial, gang)):
            trial.hold(gang, there)
    trial.rollback(mark)
    return ready


def _of_no_victim(trial: Trial, gang: GangState) -> Placement:
    """Those of the places promised to a gang that none of its victims has still to let go."""
    assert gang.nomination is not None
    state, to_come = trial.state, dict[str, int]()
    for name in gang.nomination.victims:
        if (victim := state.gangs.get(name)) is None:
            continue
        leaves = name in state.vacating or name in trial.leaving
        stays = () if leaves else trial.shrinking.get(name, victim.placement or ())
        for placed in (Counter(victim.held) - Counter(stays)).elements():
            to_come[placed.node] = to_come.get(placed.node, 0) + amount_of(victim.spec, placed).gpus_milli
    there = []
    for placed in gang.nomination.placement:
        amount = amount_of(gang.spec, placed).gpus_milli
        if to_come.get(placed.node, 0) >= amount:
            to_come[placed.node] = to_come.get(placed.node, 0) - amount
        else:
            there.append(placed)
    return tuple(there)


def may_be_free(trial: Trial, spec: Workload, placement: Placement) -> bool:
    """Whether each node has as many GPUs, promises to everybody left out, as the gang would have there; where parts
    of a GPU are held or promised, it is not known."""
    need: dict[str, int] = {}
    for placed in placement:
        amount = amount_of(spec, placed).gpus_milli
        if amount % MILLI:
            return True  # devices have to be looked at one by one
        need[placed.node] = need.get(placed.node, 0) + amount
    nodes = trial.state.nodes
    return all(
        bool(nodes[name].shares) or nodes[name].free_whole * MILLI + nodes[name].promised >= amount
        for name, amount in need.items()
    )


def is_kept(trial: Trial, gang: GangState) -> bool:
    """Whether the places promised to it fit, told from ledgers in which they are charged already: nothing there is
    given away twice. False says that it is not known: then take the promise out, and ask `fits`."""
    assert gang.nomination is not None
    spec, nodes, quota = gang.spec, trial.state.nodes, trial.state.quota
    if quota.enforced and not spec.preemptible:
        return False
    for name in dict.fromkeys(placed.node for placed in gang.nomination.placement):
        node = nodes.get(name)
        if node is None or node.draining or node.shares or not _is_whole(node):
            return False
        if quota.enforced and quota.available(spec.queue, node.node.flavor) < 0:
            return False
    return True


def _is_whole(node: NodeState) -> bool:
    """Whether no more is given away there than there is."""
    cpus, memory, custom = node.free[1:]
    return node.free_whole >= 0 and cpus >= 0 and memory >= 0 and all(amount >= 0 for _, amount in custom)
