"""How an endpoint goes from one version to the next: how many replicas of which version, and who leaves.

A version is proven once a replica of it has answered. Until the newest one is, `max_surge` replicas try it, and every
other replica is of the last proven version, also one that has to be replaced: a version that does not come up never
takes an answering replica's place. One that failed for good is not tried again by itself, so the rollout holds.
Pure arithmetic over records; lives.py makes replicas and stages/reconcile.py lets them go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmsched.core.message import Message, say, workload
from llmsched.core.records import GangState, Version, WorkloadState
from llmsched.core.spread import crowding
from llmsched.core.status import Status

# Of those that answered before the last one: so far back one may go. The last of them is kept in any case.
VERSIONS_KEPT, SPEC_BYTES_KEPT = 10, 256 << 10


class Missing(NamedTuple):
    """How many replicas are to be made."""

    newest: int
    proven: int


def counts(gang: GangState, record: WorkloadState) -> bool:
    """Whether a replica counts as one of those wanted. A failed one does: a replacement would fail likewise."""
    if gang.status in (Status.CANCELLED, Status.FINISHED):
        return False
    if gang.status is Status.FAILED:
        return (
            gang.revision == record.revision
            or record.answered is not None
            and gang.revision == record.answered.revision
        )
    return not (gang.status is Status.VACATING and gang.leaving == "ended")


def version_of(record: WorkloadState, gang: GangState) -> Version:
    """Of which version a replica is when it starts (again)."""
    answered = record.answered
    if answered is not None and record.is_unproven and gang.revision <= answered.revision:
        return answered
    return record.version


def has_answered(record: WorkloadState, version: Version) -> None:
    """A replica of a newer version than before has."""
    if record.answered is not None:
        kept = (*record.answered_before, record.answered)[-VERSIONS_KEPT:]
        while len(kept) > 1 and sum(len(each.spec.parcel) for each in kept) > SPEC_BYTES_KEPT:
            kept = kept[1:]
        record.answered_before = kept
    record.answered = version


def answered(record: WorkloadState) -> tuple[Version, ...]:
    """Versions that answered and are known, the newest last."""
    return record.answered_before if record.answered is None else (*record.answered_before, record.answered)


def version_numbered(record: WorkloadState, revision: int) -> Version | None:
    """That one, if it answered and is known."""
    return next((version for version in answered(record) if version.revision == revision), None)


def to_go_back_to(record: WorkloadState, revision: int | None) -> Version | Message:
    """The last version that answered before the newest, or that of `revision`; or why there is none."""
    who = workload(record.workload.id)
    if record.workload.kind != "serve":
        return say("no_revision.kind", who=who)
    if record.outcome or record.cancelled:
        return say("no_revision.ended", who=who)
    able = [version for version in answered(record) if version.revision != record.revision]
    if revision is None:
        return able[-1] if able else say("no_revision.none", who=who)
    found = next((version for version in able if version.revision == revision), None)
    if found is not None:
        return found
    if revision == record.revision:
        return say("no_revision.newest", who=who, revision=revision + 1)
    known = tuple(version.revision + 1 for version in able)
    if not known:
        return say("no_revision.none", who=who)
    return say("no_revision.unknown", who=who, revision=revision + 1, known=known)


def missing(record: WorkloadState, live: Sequence[GangState]) -> Missing:
    """`live`: those that count."""
    wanted, surge = record.wanted_replicas, record.workload.max_surge
    newest = [gang for gang in live if gang.revision == record.revision]
    if not record.is_unproven:
        surge = surge if len(newest) < len(live) else 0
        return Missing(min(wanted - len(newest), wanted + surge - len(live)), 0)
    good = _good(record, live)
    room = surge or int(len(good) < wanted)  # without room for one more, one that left has made it
    make = max(min(wanted, room) - len(newest), 0)
    trying = make + sum(gang.status is not Status.FAILED for gang in newest)
    return Missing(make, min(wanted, max(len(good), wanted - trying)) - len(good))


def superfluous(record: WorkloadState, live: Sequence[GangState]) -> list[GangState]:
    """Those that are not wanted any more and never ran, newest first."""
    wanted, surge = record.wanted_replicas, record.workload.max_surge
    groups = [(live, wanted + (surge if any(gang.revision != record.revision for gang in live) else 0))]
    if record.is_unproven:
        unproven = [gang for gang in live if not _is_good(record, gang)]
        groups = [(_good(record, live), wanted), (unproven, min(wanted, max(surge, 1)))]
    found: list[GangState] = []
    for group, most in groups:
        queued = [gang for gang in sorted(group, key=lambda g: -g.index) if gang.status is Status.QUEUED]
        found += queued[: max(len(group) - most, 0)]
    return found


def leaving(
    record: WorkloadState, live: Sequence[GangState], gangs: Iterable[GangState]
) -> tuple[list[GangState], Message]:
    """Who of the `live`, which are active, is to be drained, and why. `gangs`: all there ever were."""
    wanted = record.wanted_replicas
    old = [gang for gang in live if gang.revision != record.revision]
    if not old:
        return _worst(live, len(live) - wanted, live), say("drain.surplus", wanted=wanted)
    passed = [gang for gang in old if _is_passed_over(record, gang)]
    if passed:
        return passed, say("drain.passed_over")
    ready = sum(gang.revision == record.revision and gang.status is Status.RUNNING for gang in live)
    surplus = min(len(old), ready + len(old) - wanted)  # what runs of the new and the other old make up the number
    if not record.workload.max_surge and not any(_is_to_come(gang, record) for gang in gangs):
        surplus = max(surplus, 1)  # without room for one more, an old one makes room
    return _worst(old, surplus, live), say("drain.replaced")


def _good(record: WorkloadState, live: Sequence[GangState]) -> list[GangState]:
    return [gang for gang in live if _is_good(record, gang)]


def _is_good(record: WorkloadState, gang: GangState) -> bool:
    """Of the proven version, or of one before it that goes on."""
    assert record.answered is not None
    return gang.revision <= record.answered.revision


def _is_passed_over(record: WorkloadState, gang: GangState) -> bool:
    """Of a version that never answered and is not the newest any more."""
    return record.answered is not None and record.answered.revision < gang.revision < record.revision


def _worst(candidates: Sequence[GangState], number: int, live: Sequence[GangState]) -> list[GangState]:
    """Who does not answer yet, then those on the nodes with most replicas, then the newest."""
    if number <= 0:
        return []
    in_turn = sorted(candidates, key=lambda gang: (gang.status is Status.RUNNING, -gang.index))
    crowded = crowding(in_turn, live)
    return sorted(in_turn, key=lambda gang: (gang.status is Status.RUNNING, -crowded[gang.id]))[:number]


def _is_to_come(gang: GangState, record: WorkloadState) -> bool:
    """A replica of the new version that does not answer yet; one that failed never will, and holds up the rollout."""
    is_new = gang.revision == record.revision and gang.status is not Status.CANCELLED
    return is_new and gang.status is not Status.RUNNING and gang.leaving != "ended"
