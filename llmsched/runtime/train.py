"""What one Ray Train worker does: find out who it is, catch its output, run the loop, say how it ended.

The loop is ours (`workloads.finetune.loop:run`) for a base model, or the user's `module:function`, which may use Ray
Train's own API (`ray_train.py`). `TorchGroup` joins the workers through torch.distributed; torch is imported on the
workers only, where the GPUs are, which also decides between NCCL and Gloo. Start reading at `work`.
"""

from __future__ import annotations

import inspect
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from llmsched.runtime import (
    calls_door,
    containment,
    context,
    elastic,
    environment,
    exceptions,
    execute,
    exits,
    failures,
    nested,
    outputs,
    over_memory,
    packages,
    progress,
    pulse,
    ray_train,
    redaction,
)
from llmsched.runtime.link import ActorLink
from llmsched.runtime.ray_internals import TORCH, answer_with, use_cpu

OUR_LOOP = "workloads.finetune.loop:run"
_LEAVE_WITHIN_S = 5.0


class TorchGroup(BackendConfig):  # type: ignore[misc]
    """Every worker in one torch.distributed group: NCCL where the workers see CUDA, else Gloo."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TorchGroupBackend

    @property
    def framework(self) -> Any:
        return TORCH


class _TorchGroupBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # NCCL's direct paths want every GPU of the node visible

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, _open_meeting_point)
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _join, address, port, rank, size) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        # A rank that is stuck in a collective cannot leave politely; it is ended by its actor's end.
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=_LEAVE_WITHIN_S)


_NO_CPUS = 0.001  # what a member has that asked for none
_meeting_point: socket.socket | None = None  # rank 0's, listening from before its port is told to anybody


def _open_meeting_point() -> tuple[str, int]:
    global _meeting_point
    address = ray.util.get_node_ip_address()
    _meeting_point = socket.create_server((address, 0))
    return address, _meeting_point.getsockname()[1]


def _store(address: str, port: int, rank: int, size: int) -> Any:
    """Where the ranks meet. Rank 0 serves it on the very socket whose port it told: nobody can take that meanwhile."""
    import torch.distributed as dist

    global _meeting_point
    if rank != 0 or _meeting_point is None:
        return dist.TCPStore(address, port, size, is_master=False)
    held, _meeting_point = _meeting_point, None
    return dist.TCPStore(address, port, size, is_master=True, wait_for_workers=False, master_listen_fd=held.detach())


def _join(address: str, port: int, rank: int, size: int) -> None:
    here = ray.train.get_context()
    local_rank, local_size = here.get_local_rank(), here.get_local_world_size()
    threads = _threads(local_size, ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))
    os.environ.update(environment.thread_envs(threads))  # before torch is imported, so that its pools obey
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    os.environ.update(
        {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(local_size),
            "NODE_RANK": str(here.get_node_rank()),
        }
    )
    backend = "gloo"
    if torch.cuda.is_available():
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
        backend = "nccl"
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        if not environment.has_accelerator():
            use_cpu()
    dist.init_process_group(backend, store=_store(address, port, rank, size), rank=rank, world_size=size)


def _threads(workers_here: int, cpus: float) -> int:
    """As many as the CPUs that the worker asked for, as with all other work: others have the rest, and threads that
    take turns on one CPU wait for each other at each layer. Who asked for none has a share of the machine."""
    share = environment.cpu_share(workers_here)
    return max(1, min(int(cpus), share)) if cpus > _NO_CPUS else share


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def work(config: dict[str, str]) -> None:
    """Run one rank. `config` names the attempt's supervisor, which hands out the order: what Ray Train keeps of a
    run's configuration is shown on its dashboard, and an order may hold secrets."""
    supervisor = ray.get_actor(config["attempt"], namespace=config["namespace"])
    order = json.loads(ray.get(supervisor.launch_order.remote()))
    here = ray.train.get_context()
    rank = here.get_world_rank()
    redaction.hide(order)
    os.environ.update(calls_door.envs_of(order) | order["envs"])
    folder = environment.scratch(config["attempt"])
    code: Path | None = None
    log = environment.LogFile(order["storage"], f"{order['gang']}/{order['attempt']}/logs/{rank}.log")
    who = context.Context(
        name=order["spec"].get("name", order["workload"]),
        workload=order["workload"],
        gang=order["gang"],
        attempt=order["attempt"],
        epoch=order["epoch"],
        rank=rank,
        world_size=here.get_world_size(),
        local_dir=folder,
        spec=order["spec"],
        storage=order["storage"],
        inputs=order["inputs"],
        supervisor=ActorLink(supervisor),
    )
    guard = containment.guard_of(order, rank, is_here=True, on_memory=partial(over_memory.tell, supervisor, rank))
    containment.join_owner(ray.get_runtime_context().gcs_address)
    try:
        with environment.crashes_to(log), environment.output_to(log), context.enter(who):
            try:
                environment.check_version(order)
                if order["workdir"]:
                    code = environment.unpack(order["workdir"], nested.place_for_code())
                if (extra := packages.provide(order, code, sys.stdout.write)) is not None:
                    extra.enter()
                    nested.offer(extra)
                if code is None and order["spec"]["train"].get("loop"):
                    code = nested.place_for_code()  # for what it writes
                    code.mkdir()
                if code is not None:
                    os.chdir(code)
                    sys.path.insert(0, str(code))
                here_id = ray.get_runtime_context().get_node_id()
                surroundings = execute.surroundings()
                # Known before code of users runs, which may start others: where nobody works, nobody has left any.
                ray.get(supervisor.works_in.remote(rank, here_id, str(code or folder), surroundings, os.getpid()))
                exits.tell(supervisor, rank)
                with pulse.beating(lambda said: supervisor.beat.remote(rank, said)):
                    _run_loop(order, code, supervisor, rank)
            except elastic.Stopped as stopped:
                progress.flush()
                ray.get(supervisor.stopped.remote(stopped.step))
            except BaseException as error:
                if failures.is_good_exit(error):
                    _came_to_an_end(supervisor, rank)
                    return
                text = " ".join(filter(None, (exceptions.words(error, code), failures.advice(error))))
                if isinstance(error, environment.UserError):
                    print(text, file=sys.stderr)
                else:
                    exceptions.show(error)
                progress.flush()
                ray.get(supervisor.failed.remote(rank, text, failures.event_of(error)))
                # What is raised is logged and passed on by Ray: with all that it says, when it is not in our words.
                raise exceptions.WorkError(text) from None
            else:
                _came_to_an_end(supervisor, rank)
            finally:
                ended, left = guard.close()
                if ended or left:
                    print(f"[llmsched] ended what it left running: {'; '.join([*ended, *left])}")
    finally:
        environment.drop(folder)
        nested.drop()


def _came_to_an_end(supervisor: Any, rank: int) -> None:
    """Said by every rank: what nobody said has not succeeded. A loop that was told to leave and returned has left."""
    progress.flush()
    if elastic.has_left():
        ray.get(supervisor.stopped.remote(None))
    else:
        ray.get(supervisor.finished.remote(rank))


def _run_loop(order: dict[str, Any], folder: Path | None, supervisor: Any, rank: int) -> None:
    train = order["spec"]["train"]
    if folder is None or not train.get("loop"):
        loop = environment.load_entry(OUR_LOOP, "train.loop")
        if rank == 0:
            ray.get(supervisor.begin.remote())
        loop()
        return
    api = ray_train.LoopApi()
    answer_with(api)
    loop = environment.load_entry(train["loop"], "train.loop", or_one=ray_train.is_trainer)
    config = train.get("config") or {}
    written = outputs.Outputs(order, folder)
    if rank == 0:
        ray.get(supervisor.begin.remote())
    has_succeeded = False
    try:
        if not ray_train.is_trainer(loop):
            loop = loop(config) if inspect.signature(loop).parameters else loop()
        if ray_train.is_trainer(loop):  # it hands over what it would have fitted
            api.hand_over(loop, config)()
        api.keep_result()
        has_succeeded = not elastic.has_left()
    finally:
        api.keep_metrics()
        if rank == 0:  # each rank has a folder of its own
            _keep_outputs(written, is_result=has_succeeded)


def _keep_outputs(written: outputs.Outputs, *, is_result: bool) -> None:
    if why := written.keep(0):
        print(f"[llmsched] {why}", flush=True)
    if is_result:
        written.become_the_result(context.current(), 1)
    else:
        written.publish(1)
