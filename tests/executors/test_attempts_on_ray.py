"""What an attempt of a train gang leaves behind when it is cut short, and what is said of one that does not move; a
replica whose gang lies on two nodes."""

import json
import os
import signal
from dataclasses import replace

import httpx
import psutil
import pytest
from lab import KEY, answers, routes
from waiting import has_ended, wait_until

from llmsched.executors.port import Connected, Ended, Member, Stalled, Started, Vanished

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


def test_a_rank_that_left_and_one_that_is_done_while_another_waits_are_told_as_what_they_are(lab, tmp_path):
    def uneven(name, **config):
        spec = {"train": {"loop": "loops:uneven", "config": config}}
        lab.launch(lab.order(f"{name}/0", "train", spec, workdir=lab.workdir))

    uneven("leaves", leaves=True)
    left = lab.bridge.until(Ended, PATIENCE_S, gang="leaves/0")
    assert (left.outcome, left.event) == ("failed", "error")
    assert left.message.startswith("rank 1: its process ") and "left by os._exit(0) before" in left.message
    assert "on node-2" in left.message

    uneven("early")  # which is watched for a while, in which a function of a batch leaves
    (tmp_path / "rows.txt").write_text("one\n")
    section = {"input": {"path": str(tmp_path / "rows.txt"), "on_bad_row": "skip"}, "map": "loops:leaves"}
    spec = {"workers": {"min": 1, "max": 1}, "batch": section | {"format": "jsonl", "batch_size": 1}}
    lab.launch(lab.order("exits/0", "batch", spec, lab.nodes[:1], workdir=lab.workdir))
    exits = lab.bridge.until(Ended, PATIENCE_S, gang="exits/0")
    assert (exits.outcome, exits.event) == ("failed", "error"), "no signal, and no want of memory"
    assert exits.message.startswith("rank 0: its process ") and "left by os._exit(3) before" in exits.message
    since = 0
    while not (stalled := lab.bridge.until(Stalled, PATIENCE_S, since, gang="early/0")).message.startswith("rank 1"):
        since = lab.bridge.seen.index(stalled, since) + 1  # on a busy machine its supervisor may be late with an answer
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


def test_deployments_run_where_their_members_were_placed_outlive_the_bridge_and_end_together(lab):
    members = (
        Member(0, lab.nodes[0], cpus=0.5),
        Member(1, lab.nodes[1], "Large", gpus=1.0, cpus=0.5),
        Member(2, lab.nodes[0], "Large", gpus=1.0, cpus=0.5),
    )
    spec = {"serve": {"app": "placed_app:app"}, "environment": {"pip": [lab.wheel]}, "secrets": ["TOKEN"]}
    given = lab.order("wide/0", "serve", spec, lab.nodes[:1], workdir=lab.workdir, envs={"TOKEN": "a canary of it"})
    given = replace(given, members=members)
    lab.launch(given)
    lab.until(Started, "wide/0")
    lab.bridge.send("route", routes(1, "llms/wide/0/1"))
    endpoint = lab.bridge.until(Connected).urls["endpoint"]
    client = httpx.Client(base_url=endpoint, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S)
    wait_until(lambda: answers(client) == 200, 30, "the first answer")
    answer = client.post("/v1/apps/desk").json()
    assert [one["says"] for one in answer["copies"]] == ["hello from a wheel"] * 2
    above = [{each.pid for each in psutil.Process(one["pid"]).parents()} for one in answer["copies"]]
    first, second = (lab.cluster.processes[index + 1].pid for index in range(2))
    assert second in above[0] and first in above[1]
    assert lab.read("wide/0/1/logs/1.log") == lab.read("wide/0/1/logs/2.log") == "made with ***\n"
    look = ["sh", "-c", "ls placed_app.py; greeter; echo gpu $CUDA_VISIBLE_DEVICES; exit 3"]
    out, ended = lab.execute("wide/0", "serve", look, rank=1)
    assert (out, ended.code) == ("placed_app.py\nhello from a wheel\ngpu 0\n", 3), ended
    assert lab.attach("wide/0", "serve", ["cat"], b"by hand", rank=2)[0] == b"by hand"

    lab.bridge.process.kill()
    lab.bridge = lab.connect([(given, True)])
    lab.until(Started, "wide/0")
    assert client.post("/v1/apps/desk").json() == answer  # the very same processes
    os.kill(answer["copies"][0]["pid"], signal.SIGKILL)
    gone = lab.until(Vanished, "wide/0")
    assert gone.message.endswith("the process of deployment Large (copy 0 of 2) was ended by SIGKILL")
    for one in answer["copies"]:
        wait_until(lambda pid=one["pid"]: has_ended(pid), 30, "the end of all members")
    # Their GPUs are free at once.
    for node in lab.nodes:
        lab.launch(lab.order(f"next{lab.nodes.index(node)}/0", "task", {"task": {"run": ["true"]}}, [node], gpus=2.0))
    assert {lab.until(Ended, f"next{index}/0").outcome for index in range(2)} == {"succeeded"}
