"""The rows of examples/tasks: one command runs them, each says what counts as good, the quickest is as good as that."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llmsched
from llmsched.runtime import Context, enter
from llmsched.spec.load import load

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tasks"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("run_rows", FOLDER / "run.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_every_row_is_whole_and_its_page_names_it(runner: Any) -> None:
    rows = [folder.name for folder in FOLDER.iterdir() if (folder / "spec.yaml").is_file()]
    assert sorted(rows) == runner.names()
    page = (FOLDER / "README.md").read_text()
    for name in rows:
        expect = runner.expected(name)
        assert f"`{name}`" in page or f"`{name}/" in page
        assert all(part["at_least"] > 0 for part in expect["parts"].values()) and 0 < expect["minutes"] <= 5
        assert {file.name for file in (FOLDER / name).iterdir()} >= {"prepare.py", "measure.py"}
        for spec in load((FOLDER / name / "spec.yaml").read_text(), f"{name}/spec.yaml"):
            assert spec.name.split("-")[0] == name.replace("_", "-").split("-")[0]


SPEC = """\
name: tiny
kind: task
resources: {accelerators: "A100:1"}
task: {run: ["true"]}
"""
MEASURE = """\
import json
from llmsched import Client
print(json.dumps({"part": "ends", "number": float(Client().status("tiny").phase == "succeeded"), "baseline": 0.5}))
"""


def row(folder: Path, name: str, prepare: str = "") -> None:
    (folder / name).mkdir()
    parts = {"ends": {"metric": "it ends", "at_least": 0.9, "baseline": "a coin"}}
    expect = {"parts": parts, "minutes": 5, "up": "--fake-nodes 1x1:A100"}
    files = {"spec.yaml": SPEC, "measure.py": MEASURE, "prepare.py": prepare, "expect.yaml": json.dumps(expect)}
    for file, text in files.items():
        (folder / name / file).write_text(text)


def test_rows_that_miss_or_fail_end_with_1_and_the_others_are_run_all_the_same(
    runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "HERE", tmp_path)
    row(tmp_path, "broken", "raise SystemExit('no such luck')")
    row(tmp_path, "good")
    assert runner.main(["all", "--json"]) == 1
    said = capsys.readouterr()
    broken, good = json.loads(said.out)
    assert (broken["passed"], broken["failed"]) == (False, "prepare.py: no such luck")
    assert (good["number"], good["baseline"], good["baseline_is"], good["passed"]) == (1.0, 0.5, "a coin", True)
    lines = runner.table([broken, good, {**good, "row": "bad", "at_least": 1.5, "passed": False}]).splitlines()
    assert [line.split("|")[0].strip() for line in lines] == ["row", "broken", "good/ends", "bad"]
    assert "1 (expected 1.5)" in lines[3] and "0.5: a coin" in lines[2]
    with pytest.raises(SystemExit):
        runner.main(["gud"])
    assert "no row 'gud'; there are broken, good" in capsys.readouterr().err


class Alone:
    """A client of the model that was trained in this process."""

    def __init__(self, out: Path, task: str) -> None:
        from workloads.inference.replica import server_for

        folder = next(out.rglob("model.safetensors")).parent
        self._server = server_for({"model": {"source": str(folder)}, "task": task}, folder, 4, 0)

    def __call__(self) -> Alone:
        return self

    def chat(self, name: str) -> Alone:
        return self

    def classify(self, inputs: list[Any]) -> list[Any]:
        said = asyncio.run(self._server.call("classify", {"model": "see", "input": inputs}, None))
        return list(said["data"])


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.timeout(240)
def test_the_row_of_images_is_as_good_as_it_says(
    runner: Any, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, from the data to the answers of a replica's model."""
    pytest.importorskip("sklearn")
    from workloads.finetune import loop

    for module in ("prepare", "measure"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    place = tmp_path / "see"
    place.mkdir()
    for file in ("prepare.py", "measure.py"):
        (place / file).write_text((FOLDER / "see" / file).read_text())
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    runpy.run_path(str(place / "prepare.py"), run_name="__main__")
    spec = load((FOLDER / "see" / "spec.yaml").read_text())[0].dump()
    with enter(Context.alone(tmp_path / "out", spec=spec)):
        loop.run()
    monkeypatch.setattr(llmsched, "Client", Alone(tmp_path / "out", "image-classification"))
    capsys.readouterr()
    runpy.run_path(str(place / "measure.py"), run_name="__main__")
    found = json.loads(capsys.readouterr().out)
    assert found["number"] >= runner.expected("see")["parts"][""]["at_least"] > found["baseline"]
