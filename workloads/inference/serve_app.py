"""Applications of Ray Serve: what of a deployment's options has effect in a replica of ours, and what to write instead.

`serve run` gives a deployment processes and resources of its own. Here the replica's gang has them: its resources are
the spec's, and so is how many copies of the application there are. An option that asks for more than the gang has, or
that would change what the code runs in, is refused; one about numbers of processes is told in the log. Deployments that
ask for GPUs of their own get them, of those that the replica was placed on (`gpu_shares.py`), or as members of the gang
where the spec names them (`placed_deployments.py`). Start at `check`.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from ray.serve import Application, Deployment
from starlette.applications import Starlette

from llmsched.runtime import environment, serve_graph
from llmsched.runtime.serve_apart import Place
from llmsched.runtime.serve_process import beside
from workloads.inference import gpu_shares, http
from workloads.inference.placed_deployments import NOWHERE_ELSE, Placed, Results, fetch

_TAKEN = 'a bound application ("app = Desk.bind()") or a builder function that takes serve.args and returns one'
_INSTEAD = {
    "num_replicas": "replicas: 2 (or 1..4) in the spec says how many copies of the whole application there are",
    "autoscaling_config": "replicas: 1..4 and autoscaling: in the spec do that, for the whole application",
}


def application_of(entry: str, found: Any, args: Mapping[str, Any]) -> Application:
    """Raises environment.UserError for what is no application and makes none."""
    what = f"serve.app {entry}"
    if isinstance(found, Application):
        if args:
            raise environment.UserError(f"{what}: it is bound already, so serve.args has no effect. Name a builder.")
        return found
    if isinstance(found, Starlette):
        return _served(found, args, what)
    if isinstance(found, Deployment) or inspect.isclass(found):
        return bound(found, args, what)
    if not inspect.isfunction(found):
        raise environment.UserError(f"{what}: expected {_TAKEN}, got {type(found).__name__}.")
    try:
        return serve_graph.built(found, args)
    except (TypeError, ValueError) as error:
        if _is_theirs(error):
            raise
        raise environment.UserError(f"{what}: {error}") from None


def _is_theirs(error: BaseException) -> bool:
    """Whether the builder itself raised it, not who called it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return not module.startswith(("ray.serve", "pydantic", __name__, "llmsched."))


def bound(found: Any, args: Mapping[str, Any], what: str = "serve.app") -> Application:
    """A deployment, class or function with `args`. Raises environment.UserError for arguments that do not fit."""
    definition = getattr(found, "func_or_class", found)
    if inspect.isfunction(definition) and args:
        raise environment.UserError(f"{what}: a function takes no serve.args.")
    if inspect.isclass(definition) and not serve_graph.is_asgi(definition):
        try:
            inspect.signature(definition).bind(**args)
        except TypeError as error:
            raise environment.UserError(f"{what}: its arguments do not fit serve.args: {error}.") from None
    return serve_graph.bound(found, args)


def _served(app: Starlette, args: Mapping[str, Any], what: str) -> Application:
    """A web application by itself, as the ingress of a deployment that has nothing else."""
    from ray import serve

    if args:
        raise environment.UserError(f"{what}: a web application takes no serve.args.")

    class Ingress:
        pass

    Ingress.__name__ = Ingress.__qualname__ = type(app).__name__
    return serve_graph.bound(serve.ingress(app)(Ingress), {})


def check(
    entry: str,
    application: Application,
    member: Mapping[str, Any],
    say: Callable[[str], None],
    is_bound: bool = True,
    placed: Placed = NOWHERE_ELSE,
) -> None:
    """Raises environment.UserError for what the options of its deployments ask for and do not get. One that is not
    bound runs as a class alone; those that are `placed` by themselves have more to say (`placed_deployments.check`)."""
    for deployment in serve_graph.deployments_of(application):
        options = serve_graph.options_of(deployment)
        what = f"serve.app {entry}, deployment {deployment.name}"
        actor = options.pop("ray_actor_options")
        if "placement_group_bundles" in options:
            raise environment.UserError(
                f"{what}: placement_group_bundles has no effect here; the spec's resources are the replica's. A model "
                "that needs several GPUs: serve.model."
            )
        if "runtime_env" in actor and (given := dict(actor["runtime_env"] or {})):
            raise environment.UserError(
                f"{what}: runtime_env ({', '.join(given)}) has no effect here. {_environment(given)}"
            )
        if deployment.name in placed:
            instead = {"num_replicas": f"replicas: 2 in serve.deployments.{deployment.name} says how many there are"}
            instead["autoscaling_config"] = _INSTEAD["autoscaling_config"]
        else:
            instead = _INSTEAD
        has = {str(name): float(amount) for name, amount in dict(member.get("custom") or {}).items()}
        for name, amount in dict(actor.get("resources") or {}).items() if deployment.name not in placed else ():
            if float(amount) > has.get(name, 0):
                raise environment.UserError(
                    f"{what} asks for {amount:g} {name} and the replica has {has.get(name, 0):g}: write resources: "
                    f"{{custom: {{{name}: {amount:g}}}}} in the spec."
                )
        honoured = serve_graph.HONOURED if is_bound else {"name"}
        for name in sorted(options.keys() - honoured):
            if name == "num_replicas" and options[name] == len(placed.get(deployment.name, (None,))):
                continue
            say(f"deployment {deployment.name}: {name} has no effect here. {instead.get(name, _OURS)}.")
    gpus = gpus_of(application, placed)
    _check_gpus(entry, gpus, float(member.get("gpus") or 0), serve_graph.deployments_of(application)[-1].name)


_INSTEAD["user_config"] = _INSTEAD["max_ongoing_requests"] = 'Name a bound application ("app = Desk.bind()") for that'
_OURS = "The replica is placed, watched and drained as the spec says"


def _environment(given: Mapping[str, Any]) -> str:
    says = {"pip": "environment: {pip: [...]}", "env_vars": "envs: {...}", "working_dir": "workdir: ."}
    instead = [text for name, text in says.items() if name in given]
    return f"Write {' and '.join(instead)} in the spec." if instead else "Leave it out; the spec says what it runs in."


def _check_gpus(entry: str, gpus: Mapping[str, float], has: float, ingress: str) -> None:
    asks = sum(gpus.values())
    if asks > has:
        others = [name for name in gpus if name != ingress]
        apart = ""
        if others:
            apart = (
                ", all on one node; or give one that may be on another node GPUs of its own: serve.deployments: "
                f'{{{others[-1]}: {{accelerators: "TYPE:{gpus[others[-1]]:g}"}}}}'
            )
        raise environment.UserError(
            f"serve.app {entry}: its deployments ask for {asks:g} GPUs ({gpu_shares.told(gpus)}) and the replica has "
            f'{has:g}: write resources: {{accelerators: "TYPE:{math.ceil(asks)}"}} in the spec{apart}.'
        )
    try:
        gpu_shares.places(gpus, int(has))
    except ValueError as error:
        raise environment.UserError(f"serve.app {entry}: {error}") from None


def made(
    application: Application,
    name: str,
    most: int,
    member: Mapping[str, Any],
    placed: Placed = NOWHERE_ELSE,
    results: Results = MappingProxyType({}),
) -> serve_graph.Graph:
    """One that `check` has passed. Its ingress sees the first of the replica's GPUs from now on, if others have some
    of their own."""
    gpus = gpus_of(application, placed)
    own, apart = gpu_shares.environments(gpus, int(member.get("gpus") or 0), os.environ)
    os.environ.update(own)
    places = {
        one: [Place(partial(beside, envs), partial(inside, name, most, {**member, "gpus": gpus[one]}, told))]
        for one, envs in apart.items()
    }
    for one, seats in placed.items():
        places[one] = [
            Place(each.open, partial(inside, name, most, each.member, told), partial(fetch, dict(results)))
            for each in seats
        ]
    return serve_graph.Graph(application, name, most, http.answer_of, places)


def inside(
    name: str,
    most: int,
    member: Mapping[str, Any],
    say: Callable[[str], None],
    application: Application,
    inner: str,
) -> serve_graph.Graph:
    """What code of the app `name` deploys itself (`serve.run`), on what its process sees."""
    member = {**member, "gpus": gpu_shares.seen(float(member.get("gpus") or 0), os.environ)}
    check(inner, application, member, say)
    say(f"serve.run({inner!r}) runs inside of this replica, on what it has; nothing but this app reaches it")
    return made(application, f"{name}/{inner}", most, member)


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gpus_of(application: Application, placed: Placed = NOWHERE_ELSE) -> dict[str, float]:
    """What each deployment asks for that asks for any of the replica's, the ingress first."""
    found = {}
    for deployment in reversed(serve_graph.deployments_of(application)):
        if deployment.name in placed:
            continue
        if amount := float((deployment.ray_actor_options or {}).get("num_gpus") or 0):
            found[deployment.name] = amount
    return found
