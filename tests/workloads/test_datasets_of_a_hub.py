"""`hf://` data sets come through the library `datasets`; offline, out of its cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmsched.data.tasks import KINDS
from workloads.datasets import roles
from workloads.sources import BadInput

datasets = pytest.importorskip("datasets")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the library with one data set, as a download leaves it."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    folder = tmp_path / "org___films" / "default" / "0.0.0" / ("a" * 40)
    folder.mkdir(parents=True)
    rows.save_to_disk(tmp_path / "made")
    (tmp_path / "made" / "data-00000-of-00001.arrow").rename(folder / "films-train.arrow")
    split = {"name": "train", "num_examples": 2, "dataset_name": "films"}
    about = json.loads((tmp_path / "made" / "dataset_info.json").read_text())
    about |= {"splits": {"train": split}, "builder_name": "parquet", "dataset_name": "films", "config_name": "default"}
    (folder / "dataset_info.json").write_text(json.dumps({**about, "version": {"version_str": "0.0.0"}}))
    return tmp_path


def test_a_data_set_of_the_hub_is_read_with_the_names_of_its_labels(hub: Path) -> None:
    rows, _ = roles({"path": "hf://org/films", "split": "train"}, KINDS["sequence-classification"], {})
    assert list(rows) == [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    assert rows.class_names == {"label": ["bad", "good"]}
    assert str(rows.places[1]) == "row 2 of org/films (train)"


def test_one_that_cannot_be_had_says_so(hub: Path) -> None:
    with pytest.raises(BadInput, match="data set hf://org/nothing: "):
        roles({"path": "hf://org/nothing"}, KINDS["sequence-classification"], {})
