"""Which failures are tried again: those that can end otherwise the next time."""

from __future__ import annotations

import pytest

from llmsched.runtime import failures
from llmsched.runtime.environment import UserError


class TemplateError(Exception):
    __module__ = "jinja2.exceptions"


def of_torch(words: str) -> BaseException:
    import torch

    try:
        torch.nn.Embedding(2, 2)(torch.tensor([7]))
    except IndexError as error:
        assert words in str(error)
        return error
    raise AssertionError("an embedding of two rows had an eighth")


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (UserError("no file x"), "input"),
        (SyntaxError("invalid syntax"), "input"),
        (ModuleNotFoundError("No module named 'y'"), "input"),
        (NameError("name 'z' is not defined"), "input"),
        (TemplateError("roles must alternate"), "input"),
        (type("Refused", (TemplateError,), {})("system is not supported"), "input"),
        (SystemExit(127), "input"),
        (SystemExit(3), "error"),
        (SystemExit("no more disk"), "error"),
        (IndexError("list index out of range"), "error"),
        (ConnectionError("reset"), "error"),
        (MemoryError(), "error"),
    ],
)
def test_an_exception_is_the_users_input_when_no_other_try_can_be_better(error: BaseException, event: str) -> None:
    assert failures.event_of(error) == event


def test_a_row_that_the_model_has_no_embedding_for_is_input_and_says_what_to_look_at() -> None:
    error = of_torch("index out of range")
    assert failures.event_of(error) == "input"
    assert "pad token" in failures.advice(error) and "max_length" in failures.advice(error)


@pytest.mark.parametrize(
    ("code", "event"), [(126, "input"), (127, "input"), (1, "error"), (137, "error"), (-9, "error")]
)
def test_a_program_that_is_not_there_or_may_not_be_run_is_input(code: int, event: str) -> None:
    assert failures.event_of_code(code) == event


@pytest.mark.parametrize(("error", "is_good"), [(SystemExit(), True), (SystemExit(0), True), (SystemExit(1), False)])
def test_leaving_by_sys_exit_with_0_is_no_failure(error: SystemExit, is_good: bool) -> None:
    assert failures.is_good_exit(error) is is_good
