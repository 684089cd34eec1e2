"""Lists by pages, so that no answer grows with history: workloads in three groups, models, stories.

A cursor names the last one that was shown, so pages go on where they were while new work comes. What has left the state
is read from the archive, along an index. Pure but for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llmsched.api import views
from llmsched.control import registry
from llmsched.control.authorization import KnownNames, Permissions
from llmsched.core.records import WorkloadState
from llmsched.core.render import Names
from llmsched.core.workload import named_run, split_run
from llmsched.errors import RequestError
from llmsched.spec import http_models
from llmsched.store.tables import ArchiveQuery, parent_of

AT_MOST = 250  # of one group, of one page
EVERY = "every"  # of all groups together: nobody is passed over who changes the group between two pages
STORY_AT_MOST = 1_000  # entries


class Selection(NamedTuple):
    """Of what one may see, what is asked for: all that is given must be so."""

    user: str | None = None
    queue: str | None = None
    phases: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    parent: str | None = None  # what work of that name asked for

    @classmethod
    def read(
        cls,
        user: str | None,
        queue: str | None,
        phases: Iterable[str] | None,
        labels: Iterable[str] | None,
        parent: str | None = None,
    ) -> Selection:
        """A label is KEY=VALUE. Raises RequestError."""
        pairs = [tuple(text.split("=", 1)) for text in labels or ()]
        if wrong := [text for text, pair in zip(labels or (), pairs, strict=True) if len(pair) != 2 or not pair[0]]:
            raise RequestError(f'"{wrong[0]}" is no label.', code="label", hint="Write KEY=VALUE, as in the spec.")
        return cls(user, queue, tuple(phases or ()), tuple(pairs), parent)  # type: ignore[arg-type]

    def takes(self, found: WorkloadState) -> bool:
        it = found.workload
        if self.parent is not None and parent_of(it.name) != self.parent:
            return False
        return self.takes_all_of(it.user, it.queue, found.phase) and set(self.labels) <= set(it.labels)

    def takes_all_of(self, user: str, queue: str, phase: str) -> bool:
        return self.user in (None, user) and self.queue in (None, queue) and (not self.phases or phase in self.phases)


EVERYTHING = Selection()


class Cursor(NamedTuple):
    """After the one of that group that was submitted then."""

    group: str
    submitted_at: float
    id: str

    def __str__(self) -> str:
        return f"{self.group}~{self.submitted_at!r}~{self.id}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        try:
            group, at, name = text.split("~", 2)
            if group in (*http_models.GROUPS, EVERY):
                return cls(group, float(at), name)
        except ValueError:
            pass
        raise RequestError(f'"{text}" is no cursor.', code="cursor", hint="Use one that a list gave as `next`.")


def workloads(
    controller: Any,
    permissions: Permissions,
    limits: Mapping[str, int],
    cursor: str | None,
    selection: Selection = EVERYTHING,
) -> http_models.WorkloadList:
    """The first of each group, so many as `limits` says; or those of one group after the cursor. Newest first. What two
    groups both show stands there once. What work has asked for and has ended is shown where its `parent` is chosen, and
    in EVERY. What left the state is not counted by label or parent."""
    at = Cursor.read(cursor) if cursor is not None else None
    here: dict[str, list[WorkloadState]] = {group: [] for group in (*http_models.GROUPS, EVERY)}
    counts: Counter[http_models.Phase] = Counter()
    for found in controller.state.workloads.values():
        if permissions.sees(found.workload) and selection.takes(found):
            counts[views.phase(found)] += 1
            group = http_models.group_of(views.phase(found))
            if group != "ended" or not found.workload.parent or selection.parent is not None:
                here[group].append(found)
            here[EVERY].append(found)
    for (user, queue, outcome), count in controller.state.archived.items():
        sees = permissions.sees_work_of(user, queue) and not selection.labels and selection.parent is None
        if sees and selection.takes_all_of(user, queue, outcome):
            counts[outcome] += count
    names = KnownNames(controller.state, permissions)
    shown: list[WorkloadState] = []
    following = []
    for group, limit in limits.items():
        if at is not None and at.group != group:
            continue
        page = _page(here[group], limit + 1, at)
        ends = tuple(phase for phase in selection.phases if phase in http_models.ENDED)
        if group in ("ended", EVERY) and limit and (ends or not selection.phases):
            user, queues = permissions.selection()
            query = ArchiveQuery(
                limit + 1,
                user=user,
                queues=queues,
                of=selection.user,
                queue=selection.queue,
                outcomes=ends,
                labels=selection.labels,
                parent=selection.parent if selection.parent is not None or group == EVERY else "",
                after_age=at and (at.submitted_at, at.id),
            )
            gone = [one for one in controller.archived(query) if one.workload.id not in controller.state.workloads]
            page = _page([*page, *gone], limit + 1, None)
        if len(page) > limit > 0:
            last = page[limit - 1]
            following.append(str(Cursor(group, last.submitted_at, last.workload.id)))
        shown += page[:limit]
    shown = list({one.workload.id: one for one in shown}.values())
    told = []
    for one in _sorted(shown):
        told.append(views.workload(controller.state, one, controller.progress_of(one), names))
        told[-1].may_change = permissions.changes(one.workload)
    return http_models.WorkloadList(
        workloads=told,
        counts=dict(counts),
        seq=controller.health.seq,
        next=following,
    )


def _page(found: Iterable[WorkloadState], limit: int, at: Cursor | None) -> list[WorkloadState]:
    if at is not None:
        found = [one for one in found if _place(one) > (-at.submitted_at, at.id)]
    return _sorted(found)[:limit]


def _sorted(found: Iterable[WorkloadState]) -> list[WorkloadState]:
    return sorted(found, key=_place)


def _place(found: WorkloadState) -> tuple[float, str]:
    return -found.submitted_at, found.workload.id


def models(
    controller: Any, permissions: Permissions, name: str | None, limit: int, cursor: str | None
) -> http_models.ModelList:
    """`cursor` is `name@version`."""
    after = None
    if cursor is not None:
        plain, version = split_run(cursor)
        if not plain or not version.isdecimal():
            raise RequestError(f'"{cursor}" is no cursor.', code="cursor", hint="Use one that a list gave as `next`.")
        after = plain, int(version)
    user, queues = permissions.selection()
    query = ArchiveQuery(limit + 1, name=name, user=user, queues=queues, models=True, after_run=after)
    found = registry.versions(controller.state, query, controller.archived, permissions.sees)
    last = found[limit - 1] if len(found) > limit else None
    return http_models.ModelList(models=found[:limit], next=named_run(last.name, last.version) if last else None)


def story(controller: Any, found: WorkloadState, before: int | None, names: Names) -> http_models.StoryView:
    """The last of it, or what was before entry `before`."""
    entries = controller.entries(0, found.workload.id, before=before, last=STORY_AT_MOST + 1)
    is_cut = len(entries) > STORY_AT_MOST
    told = views.story(found, entries[-STORY_AT_MOST:], names)
    told.earlier = entries[1].seq if is_cut else None
    told.compacted = not is_cut and controller.floor > 0 and not (entries and registry.is_beginning(entries[0].entry))
    return told
