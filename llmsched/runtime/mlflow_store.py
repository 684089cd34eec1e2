"""A run in a store of MLflow that no server is in front of (sqlite:, postgresql:, databricks ...).

Only MLflow's own library writes there. The workload brings it, so it is asked in a process of its own, with the
packages that the workload asks for. Start at `tell`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from llmsched import sanitize
from llmsched.runtime import packages
from llmsched.runtime.process import prepare_child

ANSWERS_WITHIN_S = 180.0  # it loads for some seconds, and makes its tables when it is the first
EXPERIMENT = "Default"  # MLflow's own
_MAIN = "from llmsched.runtime.mlflow_store import main; main()"


def tell(order: dict[str, Any], run: str, name: str, about: Mapping[str, Any]) -> str:
    """As `tracking.tell_mlflow`. `order` is what of a LaunchOrder says which packages and which store. Raises
    RuntimeError, OSError, subprocess.TimeoutExpired, and what `packages.provide` does."""
    extra = packages.provide(order, None)
    python = sys.executable if extra is None else str(extra.bin / "python")
    done = subprocess.run(
        [python, "-P", "-c", _MAIN, json.dumps([run, name, dict(about)])],
        env={**os.environ, **order["envs"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ANSWERS_WITHIN_S,
        preexec_fn=prepare_child,
        check=False,
    )
    if done.returncode:
        lines = sanitize.unicode(done.stderr.decode(errors="replace")).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"it exited with {done.returncode}")
    return done.stdout.decode().split()[-1]


def main() -> None:
    """In that process: prints the id of the run."""
    import mlflow  # type: ignore[import-not-found, unused-ignore]

    run, name, about = json.loads(sys.argv[1])
    client = mlflow.MlflowClient()
    if not run:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
        if not experiment:
            wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
            known = client.get_experiment_by_name(wanted)
            experiment = known.experiment_id if known else client.create_experiment(wanted)
        run = client.create_run(experiment, run_name=name).info.run_id
    if "end_time" in about:
        client.set_terminated(run, about["status"], about["end_time"])
    else:
        client.update_run(run, status=about["status"])
    sys.stdout.write(f"{run}\n")
