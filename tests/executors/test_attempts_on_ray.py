"""What an attempt of a train gang leaves behind when it is cut short, and what is said of one that does not move."""

import json

import pytest
from waiting import wait_until

from llmsched.executors.port import Ended, Stalled, Vanished

pytestmark = pytest.mark.ray
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


def test_a_batch_whose_driver_is_killed_in_the_middle_goes_on_and_answers_every_row_once(lab, tmp_path):
    file, output = tmp_path / "words.txt", tmp_path / "out"
    file.write_text("".join(f"word {n}\n" for n in range(400)))
    section = {"input": {"path": str(file), "on_bad_row": "skip"}, "map": "loops:Upper", "args": {"pause_s": 0.02}}
    section |= {"output": str(output), "format": "jsonl", "batch_size": 10}
    spec = {"workers": {"min": 1, "max": 4}, "batch": section}

    def attempt(number, nodes):
        return lab.order("words/0", "batch", spec, nodes, attempt=number, workdir=lab.workdir)

    def parts():
        return {one.name: one.stat().st_ino for one in output.glob("part-*.jsonl")}

    lab.launch(attempt(1, lab.nodes))
    wait_until(lambda: len(parts()) > 2, PATIENCE_S, "some parts to be done")
    for one in lab.actors("Driver"):
        one.kill()
    ended = lab.bridge.until(Ended, PATIENCE_S, gang="words/0")
    assert (ended.outcome, ended.event) == ("failed", "interruption") and "killed" in ended.message
    before = parts()
    assert len(before) < 40

    lab.launch(attempt(2, lab.nodes[:1]))
    ended = lab.bridge.until(Ended, PATIENCE_S, gang="words/0", attempt=2)
    assert ended.outcome == "succeeded", ended.message
    assert ended.metrics["rows"] == 399 and ended.metrics["bad_rows"] == 1
    rows = [json.loads(line) for one in sorted(output.glob("part-*")) for line in one.read_text().splitlines()]
    assert [row["_row"] for row in rows] == [f"words.txt#{n + 1}" for n in range(400) if n != 7]
    assert parts().items() >= before.items(), "what was done is not done again"
    assert json.loads((output / "_bad_rows.jsonl").read_text())["row"] == 8
