"""The rows of examples/tasks: one command runs them, each says what counts as good, the quickest is as good as that."""

from __future__ import annotations

import asyncio
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
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    from running import Runner

    return Runner(FOLDER, "row")


def test_every_row_is_whole_and_its_page_names_it(runner: Any) -> None:
    rows = [folder.name for folder in FOLDER.iterdir() if (folder / "spec.yaml").is_file()]
    assert sorted(rows) == runner.names()
    page = (FOLDER / "README.md").read_text()
    for name in rows:
        expect = runner.expected(name)
        assert f"`{name}`" in page or f"`{name}/" in page
        assert (
            all(part.get("at_least", part.get("at_most")) > 0 for part in expect["parts"].values())
            and 0 < expect["minutes"] <= 5
        )
        assert {file.name for file in (FOLDER / name).iterdir()} >= {"prepare.py", "measure.py"}
        for spec in load((FOLDER / name / "spec.yaml").read_text(), f"{name}/spec.yaml"):
            assert spec.name.split("-")[0] == name.replace("_", "-").split("-")[0]


class Alone:
    """A client of the model that was trained in this process, behind a replica's server."""

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


class Painting:
    """A client of the app that draws what was learnt in this process."""

    def __init__(self, out: Path) -> None:
        from workloads.apps.painter import Painter

        self._painter = Painter(model=str(next(out.rglob("drawing.json")).parent))

    def __call__(self) -> Painting:
        return self

    def chat(self, name: str) -> Painting:
        return self

    def post(self, body: Any, path: str) -> Any:
        assert path in self._painter.routes
        return self._painter(body)


def measured(
    row: str, train: Any, client: Any, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """What measure.py prints, asked of `client(out)` once `train(spec)` has run with the data of prepare.py."""
    for module in ("prepare", "measure"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    place = out / row
    place.mkdir()
    for file in ("prepare.py", "measure.py"):
        (place / file).write_text((FOLDER / row / file).read_text())
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.chdir(place)
    runpy.run_path(str(place / "prepare.py"), run_name="__main__")
    spec = load((FOLDER / row / "spec.yaml").read_text())[0].dump()
    with enter(Context.alone(out / "out", spec=spec)):
        train(spec)
    monkeypatch.setattr(llmsched, "Client", client(out / "out"))
    capsys.readouterr()
    runpy.run_path(str(place / "measure.py"), run_name="__main__")
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_row_of_images_is_as_good_as_it_says(
    runner: Any, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one process, from the data to the answers of a replica's model."""
    pytest.importorskip("sklearn")
    from workloads.finetune import loop

    [found] = measured(
        "see", lambda _: loop.run(), lambda out: Alone(out, "image-classification"), tmp_path, monkeypatch, capsys
    )
    assert found["number"] >= runner.expected("see")["parts"][""]["at_least"] > found["baseline"]


def test_the_row_of_drawing_is_as_good_as_it_says(
    runner: Any, alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    from workloads.loops import drawing

    found = measured(
        "draw", lambda spec: drawing.loop(spec["train"]["config"]), Painting, tmp_path, monkeypatch, capsys
    )
    wanted = runner.expected("draw")["parts"]
    assert [each["part"] for each in found] == [*wanted]
    assert all(each["number"] >= wanted[each["part"]]["at_least"] for each in found)
