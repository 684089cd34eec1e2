"""How the demo ends when somebody ends it. The story itself is told on a real Ray, in tests/end_to_end."""

from __future__ import annotations

import os
import signal

import pytest

from llmsched.cli import demo
from llmsched.spec.load import load


def test_the_short_demo_is_the_example_with_fewer_steps() -> None:
    text = (demo.EXAMPLE / "spec.yaml").read_text()
    whole, short = load(text, "spec.yaml"), load(demo.shortened(text), "spec.yaml")
    assert [one.name for one in short] == [one.name for one in whole]
    for before, after in zip(whole, short, strict=True):
        wanted = before.dump()
        if before.name in demo.SHORT_STEPS:
            wanted["train"]["training_args"]["max_steps"] = demo.SHORT_STEPS[before.name]
            assert after.dump() != before.dump()
        assert after.dump() == wanted


@pytest.mark.parametrize("name", demo.SIGNALS)
def test_any_way_of_ending_the_demo_is_an_interruption_that_it_cleans_up_after(name: signal.Signals) -> None:
    before = signal.getsignal(name)
    with pytest.raises(KeyboardInterrupt), demo.signals(demo._interrupt):
        os.kill(os.getpid(), name)
    assert signal.getsignal(name) is before


@pytest.mark.parametrize("name", demo.SIGNALS)
def test_nothing_interrupts_the_clean_up(name: signal.Signals) -> None:
    cleaned = False
    with demo.signals(signal.SIG_IGN):
        os.kill(os.getpid(), name)
        cleaned = True
    assert cleaned
