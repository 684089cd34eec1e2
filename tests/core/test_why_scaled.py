"""Why an endpoint wants another number of replicas, as it is told."""

from __future__ import annotations

from dataclasses import replace

from test_portions import passes, work, world

from llmsched.core.decisions import Scale
from llmsched.core.facts import LoadObserved, Submitted, Tick
from llmsched.core.render import text
from llmsched.core.workload import Autoscaling

HALF_PAST, LATER = 1800.0, 2700.0  # Unix time


def test_bounds_by_cron_are_told_as_such_and_load_within_them_as_load() -> None:
    knobs = Autoscaling(1.0, upscale_delay_s=0.0, bounds=(("30 0 * * *", 2, 2), ("45 0 * * *", 1, 3)))
    state = world(gpus=3)
    passes(state, [Submitted(1.0, replace(work("eta", "serve", 1), min_replicas=1, max_replicas=3, autoscaling=knobs))])
    told = [
        (decision.replicas, text(decision.why))
        for fact in (Tick(HALF_PAST), Tick(LATER), LoadObserved(LATER + 1, "eta", 3.0, 0.0))
        for made in passes(state, [fact])
        for decision in made
        if isinstance(decision, Scale) and decision.why is not None and decision.why.code != "scale.side"
    ]
    assert told == [(2, "its bounds of this time are 2 to 2"), (3, "load asks for 3")]
