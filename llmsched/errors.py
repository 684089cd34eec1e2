"""Every error llmsched raises on purpose. The type says whose move it is.

    LlmschedError
    ├── SpecError       the file or the words are wrong      exit 2   HTTP 422
    ├── RequestError    refused as things stand now          exit 3   HTTP 409 (404, 429 by code)
    │   └── NotAllowed  who asks may not                     exit 3   HTTP 401, 403
    ├── ClusterError    Ray or a node did not do as asked    exit 4   HTTP 503
    ├── StoreError      the journal could not be written     exit 5   HTTP 503
    └── Bug             we broke our own rule                exit 70  HTTP 500

A message says what is wrong, where, what was expected and what to do. `code` is stable and for machines.
"""

from __future__ import annotations

from typing import NamedTuple


class LlmschedError(Exception):
    """Root of the tree. `hint` is the next thing to try, `where` a place such as `lora.yaml:7:3`."""

    exit_code = 1
    http_status = 500
    default_code = "error"

    def __init__(self, message: str, *, code: str = "", where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}{'' if text.endswith(_ENDS) else '.'} {self.hint}" if self.hint else text


_ENDS = (".", ":", "!", "?", "\n")  # a hint begins a new sentence


class Problem(NamedTuple):
    """One thing that is wrong with a file."""

    where: str  # `lora.yaml:7:3`, or `$.train.lora` for JSON
    message: str
    hint: str = ""
    code: str = "invalid_spec"

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.message.rstrip('.')}. {self.hint}" if self.hint else f"{self.where}: {self.message}"
        )


class SpecError(LlmschedError):
    """What the user wrote is wrong: fix the file or the words. `problems` has them all; the message one a line."""

    exit_code = 2
    http_status = 422
    default_code = "invalid_spec"
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, problems: list[Problem]) -> SpecError:
        """One error for all problems; its code is theirs when they agree."""
        codes = {each.code for each in problems}
        if len(problems) == 1:
            where, message, hint, code = problems[0]
            error = cls(message, code=code, where=where, hint=hint)
        else:
            error = cls("\n".join(map(str, problems)), code=codes.pop() if len(codes) == 1 else "")
        error.problems = tuple(problems)
        return error


class RequestError(LlmschedError):
    """A well-formed request that is refused now: unknown name, conflict, over a limit."""

    exit_code = 3
    http_status = 409
    default_code = "refused"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        where: str = "",
        hint: str = "",
        http_status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, where=where, hint=hint)
        if http_status is not None:
            self.http_status = http_status
        self.retry_after_s = retry_after_s


class NotAllowed(RequestError):
    """Who asks may not: missing, wrong, expired or too narrow token."""

    http_status = 403
    default_code = "not_allowed"


class ClusterError(LlmschedError):
    """Ray, a node or a process did not do as asked."""

    exit_code = 4
    http_status = 503
    default_code = "cluster"


class StoreError(LlmschedError):
    """The journal cannot be read or written; nothing was acknowledged."""

    exit_code = 5
    http_status = 503
    default_code = "store"


class Bug(LlmschedError):
    """llmsched broke a rule of its own. Please report it with the journal slice."""

    exit_code = 70
    http_status = 500
    default_code = "bug"
