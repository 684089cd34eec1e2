"""Actors that have one attempt after another, by name, and as each of those attempts knows them.

A supervisor or worker of a task may be left to the next attempt (`warm_supervisor.py`, `crew.py`). So what is said to
it names the attempt that is meant: words that come too late reach nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray

from llmsched.runtime.attempt import NAMESPACE

PREFIX = "llms-warm/"  # of the names of these actors; then comes the first attempt that they had


def can_be_left(kind: str, spec: Mapping[str, Any]) -> bool:
    """Whether an attempt may leave its processes to another one. A door to endpoints (`calls`) is of one attempt."""
    return kind == "task" and not spec.get("calls")


def warm_name(attempt: str) -> str:
    """Of the supervisor that is started for an attempt and may have others later: `llms/a/0/1` -> `llms-warm/a/0/1`"""
    return PREFIX + attempt.partition("/")[2]


def supervisor_part(actor: str) -> str:
    """Of a warm supervisor or one of its workers, the supervisor's name."""
    return "/".join(actor.split("/")[:4])


def first_attempt(warm: str) -> str:
    """`llms-warm/a/0/1` -> `llms/a/0/1`"""
    return "llms/" + warm.removeprefix(PREFIX)


class Addressed:
    """A warm actor as one attempt knows it. What is said to it after it has gone on to another attempt reaches nobody,
    and is answered with None."""

    def __init__(self, actor: Any, attempt: str) -> None:
        self.actor, self.attempt = actor, attempt

    def __reduce__(self) -> Any:
        return Addressed, (self.actor, self.attempt)

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Method(self, name)


class _Method:
    """As Ray's: `remote`, and `options` before it."""

    def __init__(self, to: Addressed, name: str, **options: Any) -> None:
        self._to, self._name, self._options = to, name, options

    def options(self, **options: Any) -> _Method:
        return _Method(self._to, self._name, **options)

    def remote(self, *arguments: Any) -> Any:
        is_streamed = self._options.get("num_returns") == "streaming"  # Ray takes that of generators alone
        said_to = self._to.actor.streamed_to if is_streamed else self._to.actor.said_to
        said_to = said_to.options(**self._options) if self._options else said_to
        return said_to.remote(self._to.attempt, self._name, *arguments)


def end_at_once(actor: Any) -> None:
    """`ray.kill`, also of an actor as an attempt knows it."""
    ray.kill(actor.actor if isinstance(actor, Addressed) else actor)


def supervisor_of(order: Mapping[str, Any]) -> Any:
    """Of the attempt of a LaunchOrder (as JSON data), for one of its workers."""
    name = f"llms/{order['gang']}/{order['attempt']}"
    if not (warm := order.get("warm")):
        return ray.get_actor(name, namespace=NAMESPACE)
    return Addressed(ray.get_actor(warm, namespace=NAMESPACE), name)
