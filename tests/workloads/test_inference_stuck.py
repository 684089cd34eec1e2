"""A decode thread that does not move is noticed with the replica's health; one that works, or rests, never."""

import threading
import time

import pytest

from workloads.inference.stuck import ASLEEP_S, COMPUTING_S, Rounds, cpu_seconds


def lasts(rounds, seconds, cpu_per_s=0.0, every_s=5.0):
    """Ask for its health for so long."""
    now = 0.0
    while now <= seconds:
        rounds.check(now, cpu_per_s * now)
        now += every_s


def test_a_round_in_which_the_thread_does_nothing_is_stuck_after_a_while():
    rounds = Rounds()
    rounds.begin()
    lasts(rounds, ASLEEP_S)
    with pytest.raises(RuntimeError, match="35 s and does nothing"):
        lasts(rounds, ASLEEP_S + 5)


def test_a_round_that_computes_has_longer():
    rounds = Rounds()
    rounds.begin()
    lasts(rounds, COMPUTING_S, cpu_per_s=0.9)
    with pytest.raises(RuntimeError, match="and computes"):
        lasts(rounds, COMPUTING_S + 5, cpu_per_s=0.9)


def test_one_that_waits_for_requests_or_makes_round_after_round_is_well():
    rounds = Rounds()
    lasts(rounds, 10 * COMPUTING_S)
    rounds.begin()
    rounds.rest()
    lasts(rounds, 10 * COMPUTING_S)
    for at in range(1000):
        rounds.begin()
        rounds.check(at * 10.0, 0.0)


def test_the_time_of_a_thread_is_its_own():
    ready, over = threading.Event(), threading.Event()

    def work():
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        ready.set()
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    used = cpu_seconds(thread.ident)
    over.set()
    thread.join()
    assert 0.02 <= used < 1.0
