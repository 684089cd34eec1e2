"""Reservations of so many GPUs take theirs: once, and others only where reserved.py says so. Each, whether it takes
something or finds nothing, is looked at when its window opens and when it closes: what others take goes by that too."""

from __future__ import annotations

from llmsched.core.decisions import Assign
from llmsched.core.reservation import window
from llmsched.core.reserved import decided
from llmsched.core.scheduling_pass import Pass


def run(this: Pass) -> None:
    trial = this.trial
    if not trial.state.configuration.reservations:
        return
    for reservation in trial.state.configuration.reservations:
        for moment in window(reservation, trial.now) or ():
            this.plan.wake(moment)
    for name, taken in decided(trial).items():
        if trial.state.taken.get(name) != taken:
            trial.taken[name] = taken
            this.plan.decisions.append(Assign(name, taken))


def look_again(this: Pass) -> None:
    """Ask for another pass at once, if it will find something better for one of them after what this one decides."""
    if this.plan.decisions and this.state.configuration.reservations:
        known = {**this.state.taken, **this.trial.taken}
        better = any(known.get(name) != taken for name, taken in decided(this.trial).items())
        this.plan.asks_again = this.plan.asks_again or better
