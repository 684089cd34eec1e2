"""What we use of Ray without its promise is still as it was. Fails when Ray changes, before a cluster does."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.train import RunConfig
from waiting import PATIENCE_S

import llmsched

ALLOWED = {
    "runtime/ray_internals.py",
    "runtime/pretended_gpus.py",
    "runtime/data_internals.py",
    "runtime/serve_internals.py",
    "runtime/serve_graph.py",
    "runtime/serve_handles.py",
    "runtime/serve_apart.py",
    "runtime/serve_copies.py",
    "runtime/serve_line.py",
    "executors/bridge/ray_internals.py",
    "gateway/serve_internals.py",
}
INTERNAL = re.compile(r"(?:from|import)\s+ray\.\S*(?:\._|\bv2\b)|ray\._private|ray\._raylet|global_worker")


def test_nothing_else_uses_what_ray_does_not_promise() -> None:
    root = Path(llmsched.__file__).parent
    users = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if INTERNAL.search(path.read_text(encoding="utf-8"))
    }
    assert users <= ALLOWED, users - ALLOWED


def test_ray_train_calls_back_when_a_run_has_its_controller() -> None:
    from ray.train.v2._internal.execution import callback

    from llmsched.runtime.ray_internals import TORCH, Watch

    started = inspect.signature(callback.ControllerCallback.after_controller_start).parameters
    assert list(started) == ["self", "train_run_context"]
    assert Watch.after_controller_start is not callback.ControllerCallback.after_controller_start
    assert TORCH.value == "torch"


def test_ray_train_starts_no_process_for_what_an_attempt_has_no_use_for() -> None:
    from llmsched.runtime.ray_internals import DataParallelTrainer, Trainer, Watch

    def callbacks_of(trainer: type[DataParallelTrainer]) -> list[type]:
        made = trainer(lambda: None, run_config=RunConfig(name="x", callbacks=[Watch("name", "namespace")]))
        return [type(one) for one in made._create_default_callbacks()]

    theirs, ours = callbacks_of(DataParallelTrainer), callbacks_of(Trainer)
    assert set(theirs) - set(ours) == set(Trainer.WITHOUT)
    assert Watch in ours


def test_who_only_watches_over_a_training_imports_no_torch() -> None:
    """Supervisors and Train's controllers did, for a class of devices that workers alone use: two seconds of a core
    each before a training's first step. And on workers torch was there before it was told how many threads it has."""
    program = "import sys, llmsched.runtime.train_attempt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", ["WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"])
def test_ray_train_names_want_of_room_as_we_know_it(name: str) -> None:
    from ray.train.v2._internal import exceptions

    from llmsched.runtime.ray_internals import is_no_capacity

    error = getattr(exceptions, name)
    assert issubclass(error, Exception)
    assert is_no_capacity(error.__new__(error))


def test_ray_makes_no_socket_with_a_longer_path_than_a_private_ray_leaves_room_for() -> None:
    import ray

    from llmsched.runtime.private_ray import _LONGEST_ROOT, _LONGEST_SOCKET

    modules = Path(ray.__file__).parent / "dashboard" / "modules"
    sources = "".join(path.read_text(encoding="utf-8") for path in modules.rglob("*.py"))
    names = re.findall(r"^class (\w+)\(SubprocessModule", sources, re.MULTILINE)
    assert max(map(len, names)) == len(_LONGEST_SOCKET.rpartition("dash_")[2]), names
    assert len("/tmp") <= _LONGEST_ROOT


def test_serve_takes_a_replica_s_actor_options_where_we_mark_them() -> None:
    program = """
import sys
from llmsched.runtime.serve_internals import mark_deployments
mark_deployments({"OWNER": "me"})
assert "ray.serve" not in sys.modules
from ray.serve._private import client
from ray.serve._private.config import ReplicaConfig
config = ReplicaConfig.create(lambda: None, ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"A": "1"}}})
import ray
ray.get_runtime_context = lambda: type("Here", (), {"get_job_id": lambda self: "01"})()
made = client.get_deploy_args("model", replica_config=config, deployment_config={})
told = ReplicaConfig.from_proto_bytes(made["replica_config_proto_bytes"], True).ray_actor_options
print(made["deployer_job_id"], told["runtime_env"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split(maxsplit=1) == ["01", "{'env_vars': {'A': '1', 'OWNER': 'me'}}\n"], done.stderr


def test_serve_s_controller_says_which_job_deployed_what() -> None:
    from ray.serve._private.controller import ServeController
    from ray.serve._private.deployment_info import DeploymentInfo

    assert callable(ServeController.list_deployments_internal)
    assert "deployer_job_id" in inspect.signature(DeploymentInfo).parameters


def test_ray_s_tables_tell_who_made_what() -> None:
    from ray.core.generated import gcs_pb2

    rows = {
        gcs_pb2.ActorTableData: (
            "owner_address serialized_runtime_env required_resources is_detached placement_group_id address job_id pid "
            "node_id ray_namespace function_descriptor"
        ),
        gcs_pb2.PlacementGroupTableData: "creator_actor_id creator_job_id bundles",
        gcs_pb2.JobTableData: "config",
    }
    for row, fields in rows.items():
        assert set(fields.split()) <= {one.name for one in row.DESCRIPTOR.fields}


def test_the_actor_that_runs_a_fit_has_the_name_that_we_look_for() -> None:
    from ray.train.v2._internal.execution.controller import TrainController

    from llmsched.runtime.ray_internals import TRAIN_CONTROLLER

    assert TrainController.__name__ == TRAIN_CONTROLLER


def test_ray_calls_what_a_variable_names_first_in_each_worker() -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook
    from ray._private.workers import default_worker

    from llmsched.runtime import containment

    name = containment.envs_of("a")[ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR]
    assert load_and_execute_setup_hook(name) is None, "it fails in no process, also in one without an owner"
    assert "load_and_execute_setup_hook(worker_process_setup_hook_key)" in Path(default_worker.__file__).read_text()


def test_ray_train_on_pretended_gpus_meets_by_gloo_and_computes_on_cpus_unless_it_is_told_another_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray.air._internal import device_manager
    from ray.train.torch import TorchConfig, config

    from llmsched.runtime import pretended_gpus

    met: list[str] = []

    class Workers:
        def get_resources_per_worker(self) -> dict[str, float]:
            return {"GPU": 1}

        def execute_single(self, rank: int, function: object) -> tuple[str, int]:
            return "127.0.0.1", 1

        def execute(self, function: object, **given: object) -> None: ...

        def execute_single_async(self, rank: int, function: object, backend: str, **given: object) -> None:
            met.append(backend)

        def __len__(self) -> int:
            return 1

    monkeypatch.setattr(config._TorchBackend, "on_start", config._TorchBackend.on_start)  # put back in the end
    monkeypatch.setattr(device_manager, "_torch_device_manager", None)
    monkeypatch.setattr(config.ray, "get", lambda futures: None)
    pretended_gpus.apply()
    for given in (TorchConfig(), TorchConfig(backend="nccl"), TorchConfig(backend="mpi")):
        given.backend_cls().on_start(Workers(), given)
    assert met == ["gloo", "gloo", "mpi"]
    assert type(device_manager.get_torch_device_manager_by_context()).__name__ == "CPUTorchDeviceManager"


def test_a_worker_begins_with_our_command_and_its_own_arguments_and_knows_its_raylet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So forked.py is told what to become, and finds who forks it."""
    from ray import _raylet
    from ray._private import ray_constants
    from ray._private.runtime_env import context
    from ray.core.generated.common_pb2 import Language

    begun: list[list[str]] = []
    monkeypatch.setattr(context.os, "execvp", lambda file, args: begun.append([file, *args]))
    made = context.RuntimeEnvContext(py_executable="python -I -S forked.py")
    made.exec_worker(["default_worker.py", "--worker-id=a b"], Language.PYTHON)
    assert begun == [["bash", "bash", "-c", "exec python -I -S forked.py default_worker.py '--worker-id=a b'"]]
    assert "RAY_RAYLET_PID" in Path(ray_constants.__file__).read_text(encoding="utf-8")
    assert callable(_raylet.setproctitle)
