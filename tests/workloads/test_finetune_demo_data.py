"""The example's data: made from the installed packages, the same every time, held-out rows apart from training rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def module() -> Any:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "examples/01_fine_tune_and_serve/prepare.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def rows(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif(not list(Path(sys.prefix, "share/llmsched").glob("vader*")), reason="set-up downloads the reviews")
def test_the_data_is_balanced_repeatable_and_split_without_overlap(tmp_path: Path) -> None:
    files = module().prepare(tmp_path / "one")
    again = module().prepare(tmp_path / "two")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    train, test, dialogues = map(rows, files)
    assert (len(train), len(test)) == (8571, 600)
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert all(250 < count < 350 for count in Counter(row["label"] for row in test).values())
    assert [[turn["role"] for turn in row["messages"]] for row in dialogues] == [["user", "assistant"]] * len(dialogues)


def test_without_the_download_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(SystemExit, match="holds the film reviews. `llmsched demo` fetches it"):
        module().prepare(tmp_path / "data")
    archive = tmp_path / "share/llmsched/vaderSentiment-3.3.2.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the file expected"):
        module().prepare(tmp_path / "data")
