"""The numbers of a `train` section, and the learning rate as a function of the step.

Names are TrainingArguments'. The schedule has no state: whoever knows the step knows the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workloads.sources import BadInput

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class Settings:
    """Defaults are the spec's. Batch sizes count samples; `micro_batch_size` (a worker's) None: chosen by length."""

    global_batch_size: int = 16
    micro_batch_size: int | None = None
    max_length: int | None = None  # tokens
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    max_steps: int = -1
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    lr_scheduler_type: str = "linear"
    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    label_smoothing_factor: float = 0.0
    logging_steps: int = 10
    seed: int = 42
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    report_to: tuple[str, ...] = ()

    @classmethod
    def of(cls, train: Mapping[str, Any]) -> Settings:
        """Raises BadInput for a name or a value our loop does not honour."""
        asked = (train.get("training_args") or {}).items()
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in asked if value is not None
        }
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            raise BadInput(f"training_args: {unknown[0]!r} is not supported")
        micro = train.get("micro_batch_size", "auto")
        settings = cls(
            global_batch_size=int(train.get("global_batch_size") or cls.global_batch_size),
            micro_batch_size=None if micro in (None, "auto") else int(micro),
            max_length=train.get("max_length"),
            **given,
        )
        if settings.lr_scheduler_type not in SCHEDULES:
            raise BadInput(f"lr_scheduler_type {settings.lr_scheduler_type!r}: expected one of {', '.join(SCHEDULES)}")
        return settings

    def total_steps(self, steps_per_epoch: int) -> int:
        """`max_steps` unless that is -1, else what the epochs take."""
        return self.max_steps if self.max_steps >= 0 else max(1, math.ceil(self.num_train_epochs * steps_per_epoch))

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of `step` (from 1), exactly as transformers' schedules of these names have it."""
        warmup = self.warmup_steps or math.ceil(self.warmup_ratio * total_steps)
        done = step - 1
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        if done < warmup:
            return self.learning_rate * done / warmup
        if self.lr_scheduler_type == "constant_with_warmup":
            return self.learning_rate
        way = (done - warmup) / max(1, total_steps - warmup)
        if self.lr_scheduler_type == "linear":
            return self.learning_rate * max(0.0, 1.0 - way)
        return self.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * way)))
