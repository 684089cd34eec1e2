"""Endpoints whose prompts another one reads: which one that is, and whether both serve the same (`serve.prefill`).

A spec that can never work is refused where it is applied. What replicas serve changes one by one as endpoints roll out,
so each also says in the route table of what kind its keys and values are: only equals are put together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from llmsched.control.lookup import spec_of
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import RequestError

# Of vLLM's arguments, those that say what a key and a value are like: beside them in engine_kwargs, and in its `vllm`.
_ALIKE = ("dtype", "kv_cache_dtype", "quantization", "hf_overrides", "rope_scaling", "rope_theta")


def check(state: State, workload: Workload, file: Iterable[Workload]) -> None:
    """Raises RequestError for an endpoint that cannot read the prompts of this one. One that is not there may come."""
    wanted = wanted_of(workload)
    other = _named(state, workload, wanted, file)
    if other is None:
        return
    mine, its = _serve(workload), _serve(other)
    if its.get("role") != "prefill":
        raise RequestError(
            f'serve.prefill: "{wanted}" answers requests, and does not read prompts for others.',
            code="unlike_prefill",
            hint=f'Write "role: prefill" in serve of "{wanted}", or name one that has it.',
        )
    source, theirs = (str((each.get("model") or {}).get("source")) for each in (mine, its))
    if source != theirs:
        raise RequestError(
            f'serve.prefill: "{wanted}" serves {theirs}, and {workload.name} serves {source}: what the one has read is '
            "of no use to the other.",
            code="unlike_prefill",
            hint="Give both the same serve.model.source; to change it, apply both in one file.",
        )
    for name in _ALIKE:
        if _argument(mine, name) != _argument(its, name):
            raise RequestError(
                f'serve.prefill: "{wanted}" has {name} {_shown(its, name)}, and {workload.name} has '
                f"{_shown(mine, name)}: keys and values are to be of one kind.",
                code="unlike_prefill",
                hint="Write the same in serve.engine_kwargs of both.",
            )


def warnings(state: State, workload: Workload, file: Iterable[Workload]) -> list[str]:
    """For `plan`: what is not there yet, and whom a change leaves behind."""
    wanted = wanted_of(workload)
    if wanted and _named(state, workload, wanted, file) is None:
        return [
            f'serve.prefill: waits for "{wanted}", which is no endpoint of {workload.user} yet; until it answers, '
            f"{workload.name} reads its prompts itself"
        ]
    found = []
    for each in state.serving if reads_for_others(workload) else ():
        one = state.workloads[each].workload
        one = next((new for new in file if new.id == one.id), one)
        if one.user == workload.user and wanted_of(one) == workload.name:
            try:
                check(state, one, [workload])
            except RequestError:
                found.append(f"{one.name} will read its prompts itself, until it serves the same as {workload.name}")
    return found


def partner(workload: Workload, endpoints: Iterable[Workload]) -> dict[str, Any]:
    """For the route table: {"prefill": {"workload", "from_tokens"}} where another of `endpoints` reads its prompts."""
    wanted = wanted_of(workload)
    for other in endpoints if wanted else ():
        if is_endpoint(other, wanted, workload.user) and _serve(other).get("role") == "prefill":
            from_tokens = int(_serve(workload)["prefill"]["from_tokens"])
            return {"prefill": {"workload": other.id, "from_tokens": from_tokens}}
    return {}


def takes_part(workload: Workload) -> bool:
    """Whether its replicas give keys and values, or take any."""
    return bool(wanted_of(workload)) or reads_for_others(workload)


def kind_of(workload: Workload, model: str) -> str:
    """Of what kind the keys and values of a replica of this spec with that model are, in a word that equals share."""
    serve = _serve(workload)
    alike = {name: value for name in _ALIKE if (value := _argument(serve, name)) is not None}
    return f"{model} {json.dumps(alike, sort_keys=True)}"


def reads_for_others(workload: Workload) -> bool:
    return '"role":"prefill"' in workload.parcel and _serve(workload).get("role") == "prefill"


def wanted_of(workload: Workload) -> str:
    """The name of the endpoint that is to read its prompts; "" for none."""
    if workload.kind != "serve" or '"prefill":{' not in workload.parcel:  # canonical JSON; most want nobody
        return ""
    return str((_serve(workload).get("prefill") or {}).get("endpoint") or "")


def _named(state: State, workload: Workload, name: str, file: Iterable[Workload]) -> Workload | None:
    """The endpoint of that name and of the same user: as the file will have it, else as it is."""
    live = (state.workloads[each].workload for each in state.serving)
    return next((one for one in (*file, *live) if name and is_endpoint(one, name, workload.user)), None)


def is_endpoint(one: Workload, name: str, user: str) -> bool:
    """Whether it is the one that an endpoint of that user means by the name."""
    return one.kind == "serve" and (one.name, one.user) == (name, user)


def _serve(workload: Workload) -> Mapping[str, Any]:
    return spec_of(workload).get("serve") or {}


def _argument(serve: Mapping[str, Any], name: str) -> Any:
    kwargs = serve.get("engine_kwargs") or {}
    return kwargs.get(name, (kwargs.get("vllm") or {}).get(name))


def _shown(serve: Mapping[str, Any], name: str) -> str:
    found = _argument(serve, name)
    return "none" if found is None else json.dumps(found)
