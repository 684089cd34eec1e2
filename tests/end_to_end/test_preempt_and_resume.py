"""examples/04 as its README runs it, on real Ray: urgent work takes the GPUs, the fine-tune saves and goes on there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from ray_home import PREEMPTION, SharedHome
from waiting import SLACK

from llmsched.client import Client

pytestmark = pytest.mark.ray


def test_urgent_work_takes_the_place_of_a_fine_tune_which_goes_on_at_the_step_it_had_reached(
    shared: SharedHome, tmp_path: Path
) -> None:
    home = shared
    shutil.copytree(PREEMPTION, tmp_path / PREEMPTION.name)
    text = (PREEMPTION / "spec.yaml").read_text()
    shorter = text.replace("{steps: 3000, save_every: 250,", "{steps: 800, save_every: 100,")
    assert shorter != text
    spec = tmp_path / PREEMPTION.name / "spec.yaml"
    spec.write_text(shorter)
    home.llmsched("apply", "-f", str(spec))
    with Client(home=home.folder) as client:
        next(event for event in client.events() if event.kind == "CheckpointPublished" and event.workload == "sine")

        (planned,) = client.plan(PREEMPTION / "urgent.yaml")
        client.apply(PREEMPTION / "urgent.yaml")
        next(event for event in client.events() if event.kind == "Bound" and event.workload == "urgent")
        why = home.llmsched("why", "sine")
        urgent, sine = client.wait("urgent", timeout_s=SLACK * 60), client.wait("sine", timeout_s=SLACK * 120)

    assert "sine/0 is preempted" in str(planned)
    assert "when urgent ends" in why and "Code: quota" in why
    assert (urgent.phase, sine.phase) == ("succeeded", "succeeded")
    first, second = (home.llmsched("logs", "sine", "--attempt", attempt) for attempt in "12")
    story = home.llmsched("story", "sine")
    (left,) = re.findall(r"saved step (\d+) and left", first)
    assert re.findall(r"begins after step (\d+)", second) == [left]  # not one step twice, not one left out
    assert f"checkpoint at step {left}" in story
    assert story.index("must make way for urgent") < story.rindex("starts") < story.rindex("succeeded")
