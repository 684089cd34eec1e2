"""One run in a tracker for one run of a workload, with the id that all of its attempts get, and its true end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmsched.runtime.storage import Storage
from llmsched.runtime.tracking import Tracking


class Server(ThreadingHTTPServer):
    """The part of MLflow's REST API that is asked; a run is {"run_id", "status", ...}."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.statuses: list[str] = []
        self.authorizations: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Request(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.partition("experiment_name=")[2]
        found = self.server.experiments.get(name)
        self._say(404 if found is None else 200, {"experiment": {"experiment_id": found}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.authorizations.add(self.headers["authorization"])
        match self.path.removeprefix("/api/2.0/mlflow/"):
            case "experiments/create":
                self.server.experiments[body["name"]] = "7"
                self._say(200, {"experiment_id": "7"})
            case "runs/create":
                run = f"run-{len(self.server.runs)}"
                self.server.runs[run] = body
                self._say(200, {"run": {"info": {"run_id": run}}})
            case "runs/update":
                self.server.runs[body["run_id"]] |= body
                self.server.statuses.append(body["status"])
                self._say(200, {})

    def _say(self, status: int, answer: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def attempt(
    folder: Path, envs: dict[str, str] | None = None, gang: str = "tune/0", there: Any = None, spec: Any = None
) -> Tracking:
    order = {"gang": gang, "workload": gang[:-2], "spec": {"name": "tune", **(spec or {})}, "envs": envs or {}}
    return Tracking(order, Storage.at(folder), there or (lambda function, *words, **_: function(*words)))


def test_all_attempts_of_a_run_get_the_same_ids_and_another_run_gets_others(tmp_path: Path) -> None:
    first, again, other = (attempt(tmp_path, gang=gang).begin() for gang in ("tune/0", "tune/0", "tune@2/0"))
    assert first == again and first["WANDB_RUN_ID"] != other["WANDB_RUN_ID"]
    assert first["WANDB_RESUME"] == "allow"
    assert first["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tune/0/tensorboard")
    assert "MLFLOW_RUN_ID" not in first  # nobody asks for it


def test_what_the_spec_sets_wins(tmp_path: Path, server: Server) -> None:
    mine = {"WANDB_RUN_ID": "mine", "MLFLOW_RUN_ID": "theirs", "MLFLOW_TRACKING_URI": server.url}
    found = attempt(tmp_path, mine).begin()
    assert not found.keys() & mine.keys() and server.runs == {}


def test_mlflow_has_one_run_whose_status_is_that_of_the_work(tmp_path: Path, server: Server) -> None:
    envs = {"MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_NAME": "sft", "MLFLOW_TRACKING_TOKEN": "secret"}
    for outcome, asked in (("released", "preempt"), ("failed", ""), ("released", "stop"), ("succeeded", "")):
        one = attempt(tmp_path, envs)
        assert one.begin()["MLFLOW_RUN_ID"] == "run-0"
        one.end(outcome, asked)
    assert server.statuses[1::2] == ["SCHEDULED", "FAILED", "KILLED", "FINISHED"]
    assert server.statuses[::2] == ["RUNNING"] * 4
    assert server.runs["run-0"]["run_name"] == "tune" and server.runs["run-0"]["experiment_id"] == "7"
    assert server.authorizations == {"Bearer secret"}


MLFLOW = """
import json
import os


class MlflowClient:
    def __init__(self):
        self.file = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
        self.runs = json.load(open(self.file)) if os.path.exists(self.file) else []

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return name

    def create_run(self, experiment, run_name):
        self.runs.append([experiment, run_name])
        self.write()
        info = type("Info", (), {"run_id": f"run-{len(self.runs) - 1}"})
        return type("Run", (), {"info": info})

    def update_run(self, run, status):
        self.runs[int(run[4:])].append(status)
        self.write()

    def set_terminated(self, run, status, end_time):
        self.update_run(run, status)

    def write(self):
        json.dump(self.runs, open(self.file, "w"))
"""


def test_a_store_without_a_server_is_told_by_mlflow_s_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is a stand-in with its public names; a run with the real one is as it is here."""
    (tmp_path / "mlflow.py").write_text(MLFLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    train = {"train": {"training_args": {"report_to": ["mlflow"]}}}
    for outcome, asked in (("released", "preempt"), ("succeeded", "")):
        one = attempt(tmp_path, spec=train)
        found = one.begin()
        assert found["MLFLOW_RUN_ID"] == "run-0"
        one.end(outcome, asked)
    file = found["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")  # beside its other results, where none is named
    assert file == str(tmp_path / "tune/0/mlflow.db")
    assert json.loads(Path(file).read_text()) == [["Default", "tune", "RUNNING", "SCHEDULED", "RUNNING", "FINISHED"]]


def test_a_tracker_that_does_not_answer_costs_the_work_nothing(tmp_path: Path, capsys: Any) -> None:
    envs = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD": "secret"}
    one = attempt(tmp_path, envs)
    assert "MLFLOW_RUN_ID" not in one.begin()
    one.end("succeeded", "")
    said = capsys.readouterr().out
    assert "MLflow: " in said and "secret" not in said
    (tmp_path / "tune/0/tracking.json").write_text("[]")  # somebody's work wrote it
    assert attempt(tmp_path).begin()["WANDB_RUN_ID"]


def test_only_what_is_of_mlflow_travels_and_it_is_asked_where_the_work_runs(tmp_path: Path) -> None:
    asked: list[Any] = []
    envs = {"MLFLOW_TRACKING_URI": "https://example.org", "HF_TOKEN": "secret"}
    attempt(tmp_path, envs, there=lambda function, *words: (asked.append(words), "r")[1]).begin()
    assert asked == [({"MLFLOW_TRACKING_URI": "https://example.org"}, "", "tune", {"status": "RUNNING"})]
