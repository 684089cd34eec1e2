"""A sample of the worlds in which nobody ends; `python tests/core/still_worlds.py` plays more."""

from __future__ import annotations

import pytest
import still_worlds

EACH = 30


@pytest.mark.parametrize("first", range(0, 120, EACH))
def test_in_the_end_who_comes_first_has_what_those_after_it_could_give(first: int) -> None:
    found = {seed: still_worlds.faults(seed) for seed in range(first, first + EACH)}
    assert not {seed: wrong for seed, wrong in found.items() if wrong}
