"""Every use that code inside Ray makes of what Ray Serve does not promise to keep.

A file of its own: a replica must not load Ray Train for it, nor a train worker Serve. `tests/runtime/
test_ray_internals.py` fails when it is not as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

from llmsched.runtime.after_import import after_import

_CLIENT = "ray.serve._private.client"


def mark_deployments(envs: Mapping[str, str]) -> None:
    """Let what this process deploys through Serve bear variables in its runtime environment, as Ray lets what it makes
    through `remote`: Serve makes the processes, so they inherit nothing from who deployed them."""

    def wrap(client: ModuleType) -> None:
        get_deploy_args: Callable[..., Any] = client.get_deploy_args

        def marked(*args: Any, replica_config: Any, **more: Any) -> Any:
            environment = replica_config.ray_actor_options.setdefault("runtime_env", {})
            environment.setdefault("env_vars", {}).update(envs)
            return get_deploy_args(*args, replica_config=replica_config, **more)

        client.get_deploy_args = marked  # type: ignore[attr-defined]

    after_import(_CLIENT, wrap)


def tell_no_controller() -> None:
    """Keep what a multiplexed deployment of this process has loaded to itself: no replica of Serve's is here whose
    controller would have to know, and looking for it would make a Ray driver of this process."""
    from ray.serve import multiplex

    multiplex._ModelMultiplexWrapper._push_model_ids_info = lambda self: None


def set_title(words: str) -> None:
    """Of this process, as Ray sets those of its workers. The first time it is learnt where a title is written."""
    from ray import _raylet

    _raylet.setproctitle(words)


@contextmanager
def of_model(model: str) -> Iterator[None]:
    """Within, `serve.get_multiplexed_model_id()` says `model`, if that is any."""
    if not model:
        yield
        return
    from ray.serve import context

    token = context._serve_request_context.set(
        replace(context._get_serve_request_context(), multiplexed_model_id=model)
    )
    try:
        yield
    finally:
        context._serve_request_context.reset(token)
