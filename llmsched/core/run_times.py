"""How long an attempt lasts, and when it lets go, as far as anybody can say.

What is known: a declared limit, or what is left of the estimated run time, whichever comes first (`known_end`). Without
either a gang may run for ever, as far as somebody is concerned who would start beside a planned start. A planned start
itself needs an end of everybody who holds something, so there it is presumed (`presumed_end`): as long as the longest
of the last runs took and SLACK of that, counted from its start; one that has run longer, twice that, and so on. So it
moves only when it has passed. Without the slack the next of many that are alike passed it again and again by what it
takes to launch one, and with it went the place that was held. Who starts later is presumed to end later, so nobody that
starts after a plan was made moves it.
"""

from __future__ import annotations

from math import inf

from llmsched.core.plan import Plan
from llmsched.core.records import GangState, expected_end, size_of
from llmsched.core.state import State
from llmsched.core.workload import Placement

PRESUMED_S = 6 * 3600.0  # the longest run, before any has ended
SLACK = 0.25  # of the longest run, beside it
LEAST_S = 1.0  # that an attempt lasts from now on, whether it runs or begins, whatever was estimated


def runtime_s(state: State, gang: GangState, size: int, placement: Placement = (), fastest: bool = False) -> float:
    """How long an attempt started now would run at `size` where `placement` says; while that is open on the slowest of
    its options, or on the fastest. Infinite when nobody said."""
    spec = gang.spec
    guess = inf
    if gang.work_left is not None:
        options = [placement[0].option] if placement else range(len(spec.groups[0].options))
        speeds = [state.history.speed(spec, size, option) for option in options]
        guess = gang.work_left / max(max(speeds) if fastest else min(speeds), 1e-9)
    if spec.max_runtime_s is not None:
        guess = min(guess, max(spec.max_runtime_s - gang.served_s, 0.0))
    return max(guess, LEAST_S)


def ends_by(gang: GangState, at: float, plan: Plan) -> bool:
    """Whether a gang that holds something is expected to let go by then."""
    return expected_end(gang) <= at and not plan.has_come(at - LEAST_S)


def presumed_end(state: State, gang: GangState) -> float:
    """The same, with a guess where nothing is known; infinite for a replica, which ends when somebody says so."""
    end = expected_end(gang)
    if end < inf or gang.spec.kind == "serve" or gang.launched_at is None:
        return max(end, state.now + LEAST_S)
    lasts, ran = longest_s(state), state.now - gang.launched_at
    while lasts <= ran:
        lasts *= 2
    return max(gang.launched_at + lasts, state.now + LEAST_S)


def presumed_s(state: State, gang: GangState, placement: Placement) -> float:
    """How long it is presumed to hold `placement` when it starts there now: what `presumed_end` says from then on."""
    lasts = runtime_s(state, gang, size_of(gang.spec, placement), placement)
    return lasts if lasts < inf or gang.spec.kind == "serve" else longest_s(state)


def longest_s(state: State) -> float:
    longest = state.history.longest_s
    return longest * (1 + SLACK) if longest else PRESUMED_S
