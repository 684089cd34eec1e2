"""What the core refuses, as an error of ours: with its status, and where in the file the mistake is."""

from __future__ import annotations

from llmsched.core import commands
from llmsched.core.facts import Fact
from llmsched.core.refusal import Refusal
from llmsched.core.render import Names, advice, text
from llmsched.core.state import State
from llmsched.errors import LlmschedError, RequestError, SpecError

STATUS_OF_CODE = {
    "unknown_workload": 404, "unknown_reservation": 404, "unknown_node": 404, "queue_full": 429, "too_many": 429,
}  # fmt: skip
_WHERE_CYCLES: dict[type, str] = {commands.Submit: "after", commands.Configure: "cohorts"}


def checked(state: State, command: commands.Command, names: Names) -> Fact | None:
    """The fact it becomes, None when there is nothing to do. Raises RequestError with the core's refusal, in the words
    of `names`."""
    answer = commands.check(state, command)
    if not isinstance(answer, Refusal):
        return answer
    if answer.code == "unchanged":
        return None
    raise error_of(answer, names, _WHERE_CYCLES.get(type(command), ""))


def error_of(refusal: Refusal, names: Names, where_cycles: str = "") -> LlmschedError:
    """`where_cycles`: the key of the file that a circle goes through."""
    message, hint = text(refusal.message, names), advice(refusal.message, names)
    if refusal.code in ("overlap", "cycle"):  # waiting would not help: it is the file that must change
        where = "reservations" if refusal.code == "overlap" else where_cycles
        return SpecError(message, code=refusal.code, where=where, hint=hint)
    status = STATUS_OF_CODE.get(refusal.code)
    return RequestError(message, code=refusal.code, hint=hint, http_status=status)
