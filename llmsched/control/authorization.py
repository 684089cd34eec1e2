"""Who may see and change which work. The one place that knows what a role is worth; what it does not allow is refused.

A token has a user and a role; a queue names users as its viewers, submitters and admins (`roles` of the cluster file):

    viewer     reads: one's own work, and that of queues which name one as viewer or admin
    submitter  and submits to queues that let one, handles one's own work, and all work of queues one is admin of
    auditor    reads everything, changes nothing
    operator   everything: all work, the configuration, the end of the controller

Work that one may not see is answered for in the words of work that does not exist.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from llmsched.control.dispatch import newest_run
from llmsched.core import authorization as core
from llmsched.core.configuration import Configuration
from llmsched.core.state import State, WorkloadState
from llmsched.core.workload import Workload
from llmsched.errors import NotAllowed, RequestError

VIEWER, SUBMITTER, AUDITOR, OPERATOR = ROLES = ("viewer", "submitter", "auditor", "operator")
_SUBMITS = (SUBMITTER, OPERATOR)
_SEES_ALL = (AUDITOR, OPERATOR)
SOMEBODYS = "another's workload"
_TOLD = ("message", "text", "next_change", "advice", "why", "others", "warnings", "victims", "beneficiary")  # by us
_ID = re.compile(r'(?<![\w"@/.-])([a-z0-9][a-z0-9-]{0,62}(?:@\d+)?)(?:/\d+)?(?![\w"@/-])')


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


class Rights:
    """Of one person, as the queues stand in one version of the configuration."""

    def __init__(self, person: Person, configuration: Configuration) -> None:
        self.person = person
        self._configuration = configuration
        user = person.user
        queues = () if person.sees_all else configuration.queues
        self._seen = frozenset(queue.name for queue in queues if core.may_see(queue, user))
        self._led = frozenset(queue.name for queue in queues if core.is_admin(queue, user))

    def under(self, configuration: Configuration) -> Rights:
        """The same person's, as the queues stand now: what lasts longer than a request asks again."""
        return self if configuration is self._configuration else Rights(self.person, configuration)

    @property
    def sees_all(self) -> bool:
        return self.person.sees_all

    def sees(self, workload: Workload) -> bool:
        return self.sees_all or workload.user == self.person.user or workload.queue in self._seen

    def changes(self, workload: Workload) -> bool:
        if self.person.role == OPERATOR:
            return True
        return self.person.may_submit and (workload.user == self.person.user or workload.queue in self._led)

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


def find(state: State, name: str, rights: Rights) -> WorkloadState:
    """`name` is the newest run, `name@2` exactly that one. Raises RequestError (404) with the nearest names that one
    may see, in the same words whether there is none or it may not be seen."""
    found = newest_run(state, name)
    if found is not None and rights.sees(found.workload):
        return found
    seen = {one.workload.name for one in state.workloads.values() if rights.sees(one.workload)}
    near = difflib.get_close_matches(name, sorted(seen), n=3)
    raise RequestError(
        f'there is no workload "{name}".',
        code="unknown_workload",
        hint=f"Did you mean {' or '.join(near)}?" if near else "llmsched status lists them.",
        http_status=404,
    )


def check_change(found: WorkloadState, rights: Rights) -> None:
    """Raises NotAllowed for work that one may see and not handle."""
    if not rights.changes(found.workload):
        raise NotAllowed(
            f"{found.workload.id} is not yours to change.", code="role", hint="Ask its owner, or an admin of its queue."
        )


def check_name(state: State, workload: Workload, rights: Rights) -> None:
    """Raises RequestError when the name is of another's work. That it is taken has to be said: names are for all."""
    newest = newest_run(state, workload.name)
    if newest is not None and not rights.changes(newest.workload):
        raise RequestError(f'the name "{workload.name}" is not free.', code="name_taken", hint="Choose another name.")


def check_queue(workload: Workload, rights: Rights) -> None:
    """Raises NotAllowed when the queue does not take work of who asks. One that does not exist is the core's to say."""
    if rights.knows(workload.queue) and not rights.submits_to(workload.queue):
        raise NotAllowed(
            f'"{rights.person.user}" may not submit to queue "{workload.queue}".',
            hint="llmsched queues lists them; whoever keeps the cluster file says who may.",
        )


def without_names(state: State, rights: Rights, data: Any, told: bool = False) -> Any:
    """JSON data in whose sentences work that one may not see has no name. A name is found as a word: whoever calls work
    by a word of ours makes that word unreadable for others, and shows no more by it."""
    if rights.sees_all:
        return data
    if isinstance(data, dict):
        return {key: without_names(state, rights, value, key in _TOLD) for key, value in data.items()}
    if isinstance(data, list):
        return [without_names(state, rights, value, told) for value in data]
    return hide(state, rights, data) if told and isinstance(data, str) else data


def hide(state: State, rights: Rights, text: str) -> str:
    """One sentence, or the id of a workload or gang."""

    def shown(found: re.Match[str]) -> str:
        record = state.workloads.get(found[1])
        return found[0] if record is None or rights.sees(record.workload) else SOMEBODYS

    return text if rights.sees_all else _ID.sub(shown, text)
