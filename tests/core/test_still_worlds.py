"""A sample of the worlds in which nobody ends; `python tests/core/still_worlds.py` plays more."""

from __future__ import annotations

import pytest
import still_worlds

EACH = 30
STORIES = {
    "in one queue who borrows comes before those that come after it": (487, 792, 4786),
    "who was picked by number and fits nowhere stands before nobody": (598, 5706),
    "a queue borrows with those as well that may not be evicted": (961,),
    "who is owed a start and waits for an end has no share until then": (1189,),
    "nobody is promised what one has with whom it exchanged its place": (2331,),
    "who is on two flavors lets go of both": (3142,),
    "who may have any flavor has some of each, each with its quota": (3195,),
    "what fixed work would start on is shared where it does not start": (3521, 3826, 5598),
    "a share is beside the least of those that may not be evicted": (4757,),
    "who needs all of one flavor does not count for two together": (5854,),
}


@pytest.mark.parametrize("first", range(0, 120, EACH))
def test_in_the_end_who_comes_first_has_what_those_after_it_could_give(first: int) -> None:
    found = {seed: still_worlds.faults(seed) for seed in range(first, first + EACH)}
    assert not {seed: wrong for seed, wrong in found.items() if wrong}


@pytest.mark.parametrize("story", STORIES)
def test_what_still_worlds_have_shown(story: str) -> None:
    assert not [fault for seed in STORIES[story] for fault in still_worlds.faults(seed)]
