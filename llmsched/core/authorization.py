"""What a queue's roles are worth. Pure; who asks, and with what token, is control/authorization.py's to know.

Queues are the leaves of the tree of cohorts, so a role is of one queue and of nothing below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads EVERYONE
    from llmsched.core.configuration import Queue
    from llmsched.core.facts import Published
    from llmsched.core.workload import Workload
    from llmsched.core.world import World

EVERYONE = "*"


def may_submit(queue: Queue, user: str) -> bool:
    """Whom the queue names. One that gives nobody any role is open to whoever may submit at all."""
    is_open = not (queue.viewers or queue.submitters or queue.admins)
    return is_open or _is_named(queue.submitters, user) or is_admin(queue, user)


def may_see(queue: Queue, user: str) -> bool:
    """All work of the queue, not only one's own."""
    return _is_named(queue.viewers, user) or is_admin(queue, user)


def is_admin(queue: Queue, user: str) -> bool:
    return _is_named(queue.admins, user)


def published_to(state: World, endpoint: Workload) -> dict[str, Published]:
    """What goes live in an endpoint, by name: results of its owner's work, and of the admins of its queue. What anybody
    else published under its name is as if it had not been: it is kept beside the others', and moves nothing."""
    found: dict[str, Published] = {}
    for (user, name), one in state.publications.get(endpoint.id, {}).items():
        if may_publish(state, user, endpoint) and (name not in found or one.at >= found[name].at):
            found[name] = one
    return found


def may_publish(state: World, user: str, endpoint: Workload) -> bool:
    if user == endpoint.user:
        return True
    return any(queue.name == endpoint.queue and is_admin(queue, user) for queue in state.configuration.queues)


def may_know(state: World, user: str, workload: Workload) -> bool:
    """Whether a user without a role of their own that sees everything may see it."""
    if workload.user == user:
        return True
    return any(queue.name == workload.queue and may_see(queue, user) for queue in state.configuration.queues)


def may_read(state: World, reader: Workload, made_it: Workload) -> bool:
    """Whether one workload may have the result of another: it was let when it was submitted, or its user may see it."""
    return made_it.id in reader.after or may_know(state, reader.user, made_it)


def _is_named(people: tuple[str, ...], user: str) -> bool:
    return user in people or EVERYONE in people
