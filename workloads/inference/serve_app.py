"""Applications of Ray Serve: what of a deployment's options has effect in a replica of ours, and what to write instead.

`serve run` gives a deployment processes and resources of its own. Here the replica's gang has them: its resources are
the spec's, and so is how many copies of the application there are. An option that asks for more than the gang has, or
that would change what the code runs in, is refused; one about numbers of processes is told in the log. Start at
`check`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve import Application, Deployment
from starlette.applications import Starlette

from llmsched.runtime import environment, serve_graph
from workloads.inference import http

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
) -> None:
    """Raises environment.UserError for what the options of its deployments ask for and do not get. One that is not
    bound runs as a class alone."""
    gpus: dict[str, float] = {}
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
        if amount := float(actor.get("num_gpus") or 0):
            gpus[deployment.name] = amount
        has = {str(name): float(amount) for name, amount in dict(member.get("custom") or {}).items()}
        for name, amount in dict(actor.get("resources") or {}).items():
            if float(amount) > has.get(name, 0):
                raise environment.UserError(
                    f"{what} asks for {amount:g} {name} and the replica has {has.get(name, 0):g}: write resources: "
                    f"{{custom: {{{name}: {amount:g}}}}} in the spec."
                )
        honoured = serve_graph.HONOURED if is_bound else {"name"}
        for name in sorted(options.keys() - honoured):
            if name == "num_replicas" and options[name] == 1:
                continue
            say(f"deployment {deployment.name}: {name} has no effect here. {_INSTEAD.get(name, _OURS)}.")
    _check_gpus(entry, gpus, float(member.get("gpus") or 0))


_INSTEAD["user_config"] = _INSTEAD["max_ongoing_requests"] = 'Name a bound application ("app = Desk.bind()") for that'
_OURS = "The replica is placed, watched and drained as the spec says"


def _environment(given: Mapping[str, Any]) -> str:
    says = {"pip": "environment: {pip: [...]}", "env_vars": "envs: {...}", "working_dir": "workdir: ."}
    instead = [text for name, text in says.items() if name in given]
    return f"Write {' and '.join(instead)} in the spec." if instead else "Leave it out; the spec says what it runs in."


def _check_gpus(entry: str, gpus: Mapping[str, float], has: float) -> None:
    asks = sum(gpus.values())
    told = ", ".join(f"{name} {amount:g}" for name, amount in gpus.items())
    if asks > has:
        raise environment.UserError(
            f"serve.app {entry}: its deployments ask for {asks:g} GPUs ({told}) and the replica has {has:g}: write "
            f'resources: {{accelerators: "TYPE:{asks:g}"}} in the spec.'
        )
    if len(gpus) > 1 and has > 1:
        raise environment.UserError(
            f"serve.app {entry}: several of its deployments ask for GPUs ({told}), and all would use the first that "
            "the replica has. Let them share one (num_gpus: 0.5 each), let one deployment load them all, or apply each "
            "as an endpoint of its own."
        )


def made(application: Application, name: str, most: int) -> serve_graph.Graph:
    return serve_graph.Graph(application, name, most, http.answer_of)
