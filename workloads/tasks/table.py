"""A row of the table, made real: the class of transformers, and the task that the training loop asks."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsched.data.tasks import KINDS
from workloads.sources import BadInput
from workloads.tasks.reads import Reader, TextAndImage, media_reader, text_reader

if TYPE_CHECKING:  # an endpoint needs nothing of what reads data sets
    from workloads.tasks.task import Task


def model_class(name: str) -> Any:
    """The Auto class of a task. It is imported here, as each takes its time."""
    import transformers

    return getattr(transformers, KINDS[name].auto)


def reader_of(name: str, folder: Path, uri: str, config: Any, max_length: int | None) -> Any:
    """What turns the input of task `name` into tensors for the model in `folder`: a reads.Reader. Raises BadInput."""
    if name == "image-text-to-text":
        from workloads.tasks.seeing import seeing_reader

        return seeing_reader(folder, uri, config, max_length)
    if KINDS[name].reads == ("text", "image"):
        image: Any = media_reader(folder, uri, config, "image", writes=False)
        return TextAndImage(text_reader(folder, uri, config, max_length), image)
    if (role := KINDS[name].reads[0]) in ("image", "audio"):
        return media_reader(folder, uri, config, role, writes=KINDS[name].target == "target")
    return text_reader(folder, uri, config, max_length)


def task_of(name: str, objective: str | None, reader: Reader, config: Any) -> Task:
    """What a fine-tuning of task `name` learns with a model of this config. Raises BadInput."""
    kind = KINDS.get(name)
    if kind is None or not kind.learns:
        trained = ", ".join(each for each, row in KINDS.items() if row.learns)
        raise BadInput(f"task {name!r} cannot be fine-tuned yet; expected one of {trained}")
    objective = objective or next(iter(kind.learns))
    if objective not in kind.learns:
        raise BadInput(f"objective {objective!r} does not fit task {name}; expected {', '.join(kind.learns)}")
    head = kind.auto.removeprefix("AutoModel")
    has_head = any(each.endswith(head) for each in config.architectures or ())
    learns = importlib.import_module(f"workloads.tasks.learns.{kind.learns[objective]}")
    made: Task = learns.Learns(name, reader, config.label2id if has_head else None)
    return made
