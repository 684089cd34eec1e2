"""The door from a loop to the supervisor of its attempt: what progress, checkpoint and elastic say and ask through it.

`Link` is all that a loop's side knows. `ActorLink` is the real one, over the supervisor's actor handle; a test or a run
by hand may give any other. Importing this imports no ray.
"""

from __future__ import annotations

from typing import Any, Protocol

_PATIENCE_S = 10.0


class Link(Protocol):
    """Nothing here may hold up or end a loop: what cannot be said is lost, what cannot be asked is answered with no."""

    def report(self, values: dict[str, Any]) -> None:
        """The newest numbers and short strings."""

    def checkpointed(self, step: int, fraction: float | None) -> None:
        """A checkpoint of step `step` is published."""

    def should_stop(self) -> bool:
        """Whether the work is asked to leave."""

    def ask(self, id: str, body: str) -> str | None:
        """The answer (JSON) to what is asked as `id` (see ask.py), once there is one. Raises ValueError for more than
        is taken."""


class ActorLink:
    def __init__(self, supervisor: Any) -> None:
        self._supervisor = supervisor

    def report(self, values: dict[str, Any]) -> None:
        self._supervisor.report.remote(values)

    def checkpointed(self, step: int, fraction: float | None) -> None:
        self._supervisor.checkpointed.remote(step, fraction)

    def should_stop(self) -> bool:
        import ray

        try:
            return bool(ray.get(self._supervisor.should_stop.remote(), timeout=_PATIENCE_S))
        except ray.exceptions.RayActorError:
            return True  # without its supervisor the attempt is lost: leave, with a checkpoint
        except ray.exceptions.GetTimeoutError:
            return False  # busy or cut off: go on, ask again

    def ask(self, id: str, body: str) -> str | None:
        import ray

        try:
            answer: str | None = ray.get(self._supervisor.ask.remote(id, body), timeout=_PATIENCE_S)
        except ray.exceptions.RayTaskError as error:
            raise ValueError(str(error.cause)) from None
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None
        return answer
