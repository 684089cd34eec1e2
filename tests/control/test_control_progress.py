"""Numbers that gangs report are kept for people, and turn into estimates that are worth writing down."""

from __future__ import annotations

import json

from llmsched.control.progress import ESTIMATE_EVERY_S, ProgressBook
from llmsched.core.decisions import Launch
from llmsched.core.facts import Bound, NodeJoined, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.state import State
from llmsched.core.workload import Group, Option, Placed, Workload
from llmsched.executors.port import Progress
from llmsched.store.tables import ProgressRow


def running_state():
    state = State()
    workload = Workload("tune", "tune", "train", (Group("workers", 1, (Option(None, Resources(1000)),)),))
    for entry in (
        NodeJoined(1.0, Node("n1", Resources(2000, 8000, 1 << 33))),
        Submitted(1.0, workload),
        Launch("tune/0", 1, (Placed("workers", "n1", 0),)),
        Bound(2.0, "tune/0", 1),
    ):
        state.apply(entry)
    return state


def report(step, attempt=1, **more):
    return Progress("tune/0", attempt, {"step": step, "total_steps": 100, **more})


def test_later_numbers_replace_earlier_ones_and_others_stay():
    book, state = ProgressBook(), running_state()
    book.see(state, report(1, loss=2.0, phase="warm"), 3.0)
    book.see(state, report(2, loss=1.0), 4.0)
    assert book.latest["tune/0"] == {"step": 2, "total_steps": 100, "loss": 1.0, "phase": "warm"}
    (row,) = book.unwritten()
    assert (row.gang, row.attempt, row.at, json.loads(row.data)["loss"]) == ("tune/0", 1, 4.0, 1.0)
    assert book.unwritten() == []


def test_reports_of_an_older_attempt_or_of_nobody_are_ignored():
    book, state = ProgressBook(), running_state()
    book.see(state, report(1, attempt=7), 3.0)
    book.see(state, Progress("nobody/0", 1, {"step": 1}), 3.0)
    assert book.latest == {}


def test_what_is_no_number_is_shown_as_a_word():
    book, state = ProgressBook(), running_state()
    book.see(state, report(1, loss=float("nan"), note="x" * 1000, odd=[1]), 3.0)
    assert book.latest["tune/0"]["loss"] == "nan"
    assert len(book.latest["tune/0"]["note"]) == 200
    assert json.loads(book.unwritten()[0].data)["odd"] == "[1]"


def test_the_time_left_follows_from_the_pace_and_is_said_rarely():
    book, state = ProgressBook(), running_state()
    assert book.see(state, report(10), 100.0) is None  # one point is no pace
    assert book.see(state, report(11), 101.0) is None  # too early to tell
    estimate = book.see(state, report(20), 110.0)
    assert (estimate.gang, estimate.remaining_s) == ("tune/0", 80.0)
    assert book.see(state, report(30), 120.0) is None
    later = book.see(state, report(60), 110.0 + ESTIMATE_EVERY_S + 20.0)
    assert later.remaining_s == 48.0  # 60 s for 50 steps


def test_numbers_survive_a_restart():
    book, state = ProgressBook(), running_state()
    book.recall([ProgressRow("tune/0", 1, 3.0, '{"step":5}')])
    assert book.latest == {"tune/0": {"step": 5}}
    book.see(state, report(6), 4.0)
    assert book.latest["tune/0"]["step"] == 6


def test_a_row_that_cannot_be_read_is_left_out_and_one_of_strange_words_is_made_valid():
    book = ProgressBook()
    rows = ['{"note": "caf\\udce9", "total": 1e999}', "{", "[]", '{"step": 3}']
    book.recall([ProgressRow(f"a/{number}", 1, 0.0, data) for number, data in enumerate(rows)])
    assert book.latest == {"a/0": {"note": "caf\\udce9", "total": "inf"}, "a/3": {"step": 3}}
