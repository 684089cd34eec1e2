"""Models that stand beside the one that is trained: the teacher whose answers it learns, the reference that it is
measured against. Neither is trained, and no checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from workloads.adapters import whole_model
from workloads.finetune.models import first_line, load_config
from workloads.sources import BadInput
from workloads.tasks.table import model_class, reader_of
from workloads.tasks.task import Task
from workloads.tasks.teacher import Teacher

if TYPE_CHECKING:  # a worker loads the module of its own objective alone
    from workloads.tasks.learns import preference


def stand_beside(
    task: Task, train: Mapping[str, Any], base: Path, inputs: Mapping[str, str], device: torch.device
) -> None:
    """Give the task what its objective wants beside the model. Raises BadInput."""
    if train.get("teacher") is not None:
        task.teacher = _teacher_of(task, train, inputs, device)
    if train.get("objective") == "dpo":
        pairs = cast("preference.Learns", task)
        pairs.beta = float((train.get("dpo") or {}).get("beta", pairs.beta))
        if (train.get("method") or "full") == "full":  # an adapter is switched off instead
            pairs.reference = _at_rest(task.name, base, train["base_model"]).to(device)


def _teacher_of(task: Task, train: Mapping[str, Any], inputs: Mapping[str, str], device: torch.device) -> Teacher:
    uri = train["teacher"]
    folder = whole_model(uri, inputs)
    config, asked = load_config(folder, uri), train.get("distill") or {}
    own: Any = reader_of(task.name, folder, uri, config, train.get("max_length"))
    if task.name == "causal-lm":  # each token is compared, so both must have the same
        if own.processor.get_vocab() != task.reader.processor.get_vocab():
            raise BadInput(f"teacher {uri}: its tokenizer is not that of the base model, so their tokens differ")
        own = None
    elif len(config.id2label) < 2:
        raise BadInput(f"teacher {uri}: it says a number, not one of several labels")
    model = _at_rest(task.name, folder, uri).to(device)
    return Teacher(model, own, float(asked.get("temperature", 2.0)), float(asked.get("alpha", 0.5)))


def _at_rest(task: str, folder: Path, uri: str) -> Any:
    """The whole model in `folder`, not to be trained. Raises BadInput."""
    try:
        model, info = model_class(task).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:
        raise BadInput(f"model {uri}: the weights in {folder} cannot be loaded: {first_line(error)}") from error
    if missing := info["missing_keys"]:
        raise BadInput(f"model {uri}: it is not trained for {task}: it lacks {len(missing)} weights ({min(missing)})")
    return model.eval().requires_grad_(False)
