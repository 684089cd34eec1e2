"""Why a command is not to be."""

from __future__ import annotations

from dataclasses import dataclass

from llmsched.core.message import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code`: unchanged | unknown_workload | unknown_queue | impossible | over_limit | cycle | conflict | ended ..."""

    code: str
    message: Message  # `render.advice` of it is the next thing to try
