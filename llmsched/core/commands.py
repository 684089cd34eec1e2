"""What users ask of the scheduler. `check(state, command)` turns a command into a fact, or says why not. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmsched.core.configuration import Configuration
from llmsched.core.facts import Fact
from llmsched.core.workload import Workload

if TYPE_CHECKING:
    from llmsched.core.state import State


@dataclass(frozen=True, slots=True)
class Submit:
    """New, or changed under a known name. The same workload again is a no-op (`Refusal` code "unchanged")."""

    at: float
    workload: Workload


@dataclass(frozen=True, slots=True)
class Cancel:
    at: float
    workload: str
    by: str = ""


@dataclass(frozen=True, slots=True)
class ScaleTo:
    at: float
    workload: str
    size: int


@dataclass(frozen=True, slots=True)
class Configure:
    at: float
    configuration: Configuration


Command = Submit | Cancel | ScaleTo | Configure


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code`: unchanged | unknown_workload | unknown_queue | impossible | over_limit | cycle | conflict | ended ..."""

    code: str
    message: str
    hint: str = ""


def check(state: State, command: Command) -> Fact | Refusal:
    """The fact that `command` becomes in `state`, or the refusal. Neither is applied."""
    raise NotImplementedError
