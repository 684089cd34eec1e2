"""How many replicas a load wants: by requests in flight, by measured latency, and ahead of the load."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import pytest

from llmsched.core.latency import AIM, Latency, Reach, learnt
from llmsched.core.latency import mean_s as mean_at
from llmsched.core.records import GangState, WorkloadState
from llmsched.core.resources import Resources
from llmsched.core.season import DAY, JUDGED, KEPT, SLOT_S, WEEK, Season
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.trade import Handover
from llmsched.core.views import View, WorkloadView
from llmsched.core.workload import Autoscaling, Group, Option, Slo, Workload
from llmsched.policies.autoscaling.ongoing_requests import OngoingRequests

ALONE_S, PLACES = 2.0, 16


def took_s(load: float) -> float:
    """Of a replica whose answers slow down with its load."""
    return ALONE_S * (1 + load / PLACES)


@dataclass
class Fleet:
    """An endpoint whose replicas follow the policy at once; a rate of requests is what it is asked."""

    slo: Slo | None = None
    replicas: int = 2
    most: int = 100
    knobs: dict[str, float] = field(default_factory=dict)
    memory: str = ""
    now: float = 0.0
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        group = Group("workers", 1, (Option("L4", Resources(1000)),))
        scaling = Autoscaling(most_ongoing=PLACES, **self.knobs)  # type: ignore[arg-type]
        spec = Workload("e", "e", "serve", (group,), max_replicas=self.most, autoscaling=scaling, slo=self.slo)
        self.known: dict[str, GangState] = {}
        self.record = WorkloadState(spec, 0.0, [], self.known, wanted_replicas=self.replicas)
        self.policy = OngoingRequests()
        self._fill()

    def _fill(self) -> None:
        self.record.wanted_replicas = self.replicas
        self.known.clear()
        for index in range(self.replicas):
            gang = GangState(f"e/{index}", "e", index, self.record.workload, 0.0, status=Status.RUNNING, flavor="L4")
            self.known[gang.id] = gang
        self.record.gangs = [*self.known]

    def in_flight(self, rate: float) -> float:
        """At each replica: the load x at which x answers in took_s(x) are `rate` / replicas a second."""
        each = rate / max(self.replicas, 1)
        return min(each * ALONE_S / max(1 - each * ALONE_S / PLACES, 0.05), float(PLACES))

    def refused(self, rate: float) -> float:
        """Who was turned away in the last ten seconds."""
        served = self.replicas * PLACES / took_s(PLACES)
        return max(0.0, rate - served) * 10.0 if self.in_flight(rate) == PLACES else 0.0

    def lives(self, rate: float, seconds: float, step_s: float = 5.0) -> int:
        for _ in range(int(seconds / step_s)):
            self.now += step_s
            load = self.in_flight(rate)
            self.record.load = (load * self.replicas, self.refused(rate), self.now)
            if load and self.now % 30 == 0:
                found = Latency("m", "L4", load, 100, took_s(load), latency_p95_s=1.2 * took_s(load))
                self.record.curves = learnt(self.record.curves, found, self.now)
            state = State()
            state.now = self.now
            before = self.replicas
            self.replicas, self.memory = self.policy.wanted(WorkloadView(self.record), self.memory, View(state))
            if self.replicas != before:
                self.asked.append(self.replicas)
                self._fill()
        return self.replicas


def fewest(rate: float, target_s: float) -> int:
    """What holds the target, by the very formula of the fleet."""
    return next(
        n
        for n in range(1, 100)
        if rate / n * ALONE_S < PLACES and 1.2 * took_s(Fleet(replicas=n).in_flight(rate)) <= target_s
    )


@pytest.mark.parametrize("target_s", [3.0, 3.2, 4.0])
def test_a_target_for_latency_is_held_with_about_the_fewest_replicas_that_can(target_s: float) -> None:
    fleet = Fleet(Slo(latency_p95_s=target_s), knobs={"upscale_delay_s": 10.0, "downscale_delay_s": 60.0})
    for rate in (4.0, 30.0, 60.0):
        found, best = fleet.lives(rate, 3600.0), fewest(rate, AIM * target_s)
        assert fewest(rate, target_s) <= found <= ceil(1.2 * best) + 1, (rate, found, best)
        assert 1.2 * took_s(fleet.in_flight(rate)) <= target_s


def test_a_jump_of_the_load_is_followed_in_one_step_once_latency_is_known() -> None:
    fleet = Fleet(Slo(latency_p95_s=3.2), knobs={"upscale_delay_s": 10.0, "downscale_delay_s": 600.0})
    for rate in (4.0, 20.0, 60.0, 4.0):
        fleet.lives(rate, 3600.0)
    fleet.asked.clear()
    found = fleet.lives(40.0, 600.0)
    assert len(fleet.asked) <= 2 and found >= fewest(40.0, 3.2), fleet.asked
    assert fleet.asked[0] >= 0.9 * found


@pytest.mark.parametrize("slo", [None, Slo(latency_p95_s=3.2)])
def test_a_square_wave_within_the_delay_does_not_make_replicas_come_and_go(slo: Slo | None) -> None:
    knobs = {"target_ongoing_requests": 4.0, "upscale_delay_s": 10.0, "downscale_delay_s": 300.0}
    fleet = Fleet(slo, knobs=knobs)
    for _ in range(3):
        fleet.lives(30.0, 120.0)
        fleet.lives(6.0, 120.0)
    fleet.asked.clear()
    for _ in range(20):
        fleet.lives(30.0, 120.0)
        fleet.lives(6.0, 120.0)
    assert len(fleet.asked) <= 2, fleet.asked


def test_down_it_goes_to_what_the_peaks_of_the_delay_asked_for() -> None:
    fleet = Fleet(replicas=10, knobs={"target_ongoing_requests": 1.0, "downscale_delay_s": 60.0})
    view = State()
    for now, load in ((0.0, 8.0), (30.0, 3.0), (50.0, 6.0), (60.0, 2.0)):
        view.now = now
        fleet.record.load = (load, 0.0, now)
        found, fleet.memory = fleet.policy.wanted(WorkloadView(fleet.record), fleet.memory, View(view))
    assert found == 8


def test_a_target_out_of_reach_does_not_take_every_gpu() -> None:
    fleet = Fleet(Slo(latency_p95_s=0.5), knobs={"target_ongoing_requests": 4.0, "downscale_delay_s": 60.0})
    fleet.lives(0.2, 600.0)
    reach = WorkloadView(fleet.record).reach
    assert reach is not None and reach.load == 0.0 and reach.seconds > 0.5
    assert fleet.lives(4.0, 600.0) == ceil(fleet.in_flight(4.0) * fleet.replicas / 4.0) <= 4


def test_replicas_come_before_the_load_that_came_at_this_hour_and_not_where_forecast_is_off() -> None:
    for forecast, replicas in ((True, 8), (False, 2)):
        fleet = Fleet(knobs={"target_ongoing_requests": 5.0, "upscale_delay_s": 0.0, "forecast": forecast})
        means = [10.0] * KEPT
        for slot in range(301, 320):
            means[slot - DAY] = means[slot - WEEK] = 40.0
        fleet.record.season = Season(300, means=tuple(means), ratios=(1.0,) * JUDGED)
        fleet.now = 300.9 * SLOT_S
        fleet.record.load = (10.0, 0.0, fleet.now)
        state = State()
        state.now = fleet.now
        found, _ = fleet.policy.wanted(WorkloadView(fleet.record), "", View(state))
        assert found == replicas


def test_what_a_view_tells_of_latency_is_what_was_measured() -> None:
    fleet = Fleet(Slo(latency_p95_s=3.2))
    view = WorkloadView(fleet.record)
    assert view.reach == Reach(None) and view.mean_s(1.0) is None and view.answering == 2
    fleet.record.curves = learnt((), Latency("m", "L4", 2.0, 50, 2.5, latency_p95_s=3.0), 0.0)
    assert view.mean_s(1.0) == mean_at(fleet.record.curves[0], 1.0) == 2.5


def test_a_start_that_takes_longer_than_usual_while_requests_are_held_is_given_a_second() -> None:
    for came, usual_s in ((), 30.0), ((Handover(0.0, "e/0", 12.0),), 12.0):  # of none: half of what they wait for
        fleet = Fleet(replicas=1, most=2, knobs={"hold_s": 60.0, "upscale_delay_s": 30.0})
        fleet.record.handovers = came
        first = fleet.known["e/0"]
        first.status, first.launched_at = Status.LAUNCHING, 100.0
        fleet.record.load = (0.0, 1.0, 100.0)
        assert wanted_at(fleet, 100.0 + usual_s - 0.1) == (1, 100.0 + usual_s)
        assert wanted_at(fleet, 100.0 + usual_s)[0] == 2
        second = GangState("e/1", "e", 1, fleet.record.workload, 0.0, status=Status.LAUNCHING, launched_at=140.0)
        fleet.known[second.id], fleet.record.wanted_replicas = second, 2
        fleet.record.gangs.append(second.id)
        assert wanted_at(fleet, 300.0)[0] == 2, "no more than replicas allows"


@pytest.mark.parametrize("why_not", ["nobody waits", "it waits for a place", "one answers", "nobody is held"])
def test_and_none_where_a_second_would_help_nobody(why_not: str) -> None:
    fleet = Fleet(replicas=2 if why_not == "one answers" else 1, knobs={"hold_s": 0.0 if "held" in why_not else 60.0})
    first = fleet.known["e/0"]
    first.status, first.launched_at = Status.LAUNCHING, 100.0
    if why_not == "it waits for a place":
        first.status = Status.QUEUED
    fleet.record.load = (0.0, 0.0 if why_not == "nobody waits" else 1.0, 100.0)
    assert wanted_at(fleet, 1000.0)[0] == len(fleet.known)


def wanted_at(fleet: Fleet, now: float) -> tuple[int, float | None]:
    """And when to ask again."""
    state = State()
    state.now = now
    serve, view = WorkloadView(fleet.record), View(state)
    replicas, memory = fleet.policy.wanted(serve, "", view)
    return replicas, fleet.policy.ask_again(serve, memory, view)
