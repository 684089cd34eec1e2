"""The protocol that every kind of attempt implements, and what it may ask of the supervisor that it lives under.

The supervisor knows how an attempt lives: it begins, may be asked to leave, changes its size, ends with a receipt. A
kind knows how its work is done: `train_attempt.py`, `task_attempt.py`, `ray_attempt.py`. An `Attempt` is one try at one
size: a resize makes a new one, so nothing of the old one can stay behind, unless the kind can change its size as it is.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from llmsched import sanitize
from llmsched.runtime import redaction
from llmsched.runtime.deaths import Death
from llmsched.runtime.ranks import Ranks
from llmsched.runtime.storage import Storage

if TYPE_CHECKING:
    from llmsched.runtime.crew import Crew

NAMESPACE = "llmsched"
PLACED_WITHIN_S = 60.0  # the ledger says that it fits; when Ray does not agree by then, nobody waits on
CLOSE_WITHIN_S = 10.0  # Ray's own way to end what runs, before its actors are killed


class Outcome(Exception):
    """How an attempt ended, when it did not just succeed. event: error | input | interruption | no-capacity."""

    def __init__(self, outcome: str, message: str = "", event: str = "error", step: int | None = None) -> None:
        message = sanitize.text(redaction.clean(message))  # it is told to everyone
        super().__init__(message)
        self.outcome, self.message, self.event, self.step = outcome, message, event, step


class Life(Protocol):
    """What an attempt may know and say of the life that it is part of. The supervisor is one."""

    name: str  # llms/<gang>/<attempt>
    order: dict[str, Any]  # the LaunchOrder as JSON data, with the members of this try
    storage: Storage
    ranks: Ranks  # what the ranks of this try have said
    resizes: int  # how often its size has changed
    left: threading.Event  # set once this try has let go of everything
    crew: Crew | None  # where a task leaves its workers to the next one, if it may

    @property
    def is_leaving(self) -> bool:
        """It was asked to leave, whatever for."""

    @property
    def is_unused(self) -> bool:
        """Nobody uses it any more: it is asked to leave, and has succeeded when it has."""

    def of_death(self, rank: int, error: BaseException | str) -> Death:
        """What befell a rank whose process is gone; `error` is what Ray raised of it, or all that it says."""

    def begin(self) -> None:
        """The work has begun: from now on, leaving has something to save."""


class Attempt(Protocol):
    """One try at the work. `run` has a thread of its own, the other methods are called from others beside it."""

    def run(self) -> None:
        """Do the work to its end. Raises Outcome unless all went well."""

    def ask_to_leave(self, grace_s: float) -> None:
        """Tell the work, where it does not ask by itself. Returns at once."""

    def end(self) -> None:
        """The grace is over: end it, politely and then by force. Returns when it has gone or nothing more helps."""

    def let_go(self) -> bool:
        """Give everything back to Ray, whatever state it is in, and wait until it is gone; whether it is. May be called
        again."""

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        """Whether it could hold these members instead without an end; answered at once."""

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        """Hold these members instead and go on; who goes has the grace to leave. Returns when it does. False: it did
        not work, and it is as it was."""

    def controlled_by(self, controller: Any) -> None:
        """An actor of Ray's own says that it runs the work."""


def resources_of(member: dict[str, Any]) -> dict[str, float]:
    """Ray's resources of one member. A bundle must ask for something: a thousandth of a CPU is nothing to nobody."""
    need = {"GPU": member["gpus"], "CPU": member["cpus"], "memory": float(member["memory_bytes"]), **member["custom"]}
    return {name: amount for name, amount in need.items() if amount} or {"CPU": 0.001}
