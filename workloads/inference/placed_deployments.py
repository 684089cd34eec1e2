"""Deployments of an application that the spec names in `serve.deployments`: each copy is a member of the replica's
gang, placed on any node with what the spec gives it. What of the two does not fit together is refused by name.

    serve: {app: "desk:app", deployments: {Large: {accelerators: "A100:1", cpus: 4, memory: 40GB, replicas: 2}}}

Start at `check`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from ray.serve import Application, Deployment

from llmsched.runtime import environment, serve_graph
from workloads.sources import BadInput, resolve_path


class Seat(NamedTuple):
    """A member as it was placed, and what begins its process (`serve_apart.Place.open`)."""

    member: Mapping[str, Any]
    open: Callable[[], Any]


Placed = Mapping[str, Sequence[Seat]]  # by deployment, a seat for each copy
Results = Mapping[str, tuple[str, str]]  # by what serve.args names: where it lies, and the folder that it became here
NOWHERE_ELSE: Placed = MappingProxyType({})


def of(members: Sequence[Mapping[str, Any]], open_member: Callable[[int], Any] | None) -> Placed:
    """Of all members of a gang but its replica's own."""
    found: dict[str, list[Seat]] = {}
    for member in members:
        assert open_member is not None
        found.setdefault(member["group"], []).append(Seat(member, partial(open_member, int(member["rank"]))))
    return found


def fetch(results: Results) -> None:
    """On a member's node: what the arguments of the application name is to lie where it does beside the replica. Raises
    BadInput."""
    for uri, (where, folder) in results.items():
        here = str(resolve_path(where))
        if here != folder:
            raise BadInput(
                f"{uri} lies at {here} on this node and at {folder} beside the replica: it cannot be handed over."
            )


def check(entry: str, application: Application | None, placed: Placed) -> None:
    """Raises environment.UserError. `application`: None for a class alone, which has no deployments."""
    if not placed:
        return
    where = f"serve.app {entry}: serve.deployments"
    if application is None:
        raise environment.UserError(
            f'{where} is of a bound application of several deployments ("app = Desk.bind(Large.bind())"), and this is '
            "a class alone: leave it out; resources of the spec are what the replica gets."
        )
    deployments = {one.name: one for one in serve_graph.deployments_of(application)}
    *others, ingress = deployments
    for name, seats in placed.items():
        if name == ingress:
            raise environment.UserError(
                f"{where} names {name}, which is the ingress: what it gets is resources of the spec. Name those that "
                f"it calls{': ' + ', '.join(others) if others else ', where there are any'}."
            )
        if name not in deployments:
            near = difflib.get_close_matches(name, others, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            has = f"whose deployments are {', '.join(deployments)}" if others else f"whose only deployment is {ingress}"
            raise environment.UserError(f"{where} names {name}, which is not in the application, {has}.{hint}")
        _check_amounts(f"{where}.{name}", deployments[name], seats[0].member)


def _check_amounts(where: str, deployment: Deployment, member: Mapping[str, Any]) -> None:
    actor = deployment.ray_actor_options or {}
    cpus = float(actor.get("num_cpus") or 0)
    # Serve asks for one CPU where nobody said so.
    asks = {"num_gpus": actor.get("num_gpus"), "num_cpus": cpus if cpus > 1 else 0, "memory": actor.get("memory")}
    has = {"num_gpus": member.get("gpus"), "num_cpus": member.get("cpus"), "memory": member.get("memory_bytes")}
    write = {"num_gpus": 'accelerators: "TYPE:{:g}"', "num_cpus": "cpus: {:g}", "memory": "memory: {:.0f}"}
    for name, amount in asks.items():
        given = float(has[name] or 0)
        if float(amount or 0) > given and not (name == "memory" and not given):  # which is not counted then
            raise environment.UserError(
                f"{where}: the deployment asks for {name}={float(amount or 0):g} and gets {given:g}: write "
                f"{write[name].format(float(amount or 0))} there."
            )
    custom = dict(member.get("custom") or {})
    for name, amount in dict(actor.get("resources") or {}).items():
        if float(amount) > float(custom.get(name, 0)):
            raise environment.UserError(
                f"{where}: the deployment asks for {amount:g} {name} and gets {float(custom.get(name, 0)):g}: write "
                f"custom: {{{name}: {amount:g}}} there."
            )
