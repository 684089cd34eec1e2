"""What an attempt of a train gang leaves behind when it is cut short, and what is said of one that does not move."""

import pytest
from waiting import wait_until

from llmsched.executors.port import Ended, Stalled, Vanished

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
PATIENCE_S = 60


def test_what_an_attempt_took_while_it_started_is_freed_however_it_ends(lab):
    with lab.groups() as asked:

        def held():
            asked.stdin.write("\n")
            asked.stdin.flush()
            return asked.stdout.readline().split()

        others = {one.pid for one in lab.actors("Supervisor")}
        lab.launch(lab.train("cut/0", steps=5000, pause=0.1))
        wait_until(held, PATIENCE_S, "its placement group, which nobody has told of yet")
        lab.stop("cut/0", "train", "stop", 30.0)
        assert lab.bridge.until(Ended, PATIENCE_S, gang="cut/0").outcome == "released"
        wait_until(lambda: not held(), 15, "the group to be freed")

        lab.launch(lab.train("killed/0", steps=5000, pause=0.1))
        wait_until(held, PATIENCE_S, "the next group")
        for one in lab.actors("Supervisor"):
            if one.pid not in others:
                one.kill()
        lab.bridge.until(Vanished, PATIENCE_S, gang="killed/0")
        wait_until(lambda: not held(), 20, "the reaper to find it by its maker")
        asked.stdin.close()


def test_a_rank_that_left_and_one_that_is_done_while_another_waits_are_told_as_what_they_are(lab):
    def uneven(name, **config):
        spec = {"train": {"loop": "loops:uneven", "config": config}}
        lab.launch(lab.order(f"{name}/0", "train", spec, workdir=lab.workdir))

    uneven("leaves", leaves=True)
    left = lab.bridge.until(Ended, PATIENCE_S, gang="leaves/0")
    assert (left.outcome, left.event) == ("failed", "error")
    assert left.message.startswith("rank 1: its process ") and "left by os._exit(0) before" in left.message
    assert "on node-2" in left.message

    uneven("early")
    stalled = lab.bridge.until(Stalled, PATIENCE_S, gang="early/0")
    assert stalled.message.startswith(
        "rank 1 has returned, and rank 0 has waited for over 20 s (all_reduce, called in loops.py:"
    )
    lab.stop("early/0", "train", "stop", 0.0)
    assert lab.bridge.until(Ended, PATIENCE_S, gang="early/0").outcome == "released"
