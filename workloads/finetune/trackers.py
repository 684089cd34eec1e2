"""`report_to`: the numbers of a run in W&B, MLflow or TensorBoard, as one run there however often it is interrupted.

Which run that is the scheduler says, in the variables that these tools read. A step that an attempt repeats, because it
was lost before its checkpoint, is not written twice. Rank 0 alone writes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from llmsched.runtime.context import current
from llmsched.runtime.storage import LocalStorage, Storage
from workloads.sources import BadInput


class Tracker(NamedTuple):
    """`last` is the newest step that is known there."""

    log: Callable[[dict[str, float], int], object]
    close: Callable[[], object]
    last: int = 0


class Trackers:
    """`done` steps are done already: what was written of later ones counts no more where it can be taken back."""

    def __init__(self, names: Sequence[str], done: int) -> None:
        self._all = [_OPEN[name](done) for name in names]

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name.replace(".", "/") if "." in name else f"train/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for one in self._all if numbers and step else ():
            if step > one.last:
                one.log(numbers, step)

    def close(self) -> None:
        for one in self._all:
            one.close()


def _tensorboard(done: int) -> Tracker:
    writers = _library("tensorboardX", "tensorboard")
    folder = os.environ.get("TENSORBOARD_LOGGING_DIR", "runs")
    # the library names a file by second and host alone, so an attempt right after another would write over its file
    mine = f".{done:012d}.{uuid.uuid4().hex[:8]}"
    writer = writers.SummaryWriter(folder, purge_step=done + 1 if done else None, filename_suffix=mine)

    def log(numbers: dict[str, float], step: int) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()

    return Tracker(log, writer.close)


def _mlflow(done: int) -> Tracker:
    place = current().storage
    if "MLFLOW_TRACKING_URI" not in os.environ and not isinstance(Storage.at(place), LocalStorage):
        raise BadInput(
            f"report_to: mlflow: it keeps its runs in a database, which cannot lie with the results in {place}; name a "
            "server or another store with envs: {MLFLOW_TRACKING_URI: ...}"
        )
    mlflow = _library("mlflow", "mlflow")
    run = mlflow.start_run(run_id=os.environ.get("MLFLOW_RUN_ID"))
    known = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    last = max((one.step for one in known), default=0)
    return Tracker(lambda numbers, step: mlflow.log_metrics(numbers, step=step), lambda: None, last)  # others end it


def _wandb(done: int) -> Tracker:
    wandb = _library("wandb", "wandb")
    run = wandb.init()
    if not run.offline:
        return Tracker(lambda numbers, step: run.log(numbers, step=step), run.finish, max(0, run.step - 1))
    noted = _Noted(f"{current().gang}/wandb-step")  # offline it knows nothing of what other attempts have left

    def log(numbers: dict[str, float], step: int) -> None:
        run.log(numbers, step=step)
        noted.write(step)

    return Tracker(log, run.finish, noted.read())


class _Noted:
    """The newest step that any attempt has written."""

    def __init__(self, key: str) -> None:
        self._storage, self._key = Storage.at(current().storage), key

    def read(self) -> int:
        try:
            return int(self._storage.read_note(self._key))
        except (FileNotFoundError, ValueError):
            return 0

    def write(self, step: int) -> None:
        self._storage.write(self._key, str(step).encode())


_OPEN: dict[str, Callable[[int], Tracker]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}


def _library(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise BadInput(
            f"report_to: {name} is not installed on this node; ask for {module} in environment.pip"
        ) from None
