"""examples/running.py runs folders and says what came out; examples/seen.py says what the scheduler was seen to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmsched.api.views import event
from llmsched.core import decisions, facts
from llmsched.core.message import say
from llmsched.core.nodes import Node
from llmsched.core.render import AllNames
from llmsched.core.resources import Resources
from llmsched.core.workload import Group, Option, Placed, Workload

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import running

    return running


@pytest.fixture
def seen(running: Any) -> Any:
    return sys.modules["seen"]


SPEC = """\
name: tiny
kind: task
resources: {accelerators: "A100:1"}
task: {run: ["true"]}
"""
MEASURE = """\
import json
from llmsched import Client
print(json.dumps({"part": "ends", "number": float(Client().status("tiny").phase == "succeeded"), "baseline": 0.5}))
"""
PARTS = {"ends": {"metric": "it ends", "at_least": 0.9, "baseline": "a coin"}}


def folder(place: Path, name: str, prepare: str = "", **more: Any) -> None:
    (place / name).mkdir()
    expect = {"parts": PARTS, "minutes": 5, "up": "--fake-nodes 1x1:A100", **more}
    files = {"spec.yaml": SPEC, "measure.py": MEASURE, "prepare.py": prepare, "expect.yaml": json.dumps(expect)}
    for file, text in files.items():
        (place / name / file).write_text(text)


def test_folders_that_miss_or_fail_end_with_1_and_the_others_are_run_all_the_same(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = running.Runner(tmp_path, "row")
    folder(tmp_path, "broken", "raise SystemExit('no such luck')")
    folder(tmp_path, "good", seen=["shrank"])
    assert runner.main(["all", "--json"]) == 1
    broken, good = json.loads(capsys.readouterr().out)
    assert (broken["passed"], broken["failed"]) == (False, "prepare.py: no such luck")
    assert (good["number"], good["baseline"], good["baseline_is"]) == (1.0, 0.5, "a coin")
    assert (good["not_seen"], good["passed"]) == (["shrank"], False)
    bad = {**good, "row": "bad", "at_least": 1.5, "passed": False, "seen": {"saved": [{"at": 2.0}, {"at": 3.0}]}}
    lines = runner.table([broken, good, {**bad, "minutes": 9.5}]).splitlines()
    assert [line.split("|")[0].strip() for line in lines] == ["row", "broken", "good/ends", "bad"]
    assert lines[2].endswith("| not seen: shrank") and "0.5: a coin" in lines[2]
    assert "1 (expected at least 1.5)" in lines[3] and "9.5 (expected 5)" in lines[3]
    assert "saved 2 times from 2 s on; not seen: shrank" in lines[3]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"seen": ["shrunk"]}, r'good/expect.yaml: seen: no word "shrunk". Did you mean "shrank"\?'),
        ({"seen": ["zzzz"]}, r'no word "zzzz". Known: adapter_loaded, .*scheduled'),
        ({"seen": "shrank"}, r"seen is a list of words, or \{WORD: NAME\}"),
        ({"seen": [{"shrank": 3}]}, "after a word comes the name of a workload or node, not 3"),
        ({"minuts": 3}, r'good/expect.yaml: unknown key "minuts". Did you mean "minutes"\?'),
        ({"parts": {"ends": {"metric": "x", "baseline": "y"}}}, "ends wants one of at_least and at_most"),
        ({"parts": {"ends": {"metric": "x", "at_least": 1}}}, "good/expect.yaml lacks baseline"),
        ({"needs": {"no-such-program": "apt install it"}}, "good needs no-such-program, .*: apt install it"),
        ({"needs": {"no_such_module": "pip install it"}}, "good needs no_such_module, .*: pip install it"),
    ],
)
def test_what_an_expect_file_has_wrong_is_told_before_anything_starts(
    running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], said: str
) -> None:
    folder(tmp_path, "good", **more)
    runner = running.Runner(tmp_path, "row")
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("it was started"))
    with pytest.raises(SystemExit, match=said):
        runner.main(["good"])


def test_a_folder_that_two_runs_would_share_is_one_s_at_a_time_and_gone_afterwards(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"
    folder(tmp_path, "good", f"from pathlib import Path; Path({str(shared)!r}).mkdir(); raise SystemExit('no luck')",
           holds=str(shared))  # fmt: skip
    runner = running.Runner(tmp_path, "row")
    with running.alone(str(shared)):
        assert runner.main(["good", "--json"]) == 1
        assert "is in use by another run" in capsys.readouterr().out and not shared.exists()
    assert runner.main(["good", "--json"]) == 1
    assert "no luck" in capsys.readouterr().out and not [*tmp_path.glob("shared*")]


def test_a_part_called_by_what_yaml_takes_for_no_text_is_refused(running: Any, tmp_path: Path) -> None:
    folder(tmp_path, "good")
    (tmp_path / "good" / "expect.yaml").write_text(
        "parts: {false: {metric: x, at_least: 1, baseline: y}}\nminutes: 1\n"
    )
    with pytest.raises(SystemExit, match=r"good/expect.yaml: a part is called by a text, and YAML reads False"):
        running.Runner(tmp_path, "row").expected("good")


def test_a_name_that_is_none_is_refused_with_those_there_are(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, "good", needs={"python3": "apt install python3", "json": "it comes with Python"})
    runner = running.Runner(tmp_path, "application")
    with pytest.raises(SystemExit):
        runner.main(["gud"])
    assert "no application 'gud'; there are good" in capsys.readouterr().err
    assert runner.main([]) == 2 and running.lacking("good", runner.expected("good")["needs"]) == []


def test_of_numbers_where_less_is_better_the_bound_is_the_most(running: Any, tmp_path: Path) -> None:
    runner = running.Runner(tmp_path, "application")
    folder(tmp_path, "good", parts={"lost": {"metric": "requests lost", "at_most": 0, "baseline": "-"}})
    expect = runner.expected("good")
    for number, passed in ((0, True), (1, False)):
        [row] = runner.rows("good", expect, [{"part": "lost", "number": number}], 1.0)
        assert (row["passed"], row["baseline"]) == (passed, None)
    assert "1 (expected at most 0)" in runner.table([row]) and "scheduler" not in runner.table([row])
    with pytest.raises(running.Failed, match="it printed nothing of lost"):
        runner.rows("good", expect, [], 1.0)


# --- what the scheduler was seen to do, by entries as the journal has them -------------------------------------------


def work(name: str, **more: Any) -> Workload:
    group = Group("main", 1, (Option("A100", Resources(gpus_milli=1000)),))
    return Workload(name, name, "task", (group,), **more)


def places(*indices: int) -> tuple[Placed, ...]:
    return tuple(Placed("main", "node-1", 0, index) for index in indices)


def journal(*entries: Any) -> list[dict[str, Any]]:
    return [
        event(seq, getattr(each, "at", float(seq)), each, AllNames()).model_dump(mode="json")
        for seq, each in enumerate(entries)
    ]


Told = Callable[..., list[tuple[str, str]]]


@pytest.fixture
def told(seen: Any) -> Told:
    return lambda *entries: [(each.word, each.of) for each in seen.sights(journal(*entries))]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (decisions.Preempt("a/0", 1, 9.0, "in_queue_priority", "b/0"), ["preempted", "made_room"]),
        (decisions.Preempt("a@2/0", 1, 9.0, "quota_reclaim"), ["preempted", "reclaimed"]),
        (decisions.Preempt("a/0", 1, 9.0, "reservation"), ["cleared"]),
        (decisions.Preempt("a/0", 1, 9.0, "faster_flavor"), ["moved"]),
        (decisions.Preempt("a/0", 1, 9.0, "superseded"), []),
        (decisions.Stop("a/0", 1, 9.0, "deadline"), ["stopped_by_deadline"]),
        (decisions.Stop("a/0", 1, 9.0, "cancelled"), []),
        (decisions.RunAgain("a", 2), ["scheduled"]),
        (decisions.RunAgain("a", 2, say("schedule.skipped", run=1)), []),
        (facts.RolledBack(1.0, "a", 0), ["rolled_back"]),
        (facts.CheckpointPublished(1.0, "a/0", 1, 10), ["saved"]),
        (facts.Published(1.0, "desk", "adapter", "a", "file:///a", "a"), ["published"]),
        (facts.Published(1.0, "desk", "adapter", "a", "file:///a", "a", is_taken=False), []),
        (facts.Published(1.0, "a", "adapter", "a", "", "a"), []),
        (facts.AdapterLoaded(1.0, "a/0", 1, "tone", "file:///t"), ["adapter_loaded"]),
        (facts.AdapterLoaded(1.0, "a/0", 1, "tone", "file:///t", "no such file"), []),
        (decisions.Launch("a/0", 2, places(-1)), ["resumed"]),
        (facts.Submitted(1.0, work("a"), replaces=True), ["rolled_out"]),
        (facts.Submitted(1.0, work("a.t1", parent="a")), ["asked"]),
        (facts.Finished(1.0, "a/0", 1, "succeeded"), []),
    ],
)
def test_an_entry_says_what_was_done_and_to_whom(told: Told, entry: Any, words: list[str]) -> None:
    assert told(entry) == [(word, "a") for word in words]


def test_a_resize_is_smaller_or_larger_than_what_was_held(told: Told) -> None:
    assert told(
        decisions.Launch("a/0", 1, places(-1, -1)),
        decisions.Resize("a/0", 1, places(-1), beneficiary="b/0"),
        decisions.Resize("a/0", 1, places(-1, -1, -1)),
    ) == [("shrank", "a"), ("made_room", "a"), ("grew", "a")]


def test_two_workloads_share_a_gpu_while_both_hold_a_part_of_it(told: Told) -> None:
    first = [decisions.Launch("a/0", 1, places(0)), decisions.Launch("a/1", 1, places(0))]
    assert told(*first) == []
    assert told(*first, decisions.Launch("b/0", 1, places(0, 1))) == [("shared_gpu", "b"), ("shared_gpu", "a")] * 2
    gone = [facts.Released(1.0, "a/0", 1), facts.Finished(1.0, "a/1", 1, "succeeded")]
    assert told(*first, *gone, decisions.Launch("b/0", 1, places(0))) == []


def test_replicas_are_more_fewer_or_none(told: Told) -> None:
    steps = [decisions.Scale("a", count) for count in (1, 2, 1, 1, 0)]
    words = [("scaled_up", "a"), ("scaled_up", "a"), ("scaled_down", "a"), ("scaled_to_zero", "a")]
    assert told(facts.Submitted(0.0, work("a", min_replicas=0)), *steps) == words
    assert told(facts.Submitted(0.0, work("a", min_replicas=1)), *steps) == words[1:]


def test_nodes_that_come_before_any_work_are_no_news(told: Told) -> None:
    node = Node("id-1", Resources(gpus_milli=1000), flavor="A100", name="node-1")
    begun = [facts.NodeJoined(0.0, node), decisions.Launch("a/0", 1, places(-1))]
    assert told(*begun, facts.NodeLost(2.0, "id-1"), facts.NodeJoined(3.0, node), facts.DrainBegun(4.0, "node-1")) == [
        ("node_lost", "node-1"), ("node_joined", "node-1"), ("node_drained", "node-1"),
    ]  # fmt: skip


def test_what_was_asked_for_is_found_by_word_and_by_name(seen: Any) -> None:
    asked = seen.wanted(["saved", {"saved": "b"}, {"preempted": "a"}], "expect.yaml")
    found = seen.sights(journal(facts.CheckpointPublished(5.0, "a@3/0", 1, 7), facts.RolledBack(6.0, "a", 0)))
    there, missing = seen.check(asked, found)
    assert there == {"saved": [("saved", "a", 0.0, "checkpoint at step 7")]} and missing == ["saved b", "preempted a"]


def test_every_word_can_be_seen_and_is_explained(seen: Any) -> None:
    text = (EXAMPLES / "seen.py").read_text().partition("WORDS = {")[2].partition("\n}\n")[2]
    assert all(f'"{word}"' in text for word in seen.WORDS)


SHORT = {"minutes": 1, "parts": {"ends": {"at_least": 0.5}}}
TWO = (
    SPEC
    + """\
---
name: long
kind: task
resources: {accelerators: "A100:1"}
task: {run: ["false"]}
"""
)
TOLD = (
    MEASURE
    + """\
import sys
assert sys.argv[1:] == ["ends"], sys.argv
"""
)


def test_a_short_run_leaves_out_what_it_says_and_says_that_it_is_one(
    running: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "of" / "rows"
    place.mkdir(parents=True)
    without = {**SHORT, "without": ["long"], "arguments": ["ends"], "fields": {"tiny.task.run": ["true", "enough"]}}
    folder(place, "good", short=without)
    (place / "good" / "spec.yaml").write_text(TWO.replace('run: ["true"]', 'run: ["false"]'))
    (place / "good" / "measure.py").write_text(TOLD)
    runner = running.Runner(place, "row")
    assert runner.main(["good", "--short", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["short"], row["at_least"], row["minutes_at_most"]) == (True, 0.5, 1) and "(short)" in runner.table(
        [row]
    )
    assert "false" in (place / "good" / "spec.yaml").read_text(), "the folder itself was changed"
    with pytest.raises(SystemExit):
        runner.main(["good", "--short", "--pictures"])


@pytest.mark.parametrize(
    ("short", "said"),
    [
        (None, "good/expect.yaml: `short` does not say what a short run is"),
        ({**SHORT, "with": ["x"]}, 'short: unknown key "with". Known: arguments, fields'),
        ({**SHORT, "parts": {"end": {}}}, "short: no part 'end'; there are ends"),
        ({**SHORT, "parts": {"ends": {"at_most": 1}}}, "short: ends: only at_least can differ"),
        ({**SHORT, "seen": ["shrank"]}, "'shrank' is not among what the whole run shows"),
        ({**SHORT, "without": ["tinny"]}, "short: no document 'tinny'"),
        ({**SHORT, "fields": {"tiny.task.runs": 1}}, "fields: tiny.task.runs: there is no such field"),
    ],
)
def test_what_a_short_run_cannot_be_is_told(running: Any, tmp_path: Path, short: Any, said: str) -> None:
    place = tmp_path / "of" / "rows"
    place.mkdir(parents=True)
    folder(place, "good", **({"short": short} if short else {}))
    runner = running.Runner(place, "row")
    with pytest.raises(SystemExit, match=said):
        shortened = runner.expected("good", True)["short"]
        sys.modules["shortened"].copy(place / "good", tmp_path / "copy", shortened, "good/expect.yaml")
