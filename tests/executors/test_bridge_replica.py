"""What becomes of a replica, judged from what is seen of it: no Ray, no clock."""

import pytest

from llmsched.executors.bridge.replica import (
    BROKEN_FOR_S,
    DEPLOYED_WITHIN_S,
    HEALTH_EVERY_S,
    LAST_S,
    Abandoned,
    Answers,
    Application,
    Failed,
    Gone,
    Idle,
    Left,
    Reported,
    Watched,
    World,
)
from llmsched.executors.bridge.silence import IDLE_S, SILENT_S, STOPPED_S
from llmsched.executors.port import LaunchOrder, Member
from llmsched.runtime.health import Look

NAME, PROCESS = "llms/desk/0/1", "SERVE_REPLICA::llms/desk/0/1#replica#a"
HEALTHY = {"trouble": "", "in_hand": 0, "abandoned": 0}


class Answer:
    """What a call brings: a value, an error, or nothing yet."""

    def __init__(self, value=None):
        self.value = value

    def result(self, *, timeout_s):
        if self.value is None:
            raise TimeoutError
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Desk:
    """A replica and its surroundings, all well at first."""

    def __init__(self):
        self.answers = {"ready": {"refused": {}}, "health": HEALTHY}
        self.asked = []
        self.pids = []
        self.pending = []  # questions for its health
        self.world = World(frozenset({"n0"}), {NAME: {PROCESS}}, {NAME: Application("RUNNING")})
        order = LaunchOrder("desk", "desk/0", 1, 1, "serve", (Member(0, "n0"),), {}, "")
        self.watched = Watched(order, lambda: self)

    def ready(self):
        return self._ask("ready")

    def health(self):
        self.pending.append(self._ask("health"))
        return self.pending[-1]

    def process(self, pid):
        self.pids.append(pid)
        return self._ask("process")

    def _ask(self, what):
        self.asked.append(what)
        return Answer(self.answers[what])

    def look(self, now=0.0, **changed):
        self.world = self.world._replace(**changed)
        return self.watched.look(self.world, now)


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def answering(desk):
    desk.watched.deployed_at = 0.0
    assert desk.look() == Answers({})
    assert desk.look() is None
    return desk


def test_an_application_on_its_way_is_awaited_and_answers_once_serve_and_it_say_so(desk):
    assert desk.look(applications={}, processes={}) is None
    desk.watched.deployed_at = 0.0
    assert desk.look(DEPLOYED_WITHIN_S - 1) is None
    assert desk.look(DEPLOYED_WITHIN_S, applications={NAME: Application("DEPLOYING")}) is None
    desk.answers["ready"] = {"refused": {"sql": "no such folder"}}
    assert desk.look(20.0, applications={NAME: Application("RUNNING")}, processes={NAME: {PROCESS}}) == Answers(
        {"sql": "no such folder"}
    )


def test_it_is_asked_while_it_starts_so_that_its_answer_is_there_when_serve_says_that_it_runs(desk):
    desk.watched.deployed_at = 0.0
    assert desk.watched.is_awaited
    assert desk.look(1.0, applications={NAME: Application("DEPLOYING")}, processes={}) is None and not desk.asked
    for now in (2.0, 3.0):
        assert desk.look(now, processes={NAME: {PROCESS}}) is None
    assert desk.asked == ["ready"]
    assert desk.look(4.0, applications={NAME: Application("RUNNING")}) == Answers({})
    assert desk.asked == ["ready"] and not desk.watched.is_awaited
    desk.watched.leave(100.0)
    assert desk.watched.is_awaited


def test_what_its_start_took_is_told_with_what_it_cannot_see_itself(desk):
    desk.watched.begun_at, desk.watched.deployed_at = 2.0, 3.0
    desk.answers["ready"] = {"refused": {}, "took": {"imports": 4.0, "load": 2.5, "nonsense": 1, "first_token": "x"}}
    assert desk.look(12.0) == Answers({}, {"imports": 4.0, "load": 2.5, "process": 3.5})


def test_of_a_start_that_another_bridge_began_only_the_replicas_own_steps_are_told(desk):
    desk.watched.deployed_at = 0.0
    desk.answers["ready"] = {"refused": {}, "took": {"load": 2.5}}
    assert desk.look(12.0) == Answers({}, {"load": 2.5})


GONE = {
    "its node": ({"nodes": frozenset()}, False),
    "its process": ({"processes": {}}, False),
    "its process, and Serve has made another": ({"processes": {NAME: {PROCESS + "b"}}}, False),
    "its application": ({"applications": {}}, True),
    "its application, with its process": ({"applications": {}, "processes": {}}, True),
    "its application, which somebody deletes": ({"applications": {NAME: Application("DELETING")}}, True),
    "all of Serve": ({"applications": None, "processes": {}, "is_serve_there": False}, True),
}


@pytest.mark.parametrize("what", GONE)
def test_whatever_was_there_and_is_gone_ends_the_attempt_at_once(answering, what):
    changed, by_others = GONE[what]
    seen = answering.look(1.0, **changed)
    assert isinstance(seen, Gone) and seen.by_others is by_others


@pytest.mark.parametrize("what", ["its application", "all of Serve"])
def test_it_is_gone_as_well_while_it_still_starts(desk, what):
    desk.watched.deployed_at = 0.0
    assert desk.look(applications={NAME: Application("DEPLOYING")}) is None
    seen = desk.look(1.0, **{**GONE[what][0], "processes": {}})
    assert isinstance(seen, Gone) and seen.by_others


def test_one_that_was_never_listed_is_taken_away_too(desk):
    desk.watched.deployed_at = 0.0
    assert isinstance(desk.look(DEPLOYED_WITHIN_S + 1, applications={}, processes={}), Gone)


def test_while_serves_controller_is_slow_or_being_made_anew_replicas_go_on(answering):
    assert answering.look(100.0, applications=None) is None
    assert answering.look(101.0, applications=None, is_serve_there=False) is None  # its process is there


def test_a_replica_that_is_stuck_or_sick_or_silent_is_gone_with_its_reason(answering):
    answering.answers["health"] = {**HEALTHY, "trouble": "all 4 requests ... do not end"}
    answering.look(HEALTH_EVERY_S)
    assert answering.look(HEALTH_EVERY_S) == Gone("all 4 requests ... do not end")


def silent(desk, look, until=60.0):
    """(after how many seconds it is gone, what is told of it then), with a node that says `look` of (seconds)."""
    desk.answers["health"] = None
    for tenth in range(int(until * 10)):
        desk.answers["process"] = look(tenth / 10)
        if (seen := desk.look(HEALTH_EVERY_S + tenth / 10)) is not None:
            return tenth / 10, seen
    return None


@pytest.mark.parametrize(
    ("look", "after_s", "words"),
    [
        (lambda at: Look(True, 5.0), STOPPED_S, "its process is stopped by a signal"),
        (lambda at: Look(False, 5.0), IDLE_S, "its process does nothing"),
        (lambda at: Look(False, 5.0 + at), SILENT_S, "when asked for its health"),  # it computes, without a pause
        (lambda at: None, SILENT_S, "when asked for its health"),  # its node says nothing
        (lambda at: RuntimeError("no such process"), SILENT_S, "when asked for its health"),
    ],
)
def test_a_replica_that_does_not_answer_is_gone_by_what_its_process_does(desk, look, after_s, words):
    desk.answers["ready"] = {"refused": {}, "pid": 77}
    desk.watched.deployed_at = 0.0
    assert desk.look() == Answers({})
    after, seen = silent(desk, look)
    assert after_s <= after <= after_s + 0.2
    assert words in seen.words and seen.hung_pid == 77
    assert all(pid == 77 for pid in desk.pids)


def test_a_replica_that_answers_after_a_while_is_as_before_and_its_next_silence_begins_anew(answering):
    answering.watched.pid = 77
    assert silent(answering, lambda at: Look(False, 5.0), until=IDLE_S - 1) is None
    waiting = answering.pending[-1]
    waiting.value = HEALTHY
    assert answering.look(HEALTH_EVERY_S + IDLE_S - 1) is None
    answering.answers["health"] = None
    begins = HEALTH_EVERY_S + IDLE_S + HEALTH_EVERY_S
    assert answering.look(begins) is None
    assert [answering.look(begins + second) for second in range(int(IDLE_S))] == [None] * int(IDLE_S)


def test_one_that_answers_its_health_is_never_looked_at_from_outside(answering):
    for second in range(200):
        assert answering.look(float(second)) is None
    assert "process" not in answering.asked


def test_health_is_asked_now_and_then_and_an_error_on_the_way_is_no_verdict(answering):
    answering.answers["health"] = RuntimeError("the router lost it")
    for second in range(100):
        assert answering.look(float(second)) is None
    assert 10 <= answering.asked.count("health") <= 100 / HEALTH_EVERY_S + 1


def test_requests_that_do_not_end_are_told_when_their_number_changes(answering):
    told = []
    for second, abandoned in enumerate((0, 2, 2, 3, 0, 0)):
        answering.answers["health"] = {**HEALTHY, "abandoned": abandoned}
        for half in (0.0, 1.0):
            told.append(answering.look((second + 1) * HEALTH_EVERY_S * 2 + half))
    assert [one for one in told if one] == [Abandoned(2), Abandoned(3), Abandoned(0)]


def test_what_its_app_reports_is_told_when_it_changes_and_again_to_a_controller_that_knows_nothing(answering):
    told, at = [], 0.0

    def look_twice():
        nonlocal at
        for _ in range(2):
            at += HEALTH_EVERY_S
            told.append(answering.look(at))

    for numbers in ({}, {"alerts": 0}, {"alerts": 0}, {"alerts": 2}):
        answering.answers["health"] = {**HEALTHY, "numbers": numbers}
        look_twice()
    answering.watched.ask_again()
    look_twice()
    look_twice()
    look_twice()
    said = [one for one in told if isinstance(one, Reported)]
    assert said == [Reported({"alerts": 0}), Reported({"alerts": 2}), Reported({"alerts": 2})]


def test_one_that_never_comes_up_fails_with_serves_words(desk):
    desk.watched.deployed_at = 0.0
    assert desk.look(applications={NAME: Application("DEPLOY_FAILED", "no such model")}) == Failed("no such model")
    desk.answers["ready"] = RuntimeError("it has no such method")
    running = {NAME: Application("RUNNING")}
    assert desk.look(1.0, applications=running) is None
    assert desk.look(2.0 + BROKEN_FOR_S) == Failed("it has no such method")


def test_who_was_told_to_leave_has_left_when_nothing_of_it_is_there(answering):
    answering.watched.leave(300.0)
    answering.watched.is_deleted = True
    assert answering.look(applications={NAME: Application("DELETING")}) is None
    assert answering.look(applications={}) is None
    assert answering.look(processes={}) == Left()
    assert answering.look(applications=None, processes={}, is_serve_there=False) == Left()


def test_who_leaves_ends_what_it_has_in_hand_before_serve_may_take_it(answering):
    answering.answers["health"] = HEALTHY | {"in_hand": 2}
    answering.watched.leave(300.0)
    assert [answering.look(float(now)) for now in range(250)] == [None] * 250
    answering.answers["health"] = HEALTHY
    assert [answering.look(260.0), answering.look(261.0)] == [None, Idle()]
    answering.watched.is_deleted = True
    assert answering.look(262.0) is None, "once is enough"


@pytest.mark.parametrize("health", [None, HEALTHY | {"in_hand": 1}, RuntimeError("it is stuck")])
def test_serve_takes_it_in_time_for_the_end_whatever_it_says(answering, health):
    answering.answers["health"] = health
    answering.watched.leave(300.0)
    assert answering.look(299.0 - LAST_S) is None
    assert answering.look(300.0 - LAST_S) == Idle()


def test_serve_takes_one_at_once_that_has_never_answered(desk):
    desk.watched.leave(300.0)
    assert desk.look() == Idle()


def test_serve_takes_one_at_once_whose_process_has_ended(answering):
    answering.watched.leave(300.0)
    assert answering.look(processes={}) == Idle()


def test_one_that_is_adopted_again_answers_again_and_another_process_in_its_place_is_not_it(answering):
    answering.watched.ask_again()
    assert answering.look() == Answers({})
    answering.watched.ask_again()
    assert isinstance(answering.look(processes={NAME: {PROCESS + "b"}}), Gone)
