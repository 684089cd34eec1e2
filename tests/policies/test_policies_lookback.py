"""The load of the last minute: chance evens out, a jump counts at once, and so does that nobody asks any more."""

import math
import random

from llmsched.policies.autoscaling.lookback import PANIC_S, STABLE_S, Lookback


def test_a_steady_load_is_what_it_is_and_noise_evens_out():
    chance, seen, load = random.Random(1), Lookback(0.0), []
    for second in range(1, 400):
        seen.set(100 + chance.gauss(0, 10), float(second))
        load.append(seen.load(float(second)))
    spread = math.sqrt(sum((each - 100) ** 2 for each in load[100:]) / len(load[100:]))
    assert spread < 2.5, "of 10"


def test_a_jump_counts_at_once_a_fall_after_a_minute_and_silence_after_seconds():
    seen = Lookback(0.0)
    for second in range(200):
        seen.set(10.0, float(second))
        assert seen.load(float(second)) == 10.0 or second == 0
    for second in range(200, 200 + int(PANIC_S) + 1):
        seen.set(100.0, float(second))
        seen.load(float(second))
    assert seen.load(200 + PANIC_S) == 100.0
    falls = {}
    for second in range(207, 400):
        seen.set(100.0 if second < 270 else 50.0, float(second))
        falls[second] = seen.load(float(second))
    assert falls[272] > 95, "it does not fall at once"
    assert falls[270 + int(STABLE_S) + 1] == 50.0
    seen.set(0.0, 400.0)
    silence = [seen.load(400.0 + second) for second in range(1, 10)]
    assert silence[0] > 40 and silence[-1] == 0.0


def test_what_it_keeps_is_bounded_by_the_minute():
    seen = Lookback(0.0)
    for tick in range(100_000):
        seen.set(tick % 7, tick / 100)
        seen.load(tick / 100)
    assert len(seen._points) <= STABLE_S + 2
