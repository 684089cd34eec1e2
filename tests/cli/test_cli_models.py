"""From a training to its next version, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from live import Live

from llmsched.cli.main import cli
from llmsched.executors.fake import Script
from llmsched.spec import http_models

FILE = """\
name: tones
kind: train
train:
  base_model: package:models/tiny
  task: sequence-classification
  datasets: [{path: /data/tones.csv}]
---
name: tone
kind: serve
serve: {model: {source: run://tones}, task: sequence-classification}
"""


def test_a_training_makes_versions_and_its_endpoint_follows(
    controller: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"LLMSCHED_ADDRESS": controller.url, "LLMSCHED_TOKEN": controller.token, "COLUMNS": "100"}

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, list(words), env=env)
        assert result.exit_code == 0, result.output
        return result.stdout

    controller.executor.cluster.script = lambda order: (
        Script(runs_for_s=None)
        if order.kind == "serve"
        else Script(runs_for_s=0.01, steps=1, metrics={"eval.accuracy": 0.75})
    )
    Path("spec.yaml").write_text(FILE)
    run("apply", "-f", "spec.yaml", "--wait")
    assert "unchanged" in run("apply", "-f", "spec.yaml")
    again = run("apply", "-f", "spec.yaml", "--again", "--wait")
    assert "tones@2: submitted" in again and "tone: changed, rolls out" in again and "reads: tones -> tones@2" in again
    listed = http_models.ModelList.model_validate_json(run("models", "--json")).models
    assert [one.source for one in listed if one.name == "tones"] == ["model://tones@2", "model://tones@1"]
    assert "0.75" in run("models")
    details = run("models", "tones")
    for said in ("model://tones@2", "package:models/tiny", "/data/tones.csv", "eval.accuracy 0.75", "run tones@2"):
        assert said in details
    missing = CliRunner().invoke(cli, ["models", "nothing"], env=env)
    assert missing.exit_code == 3 and "tones" in missing.output
    for name in ("tone", "tones"):
        CliRunner().invoke(cli, ["cancel", name], env=env)
