"""What vLLM is told where one engine reads prompts and another one goes on from them: which part it has, and where the
other ones ask it for the keys and values.

Each replica has an address of its own for that, on its node: two engines on one node may not share a port, and no spec
could say one for all.
"""

from __future__ import annotations

import dataclasses
import os
import random
import socket
from collections.abc import Mapping
from typing import Any

import ray

from llmsched.data.parameters import CONNECTOR, SIDE_CHANNEL

# Above Ray's own ports and below those that the kernel gives to connections: vLLM binds the port a moment later.
LOWEST, BEYOND = 20_000, 32_768
TRIED = 200


def role_of(serve: Mapping[str, Any]) -> str:
    """vLLM's `kv_role` of an endpoint with this section of a spec; "" for one that is whole."""
    if serve.get("role") == "prefill":
        return "kv_producer"
    return "kv_consumer" if serve.get("prefill") else ""


def config_for(given: Mapping[str, Any] | None, role: str) -> Any:
    """vLLM's KVTransferConfig: what is `given`, and the preset of `role`; None for neither. Raises ValueError."""
    if not given and not role:
        return None
    from vllm.config import KVTransferConfig

    wanted = dict(given or {})
    if role:
        wanted |= {"kv_connector": CONNECTOR, "kv_role": role}
        known = {field.name for field in dataclasses.fields(KVTransferConfig)}
        if role == "kv_consumer" and "kv_load_failure_policy" in known:  # before that there was no other policy
            wanted.setdefault("kv_load_failure_policy", "recompute")
    try:
        return KVTransferConfig(**wanted)
    except (TypeError, ValueError) as error:
        raise ValueError(f"engine_kwargs.vllm.kv_transfer_config: {error}") from None


def open_side_channel(count: int) -> tuple[str, int]:
    """Choose where this engine is asked for keys and values, and tell vLLM, which reads it from the environment. Each
    of its `count` workers may take a port, one after the other. Raises OSError for want of free ones."""
    host = str(ray.util.get_node_ip_address())
    chance = random.SystemRandom()
    for _ in range(TRIED):
        port = chance.randrange(LOWEST, BEYOND - count)
        if all(_is_free(host, port + place) for place in range(count)):
            os.environ.update(zip(SIDE_CHANNEL, (host, str(port)), strict=True))
            return host, port
    raise OSError(f"there are no {count} free ports in a row on this node")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
