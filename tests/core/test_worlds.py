"""Three hundred random worlds keep every promise of worlds.py, which also plays thousands by one command."""

from __future__ import annotations

import os

import pytest
import worlds
from world_maker import Rich

WORLDS = int(os.environ.get("WORLDS", "300"))
AT_ONCE = 25


@pytest.mark.parametrize("first", range(0, WORLDS, AT_ONCE))
def test_no_promise_is_broken(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        try:
            worlds.play(seed)
        except Exception as error:
            raise AssertionError(f"world {seed} (python tests/core/worlds.py --show {seed})") from error


@pytest.mark.parametrize(
    ("seed", "story"),
    [
        (477, "a queue due less than the least of its only gang, and the others can never start"),
        (1217, "two queues take turns at every look, as whoever has the place has used more"),
        (1979, "a node with half of an elastic gang is lost while somebody waits"),
        (3189, "nobody starts before a reservation has closed"),
        (
            4798,
            "a queue that has nothing left of its own to ask for is asked after one that has, whoever is remembered",
        ),
        (5316, "somebody makes room when the turn of a queue that was put aside has gone by"),
        (6114, "what is left of devices of which others hold parts is no whole GPU for whoever was promised some"),
        (7683, "somebody is first in line whom the next one may evict at once"),
        (8067, "two take turns by rank, once a quantum, for as long as their work lasts"),
        (8218, "a planned start has moved when others are kept out for it"),
        (8448, "others were kept out for the planned start of one that has started"),
        (9839, "what is left of a device of which the holder of a reservation has a part"),
        (9022, "a gang comes back to a node that was lost while it changed size, and is others' now"),
        (10013, "time alone changes who stands first in a line in which nobody overtakes"),
        (1047, "the shorter one is asked first, for whose room somebody leaves, and a higher priority takes it"),
        (4448, "shares count who was moved together as gone, though it begins again at once"),
        (7102, "others take the place to which somebody is moved, who then may evict whom it made room for"),
        (1765, "somebody starts before others whom elasticity has counted, and leaves some for those that rest"),
        (4039, "the holder of a reservation starts, and others may start where it was to be"),
        (951, "somebody is to rest who fits once another one has become smaller"),
        (4968, "a faster flavor is free, but reserved"),
        (400288, "one that has outlived its estimate leaves for a reservation, and may begin in the same moment"),
        (51849, "one that stays for whoever is owed a start gives its place to a better one that need not"),
        (712, "one starts that whoever was kept out by a reservation alone before it may evict"),
        (765, "work is moved together for whom a reservation alone keeps out, and then kept out in turn"),
        (9421, "the same, and a promise for which somebody had left is taken back"),
        (7100156, "whoever was evicted for somebody evicts that one in the pass in which it begins"),
        (7102125, "the first in line is held for its long wait, and a higher priority may delay it one pass later"),
        (250259, "one is promised places that others leave, and has room at once elsewhere"),
        (20133, "groups that fit in a domain each by itself and not beside one another stand before others in line"),
    ],
)
def test_what_was_broken_once_holds(seed: int, story: str) -> None:
    worlds.play(seed, plain=True)


@pytest.mark.parametrize(
    ("seed", "story"),
    [
        (7300138, "a reservation that finds less than it asks for takes what was promised, and those had left in vain"),
        (7400083, "one leaves for a reservation whose holder has no use for its GPUs, and begins again"),
        (3100148, "a planned start keeps out one that has other choices, which it could never have"),
        (7300092, "the same of one that may not be preempted, in a long history"),
        (912, "who begins beside a reservation is on what it takes afterwards, and leaves twice"),
        (7600777, "what somebody was promised is a reservation's when those who held it have left"),
        (7601484, "one moves to a faster flavor and begins where it had been, five times without news"),
        (7601074, "one moves to a faster flavor, and nobody is asked about what it leaves"),
        (160032, "a promise is taken back, and nobody is asked who could grow by that"),
    ],
)
def test_what_was_broken_once_in_a_rich_world_holds(seed: int, story: str) -> None:
    worlds.Play(Rich(seed).world()).run()


def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "violations", lambda state: ["I1 planted"] if state.holding else [])
    with pytest.raises(worlds.BrokenPromise, match="I1 planted"):
        worlds.play(0)
