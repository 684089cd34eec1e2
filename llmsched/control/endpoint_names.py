"""Whose a name of an endpoint is: the name of its workload, its model's id, the plain names of its adapters.

All are one set of names, because a request may use any of them. A name is of the first endpoint that took it, until
that one has ended or no longer uses it; whoever comes later is refused. Only one user's own adapters may share a plain
name: they are asked for as "<model id>:<adapter>". Derived from the state, so a replay says the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from llmsched.control.authorization import KnownNames, Permissions
from llmsched.control.lookup import newest_run, spec_of
from llmsched.core import authorization
from llmsched.core.message import Quote, say
from llmsched.core.message import workload as reference
from llmsched.core.render import text
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import RequestError


class Claim(NamedTuple):
    name: str
    endpoint: Workload
    is_adapter: bool = False

    def excludes(self, other: Claim) -> bool:
        """Whether both cannot be: neither an adapter, or of two users."""
        return not (self.is_adapter or other.is_adapter) or self.endpoint.user != other.endpoint.user


def model_id(workload: Workload) -> str:
    """What requests call it: the id of its model; an app has its workload's name."""
    model = (spec_of(workload).get("serve") or {}).get("model") or {}
    return str(model.get("id") or workload.name)


class Taken:
    """The names that are taken: by the endpoints that live, and by those of one file, of which the first has a name."""

    def __init__(self, state: State, file: Sequence[Workload]) -> None:
        self._state = state
        self._place = {one.id: place for place, one in enumerate(file)}
        self._by_name: dict[str, list[Claim]] = {}
        for claim in chain(_taken(state), *(claims_of(state, one) for one in file)):
            if claim.endpoint.id not in self._place or claim.endpoint is file[self._place[claim.endpoint.id]]:
                self._by_name.setdefault(claim.name, []).append(claim)

    def check(self, workload: Workload, permissions: Permissions) -> None:
        """Raises RequestError when a name that this workload would take, or publish to, is of another endpoint.

        Of the file, it is the names of those before it that are taken."""
        place = self._place[workload.id]
        for mine in _wanted(self._state, workload, permissions):
            for other in self._by_name.get(mine.name, ()):
                in_file = other.endpoint.id in self._place  # written by whoever asks
                if in_file and self._place[other.endpoint.id] >= place:
                    continue
                if other.endpoint.id != mine.endpoint.id and mine.excludes(other):
                    who = Quote(other.endpoint.id) if in_file else reference(other.endpoint.id)
                    taken_by = say("name_taken", name=Quote(mine.name), who=who)
                    raise RequestError(
                        text(taken_by, KnownNames(self._state, permissions)),
                        code="name_taken",
                        hint=f"Choose another {_where(workload, mine)}.",
                    )


def is_free(state: State, name: str, endpoint: Workload) -> bool:
    """Whether an adapter of `endpoint` may have this plain name now."""
    mine = Claim(name, endpoint, is_adapter=True)
    return not any(
        other.name == name and other.endpoint.id != endpoint.id and mine.excludes(other) for other in _taken(state)
    )


def claims_of(state: State, workload: Workload) -> Iterator[Claim]:
    """Every name of one endpoint."""
    if workload.kind != "serve":
        return
    for name in dict.fromkeys((workload.name, model_id(workload))):
        yield Claim(name, workload)
    adapters = [str(each["name"]) for each in (spec_of(workload).get("serve") or {}).get("adapters") or ()]
    published = authorization.published_to(state, workload).items()
    adapters += [name for name, one in published if one.kind == "adapter"]
    for name in dict.fromkeys(adapters):
        yield Claim(name, workload, is_adapter=True)


def _taken(state: State) -> Iterator[Claim]:
    for name in state.serving:
        yield from claims_of(state, state.workloads[name].workload)


def _wanted(state: State, workload: Workload, permissions: Permissions) -> Iterator[Claim]:
    yield from claims_of(state, workload)
    publish = workload.publish
    if publish is not None and publish.kind == "adapter":
        target = newest_run(state, publish.to)
        endpoint = target.workload if target is not None and permissions.sees(target.workload) else workload
        yield Claim(publish.name or workload.name, endpoint, is_adapter=True)


def _where(workload: Workload, claim: Claim) -> str:
    if workload.publish is not None:
        return "publish.name"
    if claim.is_adapter:
        return "name for this adapter"
    return "workload name" if claim.name == workload.name else "serve.model.id"
