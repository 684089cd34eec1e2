"""An adapter of an endpoint goes back to what was published under its name before: live, without a rollout."""

from __future__ import annotations

from llmsched import sanitize
from llmsched.control.authorization import Person
from llmsched.control.dispatch import publication
from llmsched.control.lookup import spec_of
from llmsched.core import authorization
from llmsched.core.facts import Fact, Published, RolledBack
from llmsched.core.records import WorkloadState
from llmsched.core.state import State
from llmsched.errors import RequestError


def rolled_back(state: State, record: WorkloadState, adapter: str, person: Person, at: float) -> list[Fact]:
    """To the newest before the one that is live, of those that were published; at last to the one of the endpoint's
    spec. Raises RequestError where there is none."""
    endpoint = record.workload
    there = authorization.published_to(state, endpoint)
    now = there.get(adapter)
    if now is None or now.kind != "adapter":
        known = sorted(each for each, one in there.items() if one.kind == "adapter")
        raise RequestError(
            f'no adapter "{sanitize.line(adapter, 60)}" was published to {endpoint.id}.',
            code="no_revision",
            hint=f"There are: {', '.join(known)}." if known else "It has none.",
        )
    fact = _before(state, record, now, at)
    if fact is None:
        raise RequestError(
            f"{endpoint.id}: nothing was published as {adapter} before that of {now.origin}.",
            code="no_revision",
            hint="A training that publishes under the same name puts another in its place.",
        )
    back = RolledBack(at, endpoint.id, record.revision, person.user, adapter=adapter, uri=fact.uri, origin=fact.origin)
    state.apply(back)
    return [back]


def _before(state: State, record: WorkloadState, now: Published, at: float) -> Published | None:
    endpoint, maker = record.workload, state.workloads.get(now.origin)
    if now.origin == endpoint.id:
        return None
    made_at = now.at if maker is None or maker.finished_at is None else maker.finished_at
    earlier: list[tuple[float, Published]] = []
    for other in state.workloads.values():
        publish, ended = other.workload.publish, other.finished_at
        if publish is None or publish.kind != "adapter" or other.outcome != "succeeded" or ended is None:
            continue
        if ended < made_at and (publish.name or other.workload.name) == now.name:
            fact, _ = publication(state, other, other.artifact, other.metrics, at)
            if fact is not None and fact.target == endpoint.id and fact.uri != now.uri:
                earlier.append((ended, fact))
    if earlier:
        return max(earlier, key=lambda one: one[0])[1]
    given = {one["name"]: one["source"] for one in (spec_of(endpoint).get("serve") or {}).get("adapters") or ()}
    source = given.get(now.name)
    return None if source is None else Published(at, endpoint.id, "adapter", now.name, source, endpoint.id)
