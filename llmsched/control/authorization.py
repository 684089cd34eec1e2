"""Who may see and change which work. The one place that knows what a role is worth; what it does not allow is refused.

A token has a user and a role; a queue names users as its viewers, submitters and admins (`roles` of the cluster file):

    viewer     reads: one's own work, and that of queues which name one as viewer or admin
    submitter  and submits to queues that let one, handles one's own work, and all work of queues one is admin of
    auditor    reads everything, changes nothing
    operator   everything: all work, the configuration, the end of the controller
    caller     asks the endpoints that its token names, and nothing of the controller

Work that one may not see is answered for in the words of work that does not exist.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import islice

from llmsched.control.lookup import newest_run
from llmsched.control.roles import AUDITOR, OPERATOR, SUBMITTER
from llmsched.core import authorization as core
from llmsched.core.commands import NAMES_COMPARED
from llmsched.core.configuration import Configuration
from llmsched.core.message import ARTIFACT, GANG, NODE, USER, WORKLOAD, Ref
from llmsched.core.render import is_public
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import NotAllowed, RequestError

_SUBMITS = (SUBMITTER, OPERATOR)
_SEES_ALL = (AUDITOR, OPERATOR)


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks, and with what role of a token."""

    user: str
    role: str = SUBMITTER

    @property
    def may_submit(self) -> bool:
        return self.role in _SUBMITS

    @property
    def sees_all(self) -> bool:
        return self.role in _SEES_ALL


class Permissions:
    """Of one person, as the queues stand in one version of the configuration."""

    def __init__(self, person: Person, configuration: Configuration) -> None:
        self.person = person
        self._configuration = configuration
        user = person.user
        queues = () if person.sees_all else configuration.queues
        self._seen = frozenset(queue.name for queue in queues if core.may_see(queue, user))
        self._led = frozenset(queue.name for queue in queues if core.is_admin(queue, user))

    def under(self, configuration: Configuration) -> Permissions:
        """The same person's, as the queues stand now: what lasts longer than a request asks again."""
        return self if configuration is self._configuration else Permissions(self.person, configuration)

    @property
    def sees_all(self) -> bool:
        return self.person.sees_all

    def sees(self, workload: Workload) -> bool:
        return self.sees_work_of(workload.user, workload.queue)

    def sees_work_of(self, user: str, queue: str) -> bool:
        return self.sees_all or user == self.person.user or queue in self._seen

    def selection(self) -> tuple[str | None, tuple[str, ...]]:
        """Whose work one sees: (that of this user, or of these queues); (None, ()): everybody's."""
        return (None, ()) if self.sees_all else (self.person.user, tuple(sorted(self._seen)))

    def changes(self, workload: Workload) -> bool:
        if self.person.role == OPERATOR:
            return True
        return self.person.may_submit and (workload.user == self.person.user or workload.queue in self._led)

    def knows_user(self, user: str) -> bool:
        """Whether one may be told that there is this user, beside what is said of work that one sees."""
        return self.sees_all or user == self.person.user

    def leads(self, queue: str) -> bool:
        """Whether one is its admin, or sees everything anyway."""
        return self.sees_all or queue in self._led

    def knows(self, queue: str) -> bool:
        return any(one.name == queue for one in self._configuration.queues)

    def submits_to(self, queue: str) -> bool:
        if self.person.role == OPERATOR:
            return True
        return self.person.may_submit and any(
            one.name == queue and core.may_submit(one, self.person.user) for one in self._configuration.queues
        )


def find(state: State, name: str, permissions: Permissions) -> WorkloadState:
    """`name` is the newest run, `name@2` exactly that one. Raises RequestError (404) with the nearest names that one
    may see, in the same words whether there is none or it may not be seen."""
    found = newest_run(state, name)
    if found is not None and permissions.sees(found.workload):
        return found
    newest = islice(reversed(state.workloads.values()), NAMES_COMPARED)
    seen = {one.workload.name for one in newest if permissions.sees(one.workload)}
    near = difflib.get_close_matches(name, sorted(seen), n=3)
    raise RequestError(
        f'there is no workload "{name}".',
        code="unknown_workload",
        hint=f"Did you mean {' or '.join(near)}?" if near else "llmsched status lists them.",
        http_status=404,
    )


def check_change(found: WorkloadState, permissions: Permissions) -> None:
    """Raises NotAllowed for work that one may see and not handle."""
    if not permissions.changes(found.workload):
        raise NotAllowed(
            f"{found.workload.id} is not yours to change.", code="role", hint="Ask its owner, or an admin of its queue."
        )


def check_name(state: State, workload: Workload, permissions: Permissions) -> None:
    """Raises RequestError when the name is of another's work. That it is taken has to be said: names are for all."""
    newest = newest_run(state, workload.name)
    if newest is not None and not permissions.changes(newest.workload):
        raise RequestError(f'the name "{workload.name}" is not free.', code="name_taken", hint="Choose another name.")


def check_queue(workload: Workload, permissions: Permissions) -> None:
    """Raises NotAllowed when the queue does not take work of who asks. One that does not exist is the core's to say."""
    if permissions.knows(workload.queue) and not permissions.submits_to(workload.queue):
        raise NotAllowed(
            f'"{permissions.person.user}" may not submit to queue "{workload.queue}".',
            hint="llmsched queues lists them; whoever keeps the cluster file says who may.",
        )


class KnownNames:
    """The names that one person may read: render.Names under that person's permissions. Work that the person may not
    see has no name; nor has a workload that is not there. `asked`: the id of work that one has been let handle."""

    def __init__(self, state: State, permissions: Permissions, asked: str = "") -> None:
        self._state, self._rights, self._asked = state, permissions, asked

    def name(self, ref: Ref) -> str | None:
        if ref.kind in (WORKLOAD, GANG):
            return ref.id if self._sees(ref.id.partition("/")[0]) else None
        if ref.kind == USER:
            return ref.id if self._rights.knows_user(ref.id) else None
        if ref.kind == ARTIFACT:
            return ref.id if self._rights.sees_all else None
        if ref.kind == NODE:
            node = self._state.nodes.get(ref.id)
            return (node.node.name if node is not None else "") or ref.id
        return ref.id if is_public(ref) else None

    def _sees(self, workload: str) -> bool:
        record = self._state.find(workload)
        if self._rights.sees_all or workload == self._asked:
            return True
        return record is not None and self._rights.sees(record.workload)
