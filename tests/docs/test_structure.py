"""The checks of tests/structure.py find what they are for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import structure  # noqa: E402


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    monkeypatch.setattr(structure, "CALLED_BY_OTHERS", {"called": "a library"})
    (tmp_path / "llmsched").mkdir()
    return tmp_path


def test_a_name_that_nothing_uses_is_found_and_one_that_is_looked_up_by_name_is_not(tree: Path) -> None:
    (tree / "llmsched" / "one.py").write_text('def dead(): "dead"\ndef named(): ...\ndef called(): ...\n')
    (tree / "llmsched" / "two.py").write_text('TABLE = {"a": "one:named"}\nprint(TABLE)\n')
    assert list(structure.dead_names()) == ["llmsched/one.py:1: nothing uses function dead"]


def test_a_name_that_is_allowed_in_vain_is_found(tree: Path) -> None:
    (tree / "llmsched" / "one.py").write_text("def called(): ...\ncalled()\n")
    assert list(structure.dead_names()) == ["structure.py: called is used or gone; take it out of CALLED_BY_OTHERS"]


def test_a_file_beyond_500_lines_is_found_and_one_that_is_allowed_to_be_longer_only_shrinks(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structure, "LONGER", {"b.py": 600, "c.py": 600})
    for name, lines in (("a.py", 501), ("b.py", 601), ("c.py", 500), ("d.py", 500)):
        (tree / name).write_text("x\n" * lines)
    found = list(structure.too_long(["a.py", "b.py", "c.py", "d.py"]))
    assert [line.partition(" lines")[0] for line in found] == ["a.py: 501", "b.py: 601", "c.py: 500"]
    assert "take it out of LONGER" in found[2]


def test_a_wait_that_a_slow_machine_would_miss_is_found_and_a_pause_or_a_long_one_is_not(tree: Path) -> None:
    (tree / "tests").mkdir()
    short = ["it.wait(5)", "run(timeout=30)", "wait_for(it, 10)", "it.wait('a', timeout_s=10)", "asyncio.timeout(20)"]
    right = ["it.wait(0.1)", "run(timeout=PATIENCE_S)", "wait_for(it, 100)", "it.result()", "', '.join(words)"]
    (tree / "tests" / "one.py").write_text("\n".join([*short, *right]))
    found = list(structure.short_waits(["tests/one.py", "tests/gone.py"]))
    assert [line.split(":")[1] for line in found] == ["1", "2", "3", "4", "5"]
