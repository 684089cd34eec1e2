"""Find nodes for a whole gang, now: options in order, one domain if asked, quota, then the policy's choice of node.

All bundles or none. A gang that fits on one node goes on one node; a larger one takes the emptiest nodes and leaves
the remainder where it fits best. Returns the placement, or why not (`Refused`), with counts. Takes nothing for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from llmsched.core import spread
from llmsched.core.amounts import flavor_of, need_milli, options_of
from llmsched.core.capacity import NodeState, room_when_empty
from llmsched.core.kept_quota import need_by_row
from llmsched.core.message import LEVEL, Message, Quote, Ref, queue, say
from llmsched.core.possible import able_options, hardest_first, why_never_with
from llmsched.core.records import GangState, amount_of
from llmsched.core.resources import MILLI, Resources
from llmsched.core.scheduling_pass import Pass
from llmsched.core.stages.shortage import rooms, shortage
from llmsched.core.suitable import wish_of
from llmsched.core.trial import Trial
from llmsched.core.workload import Group, Option, Placed, Placement, Workload

NODES_SCORED = 16  # per bucket of equally free nodes; they differ only in CPUs, memory and shares


class Refused(NamedTuple):
    """Why no placement was found. `counts` are (what, number of nodes)."""

    code: str
    message: Message
    counts: tuple[tuple[str, int], ...] = ()


NO_ROOM = Refused("nodes", say("nodes.unfit"))
NO_DOMAIN = Refused("topology", say("topology.unfit"))


def find(
    this: Pass,
    gang: GangState,
    size: int,
    only: int = -1,
    explain: bool = True,
    option: int | None = None,
    scope: int = -1,
) -> Placement | Refused:
    """A placement of `size` bundles (and every other group whole) on free nodes of mask `only`, within quota; those of
    the first group inside `scope` as well.

    With `explain` off a refusal has a code only; trying places is far more common than telling about them. With an
    `option` no other is tried."""
    spec = gang.spec
    search = Search(this, gang, size, only)
    refused: Refused | None = None
    tried = this.state.history.fastest_first(spec, size, len(options_of(spec))) if option is None else (option,)
    for each in tried:
        found = search.spread(each, scope)
        if explain and isinstance(found, Refused) and found.code not in ("quota", "over_limit"):
            found = search.explain(found)
        if isinstance(found, Refused):
            refused = found if refused is None or _rank(found) > _rank(refused) else refused
        else:
            return found
    assert refused is not None
    return refused


def _rank(refused: Refused) -> int:
    """The reason nearest to a start is the one to tell."""
    return ("impossible", "over_limit", "quota", "nodes", "topology", "fragmentation").index(refused.code)


def eligible(trial: Trial, spec: Workload, option: int, group: int = 0) -> int:
    """Nodes that may hold this group of a gang with this option, and take new work."""
    capacity = trial.state.capacity
    return capacity.open & capacity.suiting(wish_of(spec, option, group))


def eligible_by_any(trial: Trial, spec: Workload, *options: int) -> int:
    """Nodes that may hold one of its groups with one of these options, or with any."""
    mask = 0
    for option in options or options_of(spec):
        for number in range(len(spec.groups)):
            mask |= eligible(trial, spec, option, number)
    return mask


def may_fit(trial: Trial, gang: GangState, size: int) -> bool:
    """Whether there are as many free GPUs as a gang needs, with those that were promised to it: if not, `find` need not
    look for them, whatever else is asked."""
    capacity, spec, own = trial.state.capacity, gang.spec, 0
    promised: dict[str, int] = {}
    for placed in gang.nomination.placement if gang.nomination is not None else ():
        promised[placed.node] = promised.get(placed.node, 0) + amount_of(spec, placed).gpus_milli
    for name, amount in promised.items():
        free = capacity.by_id[name].free_whole
        own += max(free + -(-amount // MILLI), 0) - max(free, 0)
    if any(option.resources.gpus_milli % MILLI for group in spec.groups for option in group.options):
        return True  # a part of a GPU may be free where no whole one is
    for option in options_of(spec):
        mask = eligible(trial, spec, option) if len(spec.groups) == 1 else capacity.open
        if need_milli(spec, size, option) <= (capacity.free_gpus(mask) + own) * MILLI:
            return True
    return False


def quota_refusal(trial: Trial, spec: Workload, flavor: str | None, need: int) -> Refused | None:
    """Why quota forbids taking `need` more of a flavor, if it does. Work that may not be preempted may not borrow."""
    quota = trial.state.quota
    if not quota.enforced or not need:
        return None
    branch = quota.branch(spec.queue, flavor)
    kept = trial.held_quota.get((spec.queue, quota.row_of(spec.queue, flavor)), 0)
    free = max(0, branch.available() + kept) if branch is not None else 0
    if branch is None or need > free:
        used, own = (branch.used - kept, branch.subtree) if branch else (0, 0)
        most = branch.most() if branch else 0
        if need > most:
            message = say("over_limit.queue", queue=queue(spec.queue), most=most, need=need)
            return Refused("over_limit", message, (("most_milli", most), ("needed_milli", need)))
        message = say(
            "quota.borrowed" if used > own else "quota.used",
            queue=queue(spec.queue), used=used, own=own, borrowed=max(0, used - own), free=free, need=need,
            short=need - free,
        )  # fmt: skip
        return Refused("quota", message, (("quota_free_milli", free), ("needed_milli", need)))
    if not spec.preemptible:
        use = trial.state.use.get(spec.queue)
        fixed = use.fixed_milli if use else 0
        if fixed + need > branch.quota.nominal_milli:
            message = say(
                "quota.fixed", queue=queue(spec.queue), own=branch.quota.nominal_milli, fixed=fixed, need=need
            )
            return Refused("quota", message, (("needed_milli", need),))
    return None


def lacks_quota(trial: Trial, spec: Workload, options: Iterable[int]) -> bool:
    """Whether quota keeps it out at its smallest size with each of these options."""
    flavors_for = trial.state.quota.flavors_for
    return all(
        quota_refusal(trial, spec, flavor, need_milli(spec, spec.min_size, option))
        for option in options
        for flavor in flavors_for(spec.queue, flavor_of(spec, option))
    )


def over_quota(trial: Trial, spec: Workload, placement: Placement) -> Refused | None:
    """Why quota forbids a placement on several flavors, if it does: what each row is charged is counted together."""
    for flavor, amount in need_by_row(trial, spec, placement).values():
        refused = quota_refusal(trial, spec, flavor, amount)
        if refused is not None:
            return refused
    return None


class Search:
    """For places of one gang at one size, with one option after another. Bundles of its first group may go to nodes of
    `mask`, of the others to nodes of `only`. `home`: nodes that it has left of those it had."""

    def __init__(self, this: Pass, gang: GangState, size: int, only: int) -> None:
        self.trial, self.capacity = this.trial, this.state.capacity
        self.policy, self.view = this.policies.placement, this.view
        self.spec, self.size, self.only, self.shape = gang.spec, size, only, gang.shape
        self.option = self.mask = self.home = 0
        self.around = -1
        self.is_tight = False  # the fullest node that will do is taken, whatever the policy prefers
        self.steps = spread.steps(this.trial, gang)
        for name in gang.home:
            if name in this.state.nodes:
                self.home |= 1 << this.state.nodes[name].slot

    def spread(self, option: int, scope: int) -> Placement | Refused:
        """Of the nodes that will do, those with the fewest other replicas of its endpoint first."""
        found: Placement | Refused = NO_ROOM
        for mask in self.steps:
            found = self.with_option(option, scope & mask)
            if not isinstance(found, Refused):
                break
        return found

    def with_option(self, option: int, scope: int) -> Placement | Refused:
        trial, spec, capacity = self.trial, self.spec, self.capacity
        self.option = option
        first, flavor = spec.groups[0].option(option), flavor_of(spec, option)
        self.mask = mask = eligible(trial, spec, option) & self.only & scope
        need = need_milli(spec, self.size, option)
        if flavor is not None or len(capacity.by_flavor) <= 1 or not need:
            only_flavor = flavor if flavor is not None else next(iter(capacity.by_flavor), None)
            return quota_refusal(trial, spec, only_flavor, need) or self._charged(self._in_domains(mask))
        refused: Refused | None = None  # any flavor will do: one for the whole gang if possible, else a mix
        several, least = 0, first.resources.gpus_milli
        for name, of_flavor in capacity.by_flavor.items():
            if quota_refusal(trial, spec, name, least) is None:
                several |= of_flavor
            if name is None:
                continue  # nodes without an accelerator
            found = quota_refusal(trial, spec, name, need) or self._charged(self._in_domains(mask & of_flavor))
            if not isinstance(found, Refused):
                return found
            refused = found if refused is None or _rank(found) > _rank(refused) else refused
        if several:
            mixed = self._in_domains(mask & several)
            found = mixed if isinstance(mixed, Refused) else over_quota(trial, spec, mixed) or mixed
            if isinstance(found, Refused) and refused is not None and _rank(refused) > _rank(found):
                return refused
            return found
        return refused or NO_ROOM

    def _charged(self, found: Placement | Refused) -> Placement | Refused:
        """What was found where other groups than the first may lie on other flavors, if quota has that too."""
        if len(self.spec.groups) == 1 or isinstance(found, Refused):
            return found
        return over_quota(self.trial, self.spec, found) or found

    def _in_domains(self, mask: int) -> Placement | Refused:
        """Required domain first, inside it the preferred one; without a wish anywhere. A gang that lost a node stays in
        the domain of those it has left (`home`) if that has room: the node is replaced before the gang is moved."""
        required, preferred = self.spec.topology.required, self.spec.topology.preferred
        if required is None and preferred is None:
            return self._fill(mask)
        capacity = self.capacity
        outer = [(mask, -1)] if required is None else self._fullest_first(capacity.domains(required), mask)
        if preferred is not None:
            for domain, around in outer:
                for part, inside in self._fullest_first(capacity.domains(preferred), domain):
                    found = self._fill(part, inside & around)
                    if not isinstance(found, Refused):
                        return found
        for domain, around in outer:
            found = self._fill(domain, around)
            if not isinstance(found, Refused):
                return found
        return NO_DOMAIN if required is not None else NO_ROOM

    def _fullest_first(self, domains: Mapping[str, int], mask: int) -> list[tuple[int, int]]:
        """Parts of the mask by domain, each with all nodes of it: those with nodes of `home`, then domains with least
        free GPUs first, so that large ones stay whole; ties by name (the given order)."""
        parts = [(part, members) for members in domains.values() if (part := members & mask)]
        return sorted(parts, key=lambda one: (not one[0] & self.home, self.capacity.free_gpus(one[0])))

    def _fill(self, mask: int, around: int = -1) -> Placement | Refused:
        """The whole gang on nodes of `around`, its first group on those of `mask`. Bundles of one group side by side,
        in rank order."""
        self.around = around
        spec, option = self.spec, self.option
        if len(spec.groups) == 1 and spec.groups[0].topology is None:
            group = spec.groups[0]
            chosen = self._spread_out(group, self.size, mask)
            return NO_ROOM if chosen is None else _placed(group, option, chosen)
        found = self._groups(range(len(spec.groups)), mask)
        if isinstance(found, Refused):  # the policy's nodes for the first may leave none for the others
            self.is_tight = True
            beside = self._groups(hardest_first(spec, option), mask)
            self.is_tight = False
            found = found if isinstance(beside, Refused) else beside
        return found

    def _groups(self, numbers: Sequence[int], mask: int) -> Placement | Refused:
        """All groups, in that order beside one another."""
        spec, option, capacity = self.spec, self.option, self.capacity
        parts: dict[int, Placement] = {}
        undo: list[tuple[str, Resources, int]] = []
        try:
            for number in numbers:
                group = spec.groups[number]
                chosen = self._group(number, mask)
                if chosen is None:
                    return Refused("nodes", say("nodes.unfit_group", group=Quote(group.name)))
                resources = group.option(option).resources
                parts[number] = _placed(group, option, chosen)
                for placed in parts[number]:
                    capacity.change(placed.node, resources, placed.gpu_index, 1)
                    undo.append((placed.node, resources, placed.gpu_index))
        finally:
            for node, resources, device in reversed(undo):
                capacity.change(node, resources, device, -1)
        return tuple(placed for number in sorted(parts) for placed in parts[number])

    def _group(self, number: int, mask: int) -> list[tuple[NodeState, int]] | None:
        """One group of several, in the domain that it asks for."""
        capacity, group = self.capacity, self.spec.groups[number]
        count, part = (group.count, self.only & self.around) if number else (self.size, mask)
        part &= eligible(self.trial, self.spec, self.option, number)
        wish = group.topology
        if wish is not None and (wish.required or wish.preferred):
            domains = capacity.domains(wish.required or wish.preferred or "node")
            parts = [inside for members in domains.values() if (inside := members & part)]
            for domain in sorted(parts, key=capacity.free_gpus):
                chosen = self._spread_out(group, count, domain)
                if chosen is not None:
                    return chosen
        return self._spread_out(group, count, part) if wish is None or wish.required is None else None

    def _spread_out(self, group: Group, count: int, mask: int) -> list[tuple[NodeState, int]] | None:
        """(node, bundles there) for `count` bundles of a group; None when they do not all fit."""
        capacity = self.capacity
        need = group.option(self.option).resources
        whole = need.gpus_milli // MILLI
        if count == 0:
            return []
        candidates = mask & capacity.with_free(whole) if whole else mask
        if need.gpus_milli and not whole:
            candidates &= capacity.with_free(1) | capacity.shared
        if self.policy.walk < 0 and not self.is_tight:
            return self._one_by_one(need, count, candidates)
        if whole and need.gpus_milli % MILLI == 0 and count * whole > capacity.free_gpus(candidates):
            return None
        node = self._best(need, count, candidates)
        if node is not None:
            return [(node, count)]
        if count == 1:
            return None
        chosen: list[tuple[NodeState, int]] = []
        left = count
        for k in range(len(capacity.by_free) - 1, -1, -1):  # emptiest nodes first
            for node in capacity.nodes(capacity.by_free[k] & candidates):
                room = node.room(need, left)
                if not room:
                    continue
                if room >= left:  # the remainder: where it fits best
                    best = self._best(need, left, candidates)
                    chosen.append((best or node, left))
                    return chosen
                chosen.append((node, room))
                candidates &= ~(1 << node.slot)
                left -= room
        return None

    def _best(self, need: Resources, count: int, candidates: int) -> NodeState | None:
        """The node that holds all `count` bundles and scores highest; ties by slot."""
        capacity, policy, view = self.capacity, self.policy, self.view
        buckets = len(capacity.by_free)
        least = need.gpus_milli * count // MILLI if need.gpus_milli >= MILLI else 0
        if self.is_tight:
            nodes = (node for k in range(least, buckets) for node in capacity.nodes(capacity.by_free[k] & candidates))
            return next((node for node in nodes if node.room(need, count) >= count), None)
        order = range(least, buckets) if policy.walk >= 0 else range(buckets - 1, least - 1, -1)
        best: NodeState | None = None
        best_score = 0
        known: set[tuple[object, ...]] = set()
        for k in order:
            mask = capacity.by_free[k] & candidates
            if not mask:
                continue
            seen = 0
            for node in capacity.nodes(mask):
                if policy.alike:
                    key = node.likeness()
                    if key in known:
                        continue
                    known.add(key)
                if node.room(need, count) < count:
                    continue
                score = policy.score(need, node, view)
                if best is None or score > best_score:
                    best, best_score = node, score
                seen += 1
                if policy.walk and seen >= NODES_SCORED:
                    break
            if best is not None and policy.walk and need.gpus_milli:
                return best
        return best

    def _one_by_one(self, need: Resources, count: int, candidates: int) -> list[tuple[NodeState, int]] | None:
        """Each bundle on the best node for it alone, given those before it."""
        capacity = self.capacity
        taken: list[tuple[NodeState, int]] = []
        chosen: dict[str, tuple[NodeState, int]] = {}
        try:
            for _ in range(count):
                node = self._best(need, 1, candidates)
                if node is None:
                    return None
                device = node.device_for(need.gpus_milli)
                capacity.change(node.node.id, need, device, 1)
                taken.append((node, device))
                chosen[node.node.id] = (node, chosen.get(node.node.id, (node, 0))[1] + 1)
        finally:
            for node, device in reversed(taken):
                capacity.change(node.node.id, need, device, -1)
        return list(chosen.values())

    def _lacking(self, code: str) -> int:
        """The first group that does not fit on what is free, by itself; of those that only lack room beside one
        another, or in one domain, the one that asks for most on one node."""
        spec, only = self.spec, self.only
        for number, group in enumerate(spec.groups if code != "topology" else ()):
            mask = eligible(self.trial, spec, self.option, number) & only if number else self.mask
            count = group.count if number else self.size
            if rooms(self.trial, mask, group.option(self.option).resources, count)[1] < count:
                return number
        return hardest_first(spec, self.option)[0]

    def explain(self, found: Refused) -> Refused:
        """Count what each filter refused, from the widest to the narrowest."""
        trial, spec, size, mask, capacity = self.trial, self.spec, self.size, self.mask, self.capacity
        wish = spec.groups[0].option(self.option)._replace(speedup=())  # it is told in messages
        everything = capacity.all.bit_count()
        counts: list[tuple[str, int]] = [("nodes", everything)]
        if not everything:
            return Refused("nodes", say("nodes.none"), (("nodes", 0),))
        other = everything - (capacity.by_flavor.get(wish.flavor, 0).bit_count() if wish.flavor else everything)
        if other:
            counts.append(("other flavor", other))
        if not trial.state.configuration.node_types:
            never = _never_fits(trial, spec, self.option, wish, size)
            if never is not None:
                return Refused("impossible", never, tuple(counts))
            if len(spec.groups) > 1 and self.shape and self.option not in able_options(trial.state, self.shape):
                beside = why_never_with(trial.state, spec, self.option)
                if beside is not None and beside.code == "impossible":
                    return Refused(*beside, tuple(counts))
        number = self._lacking(found.code) if len(spec.groups) > 1 else 0
        group = spec.groups[number]
        if number:
            wish, size = group.option(self.option)._replace(speedup=()), group.count
            mask = eligible(trial, spec, self.option, number) & self.only
        fitting, fit = rooms(trial, mask, wish.resources, size)
        busy = mask.bit_count() - fitting
        if busy:
            counts.append(("busy", busy))
        counts.append(("with room", fitting))
        drained = (capacity.suiting(wish_of(spec, self.option, number)) & ~capacity.open).bit_count()
        if drained:
            counts.append(("drained", drained))
        closed = everything - other - mask.bit_count() - drained if not number else 0
        if closed > 0:
            counts.append(("not allowed", closed))
        if found.code == "topology":
            level = spec.topology.required or "domain"
            best = 0
            for name, members in capacity.domains(level).items():
                here = sum(node.room(wish.resources, size) for node in capacity.nodes(members & mask))
                best = max(best, min(here, size))
                counts.append((f"{level} {name}", min(here, size)))
            counts.append(("needed", size))
            message = say(
                "topology.domain", size=size, each=wish, level=Ref(LEVEL, level), best=best, missing=size - best
            )
            return Refused("topology", message, tuple(counts))
        short = shortage(trial, mask, wish.resources, size) if fit < size else None
        if short is not None:
            message = say("nodes.beside", size=size, each=wish, lacking=short[0], most=short[1], missing=size - fit)
            return Refused("nodes", message, tuple(counts))
        free = capacity.free_gpus(mask) * MILLI
        need = size * wish.resources.gpus_milli
        if need and free >= need and fit < size:
            message = say("fragmentation.spread", size=size, each=wish, free=free, fitting=fit, missing=size - fit)
            return Refused("fragmentation", message, tuple(counts))
        empty = say("nodes.drained", count=drained) if drained else ()
        part = say("nodes.of_group", group=Quote(group.name)) if number else ()
        message = say(
            "nodes.busy", size=size, each=wish, group=part, fitting=fit, nodes=everything, drained=empty,
            missing=max(size - fit, 1),
        )  # fmt: skip
        return Refused("nodes", message, tuple(counts))


def _placed(group: Group, option: int, chosen: list[tuple[NodeState, int]]) -> Placement:
    index = min(option, len(group.options) - 1)
    resources = group.options[index].resources
    if resources.gpus_milli % MILLI == 0:
        placed: list[Placed] = []
        for node, count in chosen:
            placed += [Placed(group.name, node.node.id, index)] * count
        return tuple(placed)
    shares = []
    for node, count in chosen:  # each share gets a device, as if the ones before it were taken
        for _ in range(count):
            device = node.device_for(resources.gpus_milli)
            shares.append((Placed(group.name, node.node.id, index, device), node, device))
            node.change(resources, device, 1)
    for _, node, device in reversed(shares):
        node.change(resources, device, -1)
    return tuple(placed_share for placed_share, _, _ in shares)


def _never_fits(trial: Trial, spec: Workload, option: int, wish: Option, size: int) -> Message | None:
    """Why not even the empty cluster could hold it; None when it could, as far as totals and single bundles tell."""
    kinds = trial.state.capacity.kinds_suiting(wish_of(spec, option))
    if not kinds:
        return say("impossible.no_node", size=size, each=wish)
    if not any(room_when_empty(total, wish.resources, 1) for total in kinds):
        return say("impossible.too_large", size=size, each=wish)
    have = sum(total.gpus_milli // MILLI * MILLI * count for total, count in kinds.items())
    if size * wish.resources.gpus_milli > have:
        return say("impossible.too_few", size=size, each=wish, have=have)
    return None
