"""Reservations of so many GPUs take theirs: once, and others only where reserved.py says so."""

from __future__ import annotations

from llmsched.core.decisions import Assign
from llmsched.core.scheduling_pass import Pass
from llmsched.core.windows import Windows


def run(this: Pass) -> None:
    trial = this.trial
    for name, taken in Windows(trial, anew=True).taken.items():
        if trial.state.taken.get(name) != taken:
            trial.taken[name] = taken
            this.plan.decisions.append(Assign(name, taken))


def look_again(this: Pass) -> None:
    """Ask for another pass at once, if it will find something better for one of them after what this one decides."""
    if this.plan.decisions and this.state.configuration.reservations:
        known = Windows(this.trial).taken
        this.plan.asks_again = this.plan.asks_again or Windows(this.trial, anew=True).taken != known
