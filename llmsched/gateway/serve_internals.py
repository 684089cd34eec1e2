"""Every use that the gateway and the bridge make of what Ray Serve does not promise to keep.

One file, so that a new Ray is one place to look at; `tests/gateway/test_gateway_ray.py` fails when one of these is not
as it was.
"""

from __future__ import annotations

from typing import Any

import ray
from ray import serve
from ray.serve import context
from ray.serve._private.application_state import StatusOverview
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException
from ray.serve.generated.serve_pb2 import StatusOverview as StatusOverviewProto
from ray.serve.handle import DeploymentHandle

REPLICA_PREFIX = "SERVE_REPLICA::"  # of the names of replicas' actors: SERVE_REPLICA::application#deployment#id


def forget_controller() -> None:
    """Look Serve's controller up anew: the one that this process knows may be gone for good."""
    context._set_global_client(None)


def controller() -> Any:
    """Serve's controller, or None where there is none."""
    try:
        return ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return None


def handle(deployment: str, application: str) -> DeploymentHandle:
    """Made without asking Serve's controller, which may be slow; it hears from the one that is there now. Raises
    RayServeException when none is."""
    now = controller()
    if now is None:
        raise RayServeException("there is no Ray Serve")
    known = context._global_client
    if known is not None and known._controller._actor_id != now._actor_id:
        forget_controller()
    return serve.get_deployment_handle(deployment, application, _check_exists=False)


def delete(application: str) -> None:
    """Ask for it, and do not wait."""
    now = controller()
    if now is not None:
        now.delete_apps.remote([application])


def statuses(of: Any, within_s: float) -> list[Any]:
    """What a controller says of every application. Raises GetTimeoutError, RayActorError.

    Not `serve.status()`: that builds the settings of every deployment anew, which pickles classes for each of them.
    """
    found = ray.get(of.list_serve_statuses.remote(), timeout=within_s)
    return [StatusOverview.from_proto(StatusOverviewProto.FromString(one)) for one in found]


def processes() -> tuple[dict[str, set[str]], bool]:
    """The actors' names of every application's replicas, and whether Serve's controller is there."""
    found: dict[str, set[str]] = {}
    is_there = False
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["namespace"] != SERVE_NAMESPACE:
            continue
        is_there = is_there or one["name"] == SERVE_CONTROLLER_NAME
        if one["name"].startswith(REPLICA_PREFIX):
            application = one["name"].removeprefix(REPLICA_PREFIX).partition("#")[0]
            found.setdefault(application, set()).add(one["name"])
    return found, is_there


def end_process(name: str) -> None:
    """A replica's, without asking Serve."""
    try:
        ray.kill(ray.get_actor(name, namespace=SERVE_NAMESPACE))
    except ValueError:
        return  # gone in the meantime
