"""The text messages of the websocket over which a person does something by hand beside a running member."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llmsched.spec.http_models import ErrorBody, Reply
from llmsched.spec.http_requests import Request, Word

FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class ByHandRequest(Request):
    """The first message of a websocket (text): what to do beside a running member. `command` is for attach (with input)
    and terminal, `port` for forward, `path` (of the working folder) for fetch and store, and `name` is what the file or
    folder that comes is called where `path` is a folder. `gang` and `rank` as of ExecRequest."""

    does: Literal["attach", "terminal", "forward", "fetch", "store"]
    command: list[Word] = Field(default=[], max_length=1000)
    port: int | None = Field(default=None, ge=1, le=65_535)
    path: FilePath | None = None
    name: Annotated[str, Field(max_length=255, pattern=r"^[^\x00/]*$")] = ""
    rank: int = Field(default=0, ge=0, le=1_000_000)
    gang: int | None = Field(default=None, ge=0, le=1_000_000)

    @property
    def words(self) -> tuple[str, ...]:
        """What of it an order carries."""
        if self.does in ("attach", "terminal"):
            return tuple(self.command)
        if self.does == "forward":
            return (str(self.port),)
        return (str(self.path),) if self.does == "fetch" else (str(self.path), self.name)

    @model_validator(mode="after")
    def _says_what_of(self) -> ByHandRequest:
        wanted = {"attach": "command", "terminal": "command", "forward": "port"}.get(self.does, "path")
        given = {"command": bool(self.command), "port": self.port is not None, "path": self.path is not None}
        if [name for name, is_given in given.items() if is_given] != [wanted]:
            raise ValueError(f'"{self.does}" needs {wanted}, and none of the others')
        if bool(self.name) != (self.does == "store") or self.name in (".", ".."):
            raise ValueError("name is of what a store brings, and only of that")
        return self


class ByHandWord(Reply):
    """A text message of the websocket of what is done by hand: it has begun, and last how it ended, or `error`: it has
    not. Between them are binary messages, a frame each (`llmsched/channels.py`). `exit_code` as of ExecLine."""

    begun: bool = False
    error: ErrorBody | None = None
    exit_code: int | None = None
    message: str = ""
