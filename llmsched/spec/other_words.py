"""What other systems call it: the words of TrainingArguments, SkyPilot, Slurm and Kubernetes, and ours for them.

`validation.py` asks when a key is unknown. A word that means something in another section is led there; one that has no
counterpart is answered with what happens instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Ours(NamedTuple):
    """`path`: from the section in which the word stands, or from the top of the document. `note`: what goes there."""

    path: str
    note: str = ""


_GPUS = 'Write its kind and number: accelerators: "A100:1". llmsched nodes lists the kinds.'
_MICRO = 'That is what one worker takes at a time; a step learns from "train.global_batch_size".'
_GLOBAL = "That is what a step learns from, over all workers; how it is cut into parts is found out."
_SAVING = 'A time, such as "10m": the last checkpoint is what a run goes on from.'

OURS: dict[str, Ours] = {
    "num_workers": Ours("workers"),
    "workers": Ours("replicas"),
    "replicas": Ours("workers"),
    "num_nodes": Ours("workers"),
    "nodes": Ours("workers"),
    "size": Ours("workers"),
    "num_replicas": Ours("replicas"),
    "gpus": Ours("resources.accelerators", _GPUS),
    "num_gpus": Ours("resources.accelerators", _GPUS),
    "gpu": Ours("resources.accelerators", _GPUS),
    "accelerator": Ours("resources.accelerators"),
    "num_cpus": Ours("resources.cpus"),
    "env": Ours("envs"),
    "env_vars": Ours("envs"),
    "working_dir": Ours("workdir"),
    "runtime_env": Ours("environment", "That takes pip; env_vars are envs:, working_dir is workdir:. No container."),
    "file_mounts": Ours("workdir", "That folder is packed and goes along; data may also be s3:// or hf://."),
    "depends_on": Ours("after"),
    "time_limit": Ours("max_runtime"),
    "run": Ours("task.run", 'A list of words: ["bash", "-c", "..."] for lines of a shell.'),
    "command": Ours("task.run", 'A list of words: ["bash", "-c", "..."] for lines of a shell.'),
    "setup": Ours("task.setup", 'A list of words: ["bash", "-c", "..."] for lines of a shell.'),
    "spot": Ours("resources.use_spot"),
    "use_spot": Ours("resources.use_spot"),
    "region": Ours("placement.region"),
    "image_id": Ours("environment.image"),
    "image": Ours("environment.image"),
    "graceful_shutdown_timeout_s": Ours("drain_timeout"),
    "model_name_or_path": Ours("train.base_model"),
    "lr": Ours("learning_rate"),
    "epochs": Ours("num_train_epochs"),
    "rank": Ours("r"),
    "alpha": Ours("lora_alpha"),
    "dropout": Ours("lora_dropout"),
    "batch_size": Ours("train.global_batch_size", _GLOBAL),
    "per_device_train_batch_size": Ours("train.micro_batch_size", _MICRO),
    "per_gpu_train_batch_size": Ours("train.micro_batch_size", _MICRO),
    "gradient_accumulation_steps": Ours("train.global_batch_size", _GLOBAL),
    "max_seq_length": Ours("train.max_length"),
    "max_seq_len": Ours("train.max_length"),
    "save_steps": Ours("checkpoint.every", _SAVING),
    "save_strategy": Ours("checkpoint.every", _SAVING),
    "save_total_limit": Ours("checkpoint.keep"),
    "resume_from_checkpoint": Ours("checkpoint.resume", 'It is "auto": a run goes on from its last checkpoint.'),
    "eval_steps": Ours("train.evaluation", 'Such as {on: test, metrics: [loss], every: 100}; "every" is in steps.'),
    "eval_strategy": Ours("train.evaluation", 'Such as {on: test, metrics: [loss], every: 100}; "every" is in steps.'),
    "run_name": Ours("name"),
    "trials": Ours("samples", "So often each point of the grids is tried."),
    "num_samples": Ours("samples"),
    "max_concurrent_trials": Ours("concurrent"),
    "search_alg": Ours("searcher"),
    "param_space": Ours("space"),
}

NOTHING: dict[str, str] = {
    "output_dir": "Leave it out: results are kept; llmsched models pull NAME DIR brings one.",
    "push_to_hub": "Leave it out: llmsched models pull NAME DIR brings the result, which you may push.",
    "cloud": "Leave it out: work runs on the nodes of this cluster, which llmsched nodes lists.",
    "infra": "Leave it out: work runs on the nodes of this cluster, which llmsched nodes lists.",
    "zone": "Leave it out, or write topology: {required: zone} for work that must be in one zone.",
    "instance_type": "Leave it out: say what it needs, in resources.accelerators, cpus and memory.",
    "disk_size": "Leave it out: disks are the nodes' own.",
    "disk_tier": "Leave it out: disks are the nodes' own.",
    "autostop": "Leave it out: what a workload held is free when it ends.",
    "ports": "Leave it out; what answers requests is kind: serve.",
}

_SKYPILOT = ("num_nodes", "run", "setup", "file_mounts")
_SKYPILOT_RESOURCES = ("cloud", "infra", "instance_type", "disk_size", "image_id", "any_of", "ordered", "spot_recovery")


def is_skypilot(data: dict[str, Any]) -> bool:
    """Whether a document without a kind is a task of SkyPilot's."""
    resources = data.get("resources")
    inside = resources if isinstance(resources, dict) else {}
    return any(key in data for key in _SKYPILOT) or any(key in inside for key in _SKYPILOT_RESOURCES)
