"""A row of the table, made real: the class of transformers, and the task that the training loop asks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llmsched.data.tasks import KINDS
from workloads import context_length
from workloads.sources import BadInput
from workloads.tasks.reads import Text

if TYPE_CHECKING:  # an endpoint needs nothing of what reads data sets
    from workloads.tasks.task import Task

_LONGEST_BY_DEFAULT = 1024  # tokens, where neither the spec nor the model sets a limit


def model_class(name: str) -> Any:
    """The Auto class of a task. It is imported here, as each takes its time."""
    import transformers

    return getattr(transformers, KINDS[name].auto)


def task_of(name: str, tokenizer: Any, config: Any, max_length: int | None) -> Task:
    """What a fine-tuning of task `name` learns with a model of this config. Raises BadInput."""
    kind = KINDS.get(name)
    if kind is None or kind.learns is None:
        trained = " or ".join(each for each, row in KINDS.items() if row.learns)
        raise BadInput(f"task {name!r} cannot be fine-tuned yet; expected {trained}")
    fits = context_length.longest(config, tokenizer) or _LONGEST_BY_DEFAULT
    reader = Text(tokenizer, min(max_length or fits, fits), getattr(config.get_text_config(), "vocab_size", None))
    head = kind.auto.removeprefix("AutoModel")
    has_head = any(each.endswith(head) for each in config.architectures or ())
    learns = importlib.import_module(f"workloads.tasks.learns.{kind.learns}")
    made: Task = learns.Learns(name, reader, config.label2id if has_head else None)
    return made
