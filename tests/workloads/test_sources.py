"""Where models come from: each scheme finds its folder, and what cannot be loaded is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads import sources
from workloads.sources import BadInput, resolve_model


def model_at(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / weights).write_bytes(b"x")
    return folder


def test_a_folder_a_file_uri_and_a_run_all_lead_to_the_model(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "m")
    assert resolve_model(str(folder)) == folder
    assert resolve_model(f"file://{folder}") == folder
    assert resolve_model("run://sentiment", {"run://sentiment": str(folder)}) == folder


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    model_at(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_model("package:some_weights/model") == package / "model"
    with pytest.raises(BadInput, match="has no 'other'"):
        resolve_model("package:some_weights/other")
    with pytest.raises(BadInput, match="expected package:NAME/PATH"):
        resolve_model("package:some_weights/../../etc")
    with pytest.raises(BadInput, match="'not_there' is not installed"):
        resolve_model("package:not_there/model")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/no/such/folder", "no such file or folder"),
        ("run://sentiment", "has no result yet"),
        ("ftp://host/x", "cannot fetch ftp://"),
    ],
)
def test_what_is_not_there_is_named(uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        resolve_model(uri)


def test_offline_the_hub_is_its_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set"):
        resolve_model("hf://nobody/nothing-of-this-name")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pickled weights only, which can run code"):
        resolve_model(str(model_at(tmp_path / "m", "pytorch_model.bin")))


def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(BadInput, match=r"no config.json in .* \(found: notes.md\)"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"no \*.safetensors"):
        resolve_model(str(tmp_path))


def test_a_broken_gguf_is_refused_and_leaves_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    with pytest.raises(BadInput, match="cannot be read as a GGUF"):
        resolve_model(str(tmp_path / "broken.gguf"))
    assert [path for path in sources.cache_folder().iterdir() if not path.name.endswith(".lock")] == []
