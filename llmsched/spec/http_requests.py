"""Bodies of requests over HTTP that are small. Those that carry a spec stand in spec_requests.py."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmsched import sanitize
from llmsched.errors import SpecError
from llmsched.spec.quantities import Duration, ModelId, Stamp

INVALID_HINT = "Write it as plain text, without what is no character."


class Request(BaseModel):
    """Whatever is in a body, at any depth, is valid text and finite numbers: else it is refused, with its place."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_nothing_can_take(cls, body: Any) -> Any:
        if (found := sanitize.first_flaw(body)) is not None:
            raise SpecError(found[1], where=found[0], code="invalid_text", hint=INVALID_HINT)
        return body


class ScaleRequest(Request):
    size: int = Field(ge=0, le=1_000_000)  # bundles of an elastic gang, replicas of a serve workload


class RollbackRequest(Request):
    """`adapter`: that one alone goes back, to what was published under its name before."""

    to: int | None = Field(default=None, ge=1, le=1_000_000_000)  # a revision; none: the last that answered before
    adapter: ModelId | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> RollbackRequest:
        if self.to is not None and self.adapter is not None:
            raise ValueError(
                '"to" is a revision of the endpoint; an adapter goes back to the one before: leave out "to"'
            )
        return self


Word = Annotated[str, Field(max_length=131_072, pattern=r"^[^\x00]*$")]


class ExecRequest(Request):
    """A list of words; no shell reads them. `gang`: index of a gang or replica, default: the first that runs."""

    command: list[Word] = Field(min_length=1, max_length=1000)
    rank: int = Field(default=0, ge=0, le=1_000_000)
    gang: int | None = Field(default=None, ge=0, le=1_000_000)
    timeout_s: float = Field(default=600, gt=0, le=86_400)


class ShutdownRequest(Request):
    """`stop_everything`: first take down all that runs, else it is left alone and adopted by the next controller."""

    stop_everything: bool = False


class DrainRequest(Request):
    """By when the node is to be empty: `within` so long from now, or `until` then. Neither: all has its whole grace."""

    within: Duration | None = None
    until: Stamp | None = None

    @model_validator(mode="after")
    def _is_one_time(self) -> DrainRequest:
        if self.within is not None and self.until is not None:
            raise ValueError('expected at most one of "within" and "until"')
        return self


def drain_request(within: str | float | None, until: str | float | None) -> DrainRequest:
    """Raises SpecError for what is no time."""
    try:
        return DrainRequest.model_validate({"within": within, "until": until})
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SpecError(first["msg"].removeprefix("Value error, "), where=where, code="invalid_request") from None


class SecretRequest(Request):
    """`shared`: for everyone's workloads, which an operator alone may say; else for one's own."""

    value: str = Field(repr=False)
    shared: bool = False
