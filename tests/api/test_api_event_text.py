"""Every kind of journal entry, as people read it in a story."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from llmsched.api.event_text import data, describe, told
from llmsched.core import decisions as d
from llmsched.core import facts as f
from llmsched.core.configuration import Configuration, Taken
from llmsched.core.message import quoted, say, workload
from llmsched.core.nodes import Node
from llmsched.core.render import AllNames
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Placed, Workload

NAMES = AllNames({"n1": "node-a", "n2": "node-b"})
ROOM = say("makes_room", who=workload("web"))
GANG = "lora/0"
TWO = (Placed("workers", "n1", 0), Placed("workers", "n2", 0))
OPTIONS = (Option("A100", Resources(1000, 2000)), Option("L4", Resources(500, 2000)))
LORA = Workload("lora", "lora", "train", (Group("workers", 1, OPTIONS),), user="ann", max_size=4, parcel="the spec")

STORY: list[tuple[Any, str]] = [
    (f.Tick(1.0), ""),
    (f.LoadObserved(1.0, "web", 2.0), ""),
    (f.Estimated(1.0, GANG, 60.0), ""),
    (f.Configured(1.0, Configuration(3)), "configuration version 3 is in force"),
    (
        f.Submitted(1.0, LORA),
        'submitted by ann in queue "default": 1..4 x (1 A100, 2 CPUs or 0.5 L4, 2 CPUs)',
    ),
    (
        f.Submitted(1.0, LORA, replaces=True),
        'changed by ann in queue "default": 1..4 x (1 A100, 2 CPUs or 0.5 L4, 2 CPUs)',
    ),
    (f.Cancelled(1.0, "lora", "bob"), "cancelled by bob"),
    (f.Scaled(1.0, "lora", 3), "asked to hold 3"),
    (f.RolledBack(1.0, "web", 1, "ann"), "goes back to revision 2, asked for by ann"),
    (f.NodeJoined(1.0, Node("n1", Resources(8000), "A100", name="node-a")), "node node-a joined: 8 A100"),
    (f.NodeLost(1.0, "n1"), "node node-a is lost"),
    (f.NodeDraining(1.0, "n1"), "node node-a will leave: nothing new goes there"),
    (
        f.DrainBegun(1.0, "node-a", 61.0, "root"),
        "root drains node node-a: nothing new goes there, and what runs there leaves within 60 s",
    ),
    (f.DrainEnded(1.0, "node-a", "root"), "root ends the drain of node node-a"),
    (f.ForeignUse(1.0, "n1", Resources(2000)), "2 GPUs are in use on node node-a beyond what gangs were given"),
    (
        f.ExcessUse(1.0, GANG, 1, (("n1", Resources(2000)), ("n2", Resources(1000)))),
        "takes 3 GPUs beyond its gang, through Ray, on node-a, node-b",
    ),
    (f.ExcessUse(1.0, GANG, 1, ()), "is within its gang again"),
    (f.Stalled(1.0, GANG, 1, "rank 0 waits"), "does not move: rank 0 waits"),
    (f.Stalled(1.0, GANG, 1, ""), "moves again"),
    (f.Bound(1.0, GANG, 1), "runs"),
    (
        f.Bound(1.0, "web/0", 1, f.StartCosts(queue_s=0.5, process_s=6.04, load_s=2.0, first_token_s=0.034)),
        "runs; its start took 0.5 s in the queue, 6.0 s for its process, 2.0 s to load, 0.03 s to its first token",
    ),
    (
        f.Bound(1.0, "web/0", 1, f.StartCosts(fork_s=1.26)),
        "runs; its start took 1.3 s for its process (a fork of one that had imported)",
    ),
    (f.Bound(1.0, GANG, 2), "runs (attempt 2)"),
    (f.LaunchFailed(1.0, GANG, 1, "error", "no such model"), "attempt 1 did not start (error): no such model"),
    (f.Resized(1.0, GANG, 1, 1), "holds 1 bundle now"),
    (f.Finished(1.0, GANG, 1, "succeeded", metrics=(("eval.loss", 0.5),)), "succeeded [eval.loss 0.5]"),
    (f.Finished(1.0, GANG, 1, "failed", "out of memory"), "failed: out of memory"),
    (f.Released(1.0, GANG, 1), "let go of everything it held"),
    (f.Lost(1.0, GANG, 1, "its node died"), "attempt 1 is lost: its node died"),
    (f.CheckpointPublished(1.0, GANG, 1, 40, 0.5), "checkpoint at step 40 (50% of the work)"),
    (f.Published(1.0, "web", "adapter", "sql", "s3://x", "lora"), 'its adapter sql is published to "web"'),
    (
        f.Published(1.0, "web", "adapter", "sql", "s3://x", "lora", is_taken=False),
        'its adapter sql is kept for an endpoint "web", which is not there',
    ),
    (f.AdapterLoaded(1.0, "web/0", 1, "sql", "s3://x"), "serves adapter sql"),
    (f.AdapterLoaded(1.0, "web/0", 1, "sql", "s3://x", "wrong rank"), "could not load adapter sql: wrong rank"),
    (f.CommandBegun(1.0, GANG, 1, 0, "ann", "ls -l"), "ann runs a command beside rank 0: ls -l"),
    (f.Unlisted(1.0, "w", "ann"), "ann took it off the list of Ray's jobs"),
    (d.Launch(GANG, 1, TWO, say("launch.part", size=2, most=4)), "starts on node-a (1), node-b (1): room for 2 of 4"),
    (d.Nominate(GANG, TWO, ("tune/0",)), "is promised room on node-a (1), node-b (1) while tune/0 make way"),
    (d.Withdraw(GANG), "is promised no room any more"),
    (d.Resize(GANG, 1, TWO, why=ROOM), "is resized to 2 bundles on node-a (1), node-b (1): makes room for web"),
    (d.Preempt(GANG, 1, 120.0, "quota_reclaim", "web/0"), "must make way for web/0 within 120 s (quota_reclaim)"),
    (d.Drain("web/0", 1, 300.0), "finishes what it serves (at most 300 s), then stops"),
    (d.Stop(GANG, 1, 30.0, "over its run time"), "is stopped (over its run time)"),
    (d.Scale("web", 2, why=say("scale.load", replicas=2)), "wants 2 replicas: load asks for 2"),
    (d.LoadAdapter("web/0", 1, "sql", "s3://x"), "is asked to load adapter sql"),
    (d.RequestCapacity((("p4d", 2),)), "asks for nodes: 2 x p4d"),
    (d.ReleaseNode("n1"), "gives node node-a back"),
    (
        d.Assign("release", Taken(3000, None, (("n1", 2), ("n2", 1)))),
        "reservation release takes GPUs of node-a (2), node-b (1)",
    ),
    (d.RunAgain("lora", 2), "run 2 is due"),
    (d.GiveUp(GANG, "impossible", quoted("no such node")), "is given up (impossible): no such node"),
]


@pytest.mark.parametrize(("entry", "text"), STORY)
def test_an_entry_in_words(entry: Any, text: str) -> None:
    assert told(entry, NAMES) == text


def test_every_kind_of_entry_has_words() -> None:
    silent = {f.Archived}  # where a workload is kept is nobody's story
    assert {type(entry) for entry, _ in STORY} | silent == {*get_args(f.Fact), *get_args(d.Decision)}


def test_an_entry_knows_whose_story_it_belongs_to() -> None:
    assert describe(f.Submitted(1.0, LORA))[:2] == ("lora", None)
    assert describe(d.Launch("lora@2/0", 1, TWO))[:2] == ("lora@2", "lora@2/0")
    assert describe(f.Published(1.0, "web", "adapter", "sql", "s3://x", "lora")).workload == "lora"
    assert describe(f.NodeLost(1.0, "n1"))[:2] == (None, None)


def test_the_data_of_an_entry_has_names_and_no_spec() -> None:
    content = data(f.Submitted(1.0, LORA), NAMES)
    assert content["workload"]["groups"][0]["options"][0] == {
        "flavor": "A100",
        "resources": {"gpus_milli": 1000, "cpus_milli": 2000, "memory_bytes": 0, "custom": []},
        "speedup": [],
    }
    assert "parcel" not in content["workload"]
