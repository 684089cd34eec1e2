"""An endpoint whose prompts are read by another one (`serve.prefill`), and that other one (`serve.role: prefill`): what
goes with that, and what of vLLM's `kv_transfer_config` does.

Each function raises WrongAt, whose path begins at the section that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from llmsched.data.parameters import CONNECTOR, SIDE_CHANNEL
from llmsched.spec.quantities import Name
from llmsched.spec.section import Section, WrongAt

if TYPE_CHECKING:
    from llmsched.spec.serve import EngineKwargs, ServeSection, ServeSpec

# Connectors that keep more keys and values for one engine, and move none to another.
_OF_ONE_ENGINE = ("LMCacheConnectorV1", "LMCacheMPConnector", "OffloadingConnector")
_AT = ("engine_kwargs", "vllm", "kv_transfer_config")


class Prefill(Section):
    """Replicas of `endpoint`, which has "role: prefill" and serves the same model, read the prompts; those of this one
    take the keys and values from there and go on. Of a prompt with fewer than `from_tokens` tokens to read (a token is
    taken for 4 characters), and where nobody of `endpoint` can, this one reads it itself."""

    endpoint: Name
    from_tokens: int = Field(default=512, ge=1, le=1 << 20)


def check_serving(serve: ServeSection) -> None:
    asked = "role" if serve.role is not None else "prefill" if serve.prefill is not None else None
    if asked is not None and serve.engine != "vllm":
        raise WrongAt('goes with "engine: vllm", which alone moves keys and values between engines', asked)
    if serve.role is not None and serve.prefill is not None:
        message = 'an endpoint that reads prompts for others (role) has its own read by nobody: leave "prefill" out'
        raise WrongAt(message, "prefill")
    if serve.role is not None and serve.adapters:
        message = (
            "are of the endpoint that answers: this one loads the same when a prompt for one comes; leave them out"
        )
        raise WrongAt(message, "adapters")
    if asked is None:
        check_alone(serve.engine_kwargs)
    elif (config := _config(serve.engine_kwargs)) is not None:
        _check_split(config, "kv_producer" if asked == "role" else "kv_consumer")


def _config(kwargs: EngineKwargs) -> Mapping[str, JsonValue] | None:
    config = (kwargs.vllm or {}).get("kv_transfer_config")
    if config is not None and not isinstance(config, dict):
        raise WrongAt('expected an object, such as {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}', *_AT)
    return config


def check_alone(kwargs: EngineKwargs) -> None:
    """Of an engine that works with no other one."""
    if (config := _config(kwargs)) is None:
        return
    instead = {"kv_producer": '"role: prefill"', "kv_consumer": '"prefill: {endpoint: NAME}"'}
    if (role := config.get("kv_role")) in instead:
        message = f'nothing would be asked of a "{role}" alone. Write {instead[str(role)]} in serve of an endpoint'
        raise WrongAt(message, *_AT, "kv_role")
    connector = config.get("kv_connector")
    if connector == CONNECTOR:
        message = f'"{CONNECTOR}" moves keys and values between endpoints: write "prefill: {{endpoint: NAME}}" in serve'
        raise WrongAt(
            f'{message} of the one that answers and "role: prefill" in that of the other', *_AT, "kv_connector"
        )
    if connector is not None and connector not in _OF_ONE_ENGINE:
        known = ", ".join(_OF_ONE_ENGINE)
        message = f'"{str(connector)[:60]}" is none that is known here; use {known}, or serve.prefill for {CONNECTOR}'
        raise WrongAt(message, *_AT, "kv_connector")


def _check_split(config: Mapping[str, JsonValue], role: str) -> None:
    if config.get("kv_role", role) != role:
        raise WrongAt(f'is "{role}" here, which is set for you; leave it out', *_AT, "kv_role")
    if config.get("kv_connector", CONNECTOR) != CONNECTOR:
        message = f'is "{CONNECTOR}" here: of no other is known what it wants to be told; leave it out'
        raise WrongAt(message, *_AT, "kv_connector")
    if "engine_id" in config:
        raise WrongAt(
            "is of one replica, and would be that of all; leave it out: each makes its own", *_AT, "engine_id"
        )


def check_endpoint(spec: ServeSpec) -> None:
    serve = spec.serve
    if serve.role is None and serve.prefill is None:
        return
    if serve.prefill is not None and serve.prefill.endpoint == spec.name:
        message = "names the workload itself; it is another one, with the same model and role: prefill"
        raise WrongAt(message, "serve", "prefill", "endpoint")
    for name in SIDE_CHANNEL:
        if name in spec.envs or name in spec.secrets:
            where = ("envs", name) if name in spec.envs else ("secrets",)
            raise WrongAt(f'"{name}" is set for each replica, to a port that is free on its node; leave it out', *where)
    if serve.role is None:
        return
    for name in spec.slo.model_dump(exclude_none=True) if spec.slo else ():
        if name != "latency_p95":
            message = "is of an endpoint that answers; use latency_p95, of the time in which a prompt is read"
            raise WrongAt(message, "slo", name)
    if spec.hold_timeout != type(spec).model_fields["hold_timeout"].default:
        message = "nobody waits for an endpoint that reads prompts for others: they read it themselves; leave it out"
        raise WrongAt(message, "hold_timeout")
