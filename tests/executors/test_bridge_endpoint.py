"""The gateways as the bridge keeps them: one serves, another stands by where there are nodes; both get the table."""

import pytest

from llmsched.core.latency import Latency
from llmsched.executors.bridge.endpoint import HUNG_AFTER_S, STANDBY_AFTER_S, TELL_EVERY_S, Endpoint
from llmsched.executors.bridge.gateway_actor import Gone, Load, Silent
from llmsched.executors.port import EndpointSeen, KeyUsageSeen, LoadSeen, RouteTable

TABLE = RouteTable(7, {"qwen": {"workload": "qwen"}}, [])
LOOK_EVERY_S = TELL_EVERY_S


class Fake:
    """A gateway that starts at once unless `comes` is False, and answers unless `state` says otherwise."""

    def __init__(self, port):
        self.place = ("127.0.0.1", port)
        self.is_there = self.has_begun = False
        self.comes = True
        self.state = "well"
        self.version = 0
        self.counts = {"qwen": (1.0, 2.0)}
        self.latencies = {}
        self.ended = 0
        self.book = None

    def begin(self):
        self.has_begun = True

    def has_come(self, within_s=0.0):
        self.is_there = self.has_begun and self.comes
        return self.is_there

    def _answer(self):
        if self.state == "hung":
            raise Silent("no answer")
        if self.state == "gone":
            self.is_there, self.has_begun, self.version = False, False, 0
            raise Gone("its process has ended")

    def tell(self, table):
        self._answer()
        self.version = table.version

    def load(self):
        self._answer()
        measured, self.latencies = self.latencies, {}
        return Load(self.version, self.counts, measured)

    def used(self):
        self._answer()
        used, self.book = self.book, None
        return used

    def end(self):
        self.ended += 1
        self.state, self.version = "well", 0

    def remove(self):
        self.is_there = False


class Desk:
    def __init__(self, nodes=2):
        self.one, self.two = Fake(1), Fake(2)
        self.now, self.seen = 0.0, []
        self.endpoint = Endpoint(self.seen.append, (self.one, self.two), lambda: nodes, lambda: self.now)

    def look(self, times=1, every_s=LOOK_EVERY_S):
        for _ in range(times):
            self.endpoint.look()
            self.now += every_s

    def said(self):
        return [one for one in self.seen if isinstance(one, EndpointSeen)]


@pytest.fixture
def desk():
    """Both are there."""
    desk = Desk()
    desk.endpoint.route(TABLE)
    desk.look(int(STANDBY_AFTER_S / LOOK_EVERY_S) + 3)
    assert desk.two.is_there
    desk.seen.clear()
    return desk


def test_there_is_none_before_the_first_endpoint():
    desk = Desk()
    desk.look()
    desk.endpoint.route(RouteTable(1, {}, []))
    desk.look()
    assert not desk.one.has_begun


def test_the_first_one_is_made_with_the_first_endpoint_and_the_other_a_while_later():
    desk = Desk()
    desk.endpoint.route(TABLE)
    desk.look()
    assert (desk.one.version, desk.two.has_begun) == (7, False)
    desk.look(int(STANDBY_AFTER_S / LOOK_EVERY_S) + 3)
    assert (desk.one.version, desk.two.version) == (7, 7)
    assert desk.said() == [EndpointSeen("", (("127.0.0.1", 1), ("127.0.0.1", 2)))]


def test_on_one_node_there_is_one():
    desk = Desk(nodes=1)
    desk.endpoint.route(TABLE)
    desk.look(50)
    assert not desk.two.has_begun and not desk.said()


def test_one_that_stands_by_and_still_starts_holds_up_nobody():
    desk = Desk()
    desk.endpoint.route(TABLE)
    desk.two.comes = False
    desk.look(30)
    assert desk.two.has_begun and not desk.said()
    assert [one for one in desk.seen if isinstance(one, LoadSeen)] == [LoadSeen("qwen", 1.0, 2.0)] * 30


def test_a_new_table_reaches_both_and_their_counts_are_added(desk):
    desk.endpoint.route(RouteTable(8, TABLE.models, []))
    assert (desk.one.version, desk.two.version) == (8, 8)
    desk.look()
    assert desk.seen == [LoadSeen("qwen", 2.0, 4.0)]


def loads(desk, *counts, every_s):
    """What is told when the gateway counts these, one look after the other."""
    told = []
    for each in counts:
        desk.one.counts, desk.two.counts = {"qwen": each}, {}
        desk.seen.clear()
        desk.look(1, every_s)
        told.append([one.counts for one in desk.seen if isinstance(one, LoadSeen)])
    return told


def test_a_load_is_told_now_and_then_and_one_that_jumps_at_once(desk):
    often_s = TELL_EVERY_S / 3
    steady = loads(desk, *[(2.0, 0.0)] * 4, every_s=often_s)
    assert steady == [[(2.0, 0.0)], [], [], [(2.0, 0.0)]]
    grows = loads(desk, (2.2, 0.0), (2.4, 0.0), (2.5, 0.0), (9.0, 4.0), every_s=often_s)
    assert grows == [[], [(2.4, 0.0)], [(2.5, 0.0)], [(9.0, 4.0)]]
    assert loads(desk, (9.5, 4.0), (0.0, 0.0), (0.0, 0.0), every_s=often_s) == [[], [(0.0, 0.0)], []]
    assert loads(desk, (0.0, 1.0), every_s=often_s) == [[(0.0, 1.0)]]  # who is held wakes an endpoint


def test_what_was_measured_between_is_told_with_the_next_load(desk):
    desk.one.book = KeyUsageSeen("a", ())
    desk.look(1, 0.1)
    desk.one.book = KeyUsageSeen("a", ())
    first, second = (Latency("m", "A100", load, 40, 1.0) for load in (1.0, 2.0))
    desk.seen.clear()
    for each in (first, second):
        desk.one.latencies = {"qwen": (each,)}
        desk.look(1, 0.1)
    assert desk.seen == []
    desk.now += TELL_EVERY_S
    desk.look()
    assert [one.latencies for one in desk.seen if isinstance(one, LoadSeen)] == [(first, second)]
    assert [one.gateway for one in desk.seen if isinstance(one, KeyUsageSeen)] == ["a"]


def test_what_keys_have_used_is_told_of_each(desk):
    desk.one.book, desk.two.book = (KeyUsageSeen(name, ()) for name in "ab")
    desk.look()
    assert [one.gateway for one in desk.seen if isinstance(one, KeyUsageSeen)] == ["a", "b"]


def test_an_older_table_that_comes_late_changes_nothing(desk):
    desk.endpoint.route(RouteTable(6, {}, []))
    assert (desk.one.version, desk.two.version) == (7, 7)


@pytest.mark.parametrize("which", ["one", "two"])
def test_one_that_hangs_is_told_of_at_once_and_ended_in_time_while_the_other_one_counts(desk, which):
    hung = getattr(desk, which)
    hung.state, since = "hung", desk.now
    while not hung.ended:
        desk.look()
        assert desk.now - since < 10
    assert desk.now - since > HUNG_AFTER_S
    assert "one of two gateways does not answer" in desk.said()[0].trouble
    assert LoadSeen("qwen", 1.0, 2.0) in desk.seen
    desk.look(2)
    assert hung.version == 7 and desk.said()[-1].trouble == ""


def test_one_that_is_gone_is_made_anew_and_has_its_table_back(desk):
    desk.one.state = "gone"
    desk.look()
    assert "one of two gateways does not answer" in desk.said()[-1].trouble
    desk.one.state = "well"
    desk.look(2)
    assert desk.one.version == 7 and desk.said()[-1].trouble == ""
    assert desk.said()[-1].places == (("127.0.0.1", 1), ("127.0.0.1", 2))


def test_when_neither_answers_it_says_that_requests_fail(desk):
    desk.one.state = desk.two.state = "hung"
    desk.look()
    assert "requests to endpoints fail" in desk.said()[-1].trouble


def test_a_gateway_that_does_not_take_its_table_keeps_it_from_no_other(desk):
    desk.two.state = "hung"
    desk.endpoint.route(RouteTable(9, TABLE.models, []))
    assert desk.one.version == 9
