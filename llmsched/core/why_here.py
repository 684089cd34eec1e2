"""Why a waiting gang starts now, and where it does: the words that its launch is told with."""

from __future__ import annotations

from llmsched.core.message import Message, say
from llmsched.core.records import GangState, size_of
from llmsched.core.spread import lies_apart
from llmsched.core.trial import Trial
from llmsched.core.workload import Placement


def why_here(trial: Trial, gang: GangState, placement: Placement) -> Message:
    """Before the trial has it."""
    if trial.nomination(gang) is not None:
        return say("launch.promised")
    if gang.spec.is_elastic():
        return say("launch.part", size=size_of(gang.spec, placement), most=gang.spec.max_size)
    is_apart = lies_apart(trial, gang, placement)
    if is_apart is None:
        return say("launch.whole")
    return say("launch.apart") if is_apart else say("launch.beside")
