"""Whether the endpoint that `serve.prefill` names reads the prompts of another one, and why not where it does not."""

from __future__ import annotations

from llmsched.control import prefills
from llmsched.control.dispatch import artifact_of, is_result
from llmsched.control.lookup import newest_run, spec_of
from llmsched.core.message import About, Message, Quote, say
from llmsched.core.state import GangState, State, Status, WorkloadState
from llmsched.errors import RequestError

# Whom requests may go to. Those that vacate finish what they have and get nothing new.
ANSWERING = (Status.RUNNING, Status.RESIZING)


def trouble(state: State, found: WorkloadState) -> Message | None:
    """Of an endpoint that reads its prompts itself though it names another one: why. None where that one reads them,
    and where nobody is named. What ails that one is told to those who may see it."""
    workload = found.workload
    name = prefills.wanted_of(workload)
    if not name or found.outcome:
        return None
    live = (state.workloads[each] for each in state.serving)
    reader = next((one for one in live if prefills.is_endpoint(one.workload, name, workload.user)), None)
    if reader is None:
        last = newest_run(state, name)
        if last is None or not prefills.is_endpoint(last.workload, name, workload.user):
            return say("prefill.missing", name=Quote(name))
        if last.phase == "failed":
            why = About(last.workload.id, last.message) if last.message is not None else ()
            return say("prefill.failed", name=Quote(name), why=why)
        return say("prefill.stopped", name=Quote(name))
    if reader.cancelled:
        return say("prefill.stopped", name=Quote(name))
    if not prefills.reads_for_others(reader.workload):
        return say("prefill.unlike", name=Quote(name))
    mine, its = (_answering(state, one) for one in (found, reader))
    if not its:
        ails = _why_none(state, reader)
        why = About(reader.workload.id, ails) if ails is not None else ()
        return say("prefill.waits", name=Quote(name), why=why)
    if mine and not {kv_of(state, one) for one in mine} & {kv_of(state, one) for one in its} - {""}:
        return say("prefill.unlike", name=Quote(name))
    return None


def _answering(state: State, found: WorkloadState) -> list[GangState]:
    return [one for one in state.gangs_of(found) if one.status in ANSWERING]


def _why_none(state: State, reader: WorkloadState) -> Message | None:
    for one in state.gangs_of(reader):
        if one.status is Status.QUEUED and one.reason is not None:
            return one.reason.message
        if one.status is Status.LAUNCHING and one.message is not None:
            return one.message
    return reader.message


def kv_of(state: State, gang: GangState) -> str:
    """Of what kind the keys and values are that a replica gives or takes; "" where it does neither."""
    if not prefills.takes_part(gang.spec):
        return ""
    model = gang.model or str(((spec_of(gang.spec).get("serve") or {}).get("model") or {}).get("source"))
    try:
        return prefills.kind_of(gang.spec, artifact_of(state, gang.spec, model) if is_result(model) else model)
    except RequestError:  # the result was taken away since
        return ""
