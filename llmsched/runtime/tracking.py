"""One run in a tracker for one run of a workload, however often it is preempted, moved or tried again.

The supervisor hands out variables that the tools read by themselves: W&B's run id with `allow` to go on, MLflow's run
id, and TensorBoard's folder. W&B takes the id that it is given. MLflow gives its own, so the first attempt has one made
by the tracking server or in the store (`mlflow_store.py`; a user's own MLFLOW_RUN_ID stands) and tells it at each end
how it ended: a tool knows only that its process left, not that the work goes on. What the spec's `envs` set wins. A
tracker that does not answer costs nothing but its run.

    <gang>/tracking.json    {"id", "mlflow"}: the same for all attempts
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from llmsched import sanitize
from llmsched.runtime import mlflow_store
from llmsched.runtime.mlflow_store import EXPERIMENT
from llmsched.runtime.packages import BUILD_WITHIN_S
from llmsched.runtime.storage import LocalStorage, Storage

_ANSWERS_WITHIN_S = 10.0
_MLFLOW_ID = "MLFLOW_RUN_ID"
_STORE = "MLFLOW_TRACKING_URI"
_ITS_OWN = ("MLFLOW_", "DATABRICKS_")
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED"}
_GOES_ON = ("preempt", "resize")  # ways to be asked to leave after which it comes back


class Tracking:
    """Of one gang. `order` is the LaunchOrder as JSON data. `there` calls a function where worker 0 runs: the address
    of a tracking server is the user's, and nobody else's rights go with the call."""

    def __init__(self, order: Mapping[str, Any], storage: Storage, there: Callable[..., Any]) -> None:
        self._order, self._storage, self._there = order, storage, there
        self._key = f"{order['gang']}/tracking.json"
        self._mlflow = self._store = ""

    def begin(self) -> dict[str, str]:
        """The variables of this attempt that its spec does not set itself. Raises StorageError."""
        envs, known = self._order["envs"], self._known()
        folder = self._storage.uri_of(f"{self._order['gang']}/tensorboard")
        found = {
            "WANDB_RUN_ID": known["id"],
            "WANDB_RESUME": "allow",
            "WANDB_NAME": self._name,
            "TENSORBOARD_LOGGING_DIR": folder.removeprefix("file://"),
        }
        if self._wants_mlflow and _STORE not in envs and isinstance(self._storage, LocalStorage):
            mine = self._storage.path(f"{self._order['gang']}/mlflow.db")
            found[_STORE] = f"sqlite:///{mine.absolute()}"
        self._store = envs.get(_STORE) or found.get(_STORE, "")
        if self._store and _MLFLOW_ID not in envs:
            self._mlflow = self._tell(known.get("mlflow", ""), "RUNNING")
            if self._mlflow:
                found[_MLFLOW_ID] = self._mlflow
                self._storage.write(self._key, json.dumps({**known, "mlflow": self._mlflow}).encode())
        return {name: text for name, text in found.items() if name not in envs}

    def end(self, outcome: str, asked: str) -> None:
        """How the attempt ended; `asked` to leave, or "". What only makes room goes on: it is scheduled again."""
        if self._mlflow:
            goes_on = "SCHEDULED" if asked in _GOES_ON else "KILLED"
            self._tell(self._mlflow, _STATUS.get(outcome, goes_on), end_time=int(time.time() * 1000))

    @property
    def _wants_mlflow(self) -> bool:
        arguments = (self._order["spec"].get("train") or {}).get("training_args") or {}
        return "mlflow" in (arguments.get("report_to") or ())

    @property
    def _name(self) -> str:
        return str(self._order["spec"].get("name", self._order["workload"]))

    def _known(self) -> dict[str, str]:
        """What was written first: by an attempt before this one, or now."""
        new = {"id": uuid.uuid4().hex[:12]}
        if self._storage.write_if_absent(self._key, json.dumps(new).encode()):
            return new
        try:
            found = sanitize.loads(self._storage.read_note(self._key))
            return {"id": str(found["id"]), **({"mlflow": str(found["mlflow"])} if "mlflow" in found else {})}
        except (ValueError, TypeError, KeyError):  # the work may write there, too
            self._storage.write(self._key, json.dumps(new).encode())
            return new

    def _tell(self, run: str, status: str, **more: Any) -> str:
        """The run's id; "" when the server does not answer."""
        given = {name: text for name, text in self._order["envs"].items() if name.startswith(_ITS_OWN)}
        envs, about = {**given, _STORE: self._store}, {"status": status, **more}
        try:
            if self._store.startswith(("http://", "https://")):
                return str(self._there(tell_mlflow, envs, run, self._name, about))
            spec = {name: self._order["spec"].get(name) for name in ("environment", "secrets")}
            order = {"spec": spec, "workdir": self._order.get("workdir"), "envs": envs}
            return str(self._there(mlflow_store.tell, order, run, self._name, about, within_s=BUILD_WITHIN_S))
        except Exception as error:  # whatever Ray says of it, too: a tracker is not worth the work
            print(f"{self._order['gang']}: MLflow: {sanitize.first_line(error)}", flush=True)
            return ""


def tell_mlflow(envs: Mapping[str, str], run: str, name: str, about: Mapping[str, Any]) -> str:
    """Change a run of MLflow, or make one of this name when `run` is ""; returns its id. `envs` say which server, which
    experiment and who asks, as MLflow's own client has it. Raises OSError, ValueError, KeyError."""
    server = _Mlflow(envs)
    if not run:
        experiment = envs.get("MLFLOW_EXPERIMENT_ID") or server.experiment(
            envs.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        )
        wanted = {"experiment_id": experiment, "run_name": name, "start_time": int(time.time() * 1000)}
        run = str(server.post("runs/create", wanted)["run"]["info"]["run_id"])
    server.post("runs/update", {"run_id": run, **about})
    return run


class _Mlflow:
    """What we ask of its REST API, of version 2.0."""

    def __init__(self, envs: Mapping[str, str]) -> None:
        self._url = f"{envs['MLFLOW_TRACKING_URI'].rstrip('/')}/api/2.0/mlflow/"
        self._headers = {"content-type": "application/json"}
        if token := envs.get("MLFLOW_TRACKING_TOKEN"):
            self._headers["authorization"] = f"Bearer {token}"
        elif user := envs.get("MLFLOW_TRACKING_USERNAME"):
            pair = f"{user}:{envs.get('MLFLOW_TRACKING_PASSWORD', '')}"
            self._headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"

    def experiment(self, name: str) -> str:
        """The id of the one of this name, which is made where there is none."""
        try:
            found = self._call(f"experiments/get-by-name?{urllib.parse.urlencode({'experiment_name': name})}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return str(self.post("experiments/create", {"name": name})["experiment_id"])
        return str(found["experiment"]["experiment_id"])

    def post(self, what: str, body: Mapping[str, Any]) -> Any:
        return self._call(what, json.dumps(body).encode())

    def _call(self, what: str, body: bytes | None = None) -> Any:
        asked = urllib.request.Request(self._url + what, data=body, headers=self._headers)
        with urllib.request.urlopen(asked, timeout=_ANSWERS_WITHIN_S) as answer:
            return sanitize.loads(answer.read())
