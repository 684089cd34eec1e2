"""Who is told of a workload by webhook, and of what: an entry of `notify`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llmsched.spec.quantities import Condition, Duration, EnvName, HttpsUrl
from llmsched.spec.section import Section, WrongAt

_AFTER_S = 600.0
Happening = Literal["waiting", "running", "preempted", "failed", "succeeded", "cancelled"]


class NoticeSpec(Section):
    """`on`: what is told; `waiting` once it has waited for `after`. `when`: besides, each time that a number which it
    reports begins to meet a comparison; those within a minute of the last message are told in one, at its end.
    `url_from` names a secret that holds the address, for those that let in whoever knows them; `sign_with` one whose
    value signs what is sent."""

    url: HttpsUrl | None = None
    url_from: EnvName | None = None
    on: list[Happening] = Field(default=["failed", "succeeded", "cancelled"], max_length=6)
    after: Duration = Field(default=_AFTER_S, ge=0)
    when: Condition | None = None
    sign_with: EnvName | None = None

    @model_validator(mode="after")
    def _has_one_address(self) -> NoticeSpec:
        if (self.url is None) == (self.url_from is None):
            raise WrongAt("wants one address: url, or url_from with the name of a secret that holds it", "url")
        if again := next((place for place, each in enumerate(self.on) if each in self.on[:place]), None):
            raise WrongAt(f'"{self.on[again]}" stands there twice', "on", again)
        if not self.on and self.when is None:
            raise WrongAt("is empty, and there is no `when`: nothing would ever be told", "on")
        if self.after != _AFTER_S and "waiting" not in self.on:
            raise WrongAt('counts for "waiting" alone, which is not in "on"; leave it out', "after")
        return self


def _from_address(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


Notice = Annotated[NoticeSpec, BeforeValidator(_from_address, json_schema_input_type=HttpsUrl | NoticeSpec)]
