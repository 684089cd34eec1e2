"""The planted bugs still fit the code they are planted in; `python tests/core/planted/run.py` plants them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "planted"))
import run


@pytest.mark.parametrize("bug", run.BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_has_its_place_in_the_code_and_its_test(bug: run.Bug) -> None:
    assert run.source(bug).read_text().count(bug.old) == 1
    path, _, name = bug.test.partition("::")
    assert f"def {name}(" in (run.ROOT / path).read_text()


def test_the_test_named_for_a_bug_finds_it() -> None:
    assert run.is_found(next(bug for bug in run.BUGS if bug.name == "one_victim_for_two"))
