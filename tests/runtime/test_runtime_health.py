"""When work counts as stuck, and when a long step is left alone: minutes in a table, no clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType

from waiting import PATIENCE_S

from llmsched.runtime import pulse
from llmsched.runtime.health import Health, Look, Pulse, Verdict

WAITS = Pulse("all_reduce, called in bl.py:15", waits=True)


def lasting(
    seconds: float, *said: Callable[[float], Pulse], finished: tuple[int, ...] = (), reports: tuple[float, ...] = ()
) -> list[Verdict]:
    """What is said over `seconds` of pulses every three; each rank's pulse is a function of the time."""
    health, told = Health(), []
    for at in reports:
        health.reported(at)
    for now in range(0, int(seconds) + 1, 3):
        for rank, one in enumerate(said):
            if rank not in finished:
                health.heard(rank, one(float(now)), float(now))
        verdict = health.verdict(finished, float(now))
        if verdict is not None and (not told or told[-1] != verdict):
            told.append(verdict)
        if verdict is not None and verdict.event:
            break
    return told


def waits(now: float) -> Pulse:
    return WAITS


def computes(now: float) -> Pulse:
    return Pulse("forward, called in bl.py:9", cpu_s=now)


def test_a_rank_that_waits_for_one_that_has_returned_is_said_soon_and_ended_after_a_minute() -> None:
    first, second, last = lasting(120, waits, waits, finished=(1,))
    assert first.message.startswith(
        "rank 1 has returned, and rank 0 has waited for over 20 s (all_reduce, called in bl.py"
    )
    assert not first.event and "for over 40 s" in second.message
    assert last.event == "error" and "for 60 s" in last.message


def test_a_rank_that_saves_the_result_while_the_others_have_returned_is_left_alone() -> None:
    assert lasting(7200, computes, waits, finished=(1,)) == []
    assert lasting(7200, lambda now: Pulse(f"put, called in save.py:{now}"), waits, finished=(1,)) == []


def test_a_rank_that_does_nothing_after_the_others_have_returned_is_said_and_ended_as_late_as_gloo_would() -> None:
    told = lasting(3600, lambda now: Pulse("recv, called in up.py:4"), waits, finished=(1,))
    assert told[0].event == "" and "over 60 s" in told[0].message
    assert told[-1].event == "error" and "30 min" in told[-1].message


def test_a_long_step_is_left_alone_also_when_the_others_wait_for_it() -> None:
    assert lasting(4 * 3600, computes, waits) == []


def test_ranks_that_all_wait_for_each_other_are_said_and_ended() -> None:
    told = lasting(3600, waits, waits)
    assert "all 2 ranks have waited for each other" in told[0].message and told[0].event == ""
    assert told[-1].event == "error"
    assert lasting(3600, waits) == []  # one that waits alone waits for nobody that we know of


def test_what_is_said_while_it_lasts_is_said_anew_only_when_it_has_lasted_twice_as_long() -> None:
    assert len(lasting(1700, lambda now: Pulse("recv, called in up.py:4"), waits, finished=(1,))) == 5


def test_nothing_reported_for_much_longer_than_ever_before_is_said_and_ended_only_when_nobody_computes() -> None:
    reports = (0.0, 10.0, 20.0, 30.0)
    busy = lasting(4 * 3600, computes, computes, reports=reports)
    assert busy and all(not one.event for one in busy) and "(before, at most 10 s passed)" in busy[0].message
    idle = lasting(4 * 3600, lambda now: Pulse("read, called in data.py:7"), reports=reports)
    assert idle[-1].event == "error" and "rank 0 is at read, called in data.py:7" in idle[-1].message
    assert lasting(1800, lambda now: Pulse("read, called in data.py:7"), reports=(0.0, 900.0, 1800.0)) == []
    assert lasting(4 * 3600, lambda now: Pulse("read, called in data.py:7")) == []  # it never reports


def test_a_command_that_a_signal_has_stopped_is_said_and_ended() -> None:
    told = lasting(600, lambda now: Pulse(is_stopped=now >= 60))
    assert told[0] == Verdict("rank 0's process is stopped (SIGSTOP) for over 10 s")
    assert told[-1].event == "interruption"
    assert lasting(120, lambda now: Pulse(is_stopped=now in (30.0, 33.0))) == []  # and goes on


def test_commands_that_end_at_different_times_are_left_alone() -> None:
    assert lasting(4 * 3600, lambda now: Pulse(), lambda now: Pulse(), finished=(1,)) == []


def test_a_command_that_never_joins_its_process_group_is_said_and_ended_as_late_as_torch_would() -> None:
    told = lasting(3600, lambda now: Pulse(has_met=now > 30), lambda now: Pulse(has_met=False))
    first = "rank 1 has not joined, and rank 0 waits for it in its process group for over 60 s: every rank must call"
    assert told[0].message.startswith(first) and not told[0].event
    assert (told[-1].event, "for 30 min" in told[-1].message) == ("error", True)
    prepares = lasting(3600, lambda now: Pulse(has_met=True), lambda now: Pulse(has_met=False, cpu_s=now))
    assert prepares and not any(one.event for one in prepares)  # it is said, and left alone


def test_a_command_that_has_ended_and_never_joined_is_said_sooner() -> None:
    told = lasting(3600, lambda now: Pulse(has_met=True), lambda now: Pulse(has_met=False), finished=(1,))
    assert told == []  # nobody heard of it while it lived: it is no rank yet
    health = Health()
    health.heard(1, Pulse(), 0.0)
    for now in range(0, 601, 3):
        health.heard(0, Pulse(has_met=True), float(now))
    said = health.verdict((1,), 600.0)
    assert said is not None and said.event == "error"
    assert said.message.startswith(
        "rank 1 has come to its end, and rank 0 waits for it in its process group for 10 min"
    )


def test_commands_that_have_met_are_left_alone() -> None:
    met = lambda now: Pulse(has_met=True)  # noqa: E731
    assert lasting(4 * 3600, met, met) == [] and lasting(4 * 3600, lambda now: Pulse(has_met=False)) == []


def silent(seconds: float, look: Callable[[float], Look | None]) -> list[Verdict]:
    """What is said of a rank that was heard once, and of which its node says `look`."""
    health, told = Health(), []
    health.heard(0, Pulse("bl.py:3"), 0.0)
    for now in range(2, int(seconds), 2):
        for rank in health.silent((), float(now)):
            health.looked(rank, look(float(now)), float(now))
        verdict = health.verdict((), float(now))
        if verdict is not None and (not told or told[-1] != verdict):
            told.append(verdict)
        if verdict is not None and verdict.event:
            break
    return told


def test_a_worker_that_says_nothing_is_looked_at_on_its_node() -> None:
    stopped = silent(600, lambda now: Look(True, 5.0))
    assert "is stopped (SIGSTOP)" in stopped[0].message and stopped[-1].event == "interruption"
    hung = silent(3600, lambda now: Look(False, 5.0))
    assert "and does nothing" in hung[0].message and hung[-1].event == "interruption" and "10 min" in hung[-1].message
    computing = silent(4 * 3600, lambda now: Look(False, now))  # in native code that holds the interpreter
    assert all(not one.event and "though it computes" in one.message for one in computing)
    cut_off = silent(600, lambda now: None)
    assert "its node does not answer" in cut_off[0].message and cut_off[-1].event == "interruption"


def test_a_rank_that_is_heard_again_is_well_again() -> None:
    health = Health()
    health.heard(0, Pulse(), 0.0)
    health.looked(0, Look(True, 0.0), 15.0)
    assert health.verdict((), 20.0) is not None
    health.heard(0, Pulse(), 21.0)
    assert health.silent((), 22.0) == [] and health.verdict((), 60.0) is None or health.silent((), 60.0) == [0]


def test_a_pulse_tells_the_line_that_the_loop_is_in_and_whether_it_waits_for_others() -> None:
    heard: list[Pulse] = []
    enough, before = threading.Event(), pulse.EVERY_S

    def send(said: Pulse) -> None:
        heard.append(said)
        enough.set()

    pulse.EVERY_S = 0.01
    try:
        with pulse.beating(send):
            enough.wait(PATIENCE_S)
    finally:
        pulse.EVERY_S = before
    assert heard[0].at.startswith("wait, called in test_runtime_health.py:") and not heard[0].waits


def test_waiting_in_torch_distributed_is_told_by_the_frame_and_by_the_line_that_called_it() -> None:
    space: dict[str, Callable[[], FrameType]] = {}
    source = "import sys\ndef all_reduce():\n    return sys._getframe()\n"
    exec(compile(source, "/x/site-packages/torch/distributed/distributed_c10d.py", "exec"), space)
    frame = space["all_reduce"]()
    at, waits = pulse.where(frame)
    assert waits and at.startswith("all_reduce, called in test_runtime_health.py:")


def test_what_waits_in_its_own_ray_in_vain_is_said_while_it_does_and_never_ended_for_it() -> None:
    (told,) = lasting(7200, lambda now: Pulse(cpu_s=now, wants="4 GPUs; its gang has 2"))
    assert told == Verdict("something waits in its own Ray for 4 GPUs; its gang has 2")
    assert lasting(9, lambda now: Pulse(wants="4 GPUs; its gang has 2")) == [], "its other nodes may be on their way"
    assert lasting(60, lambda now: Pulse(wants="2 CPUs; its gang has 1" if now < 9 else "")) == []
