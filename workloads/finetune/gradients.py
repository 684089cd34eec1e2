"""One training step over all workers: exact, whatever their number.

Every worker sums the loss over its own rows, in micro-batches as large as memory allows. Gradients and weights are
summed over workers and divided once. Not DistributedDataParallel: that averages per worker and wants equal numbers of
backward passes, which uneven shares do not have.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist

from llmsched.runtime import progress
from workloads.finetune.dropout import RowChance, key_of
from workloads.finetune.settings import Settings
from workloads.tasks.reads import Batch, Encoded
from workloads.tasks.task import Task

_BUCKET = 8 << 20  # numbers summed over workers in one message: 32 MB of float32


def is_distributed() -> bool:
    return bool(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def sum_over_ranks(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Elementwise sums, the same on every rank."""
    if not is_distributed():
        return list(numbers)
    kind = torch.float32 if device.type == "mps" else torch.float64
    tensor = torch.tensor(numbers, dtype=kind, device=device)
    dist.all_reduce(tensor)
    return [float(number) for number in tensor.cpu()]


class Stepper:
    """Owns the optimizer. `params` are the trainable parameters by name, in the model's order; then those of `beside`,
    which are trained with it and are no part of it."""

    def __init__(
        self,
        model: Any,
        task: Task,
        settings: Settings,
        device: torch.device,
        beside: Mapping[str, torch.nn.Parameter] = MappingProxyType({}),
    ) -> None:
        self.model, self.task, self.settings, self.device = model, task, settings, device
        trained = {**dict(model.named_parameters()), **beside}
        self.params = {name: param for name, param in trained.items() if param.requires_grad}
        self.chance = RowChance(torch.zeros(1, dtype=torch.int64, device=device), 0)  # of the batch at hand
        self.most = settings.micro_batch_size or settings.global_batch_size
        half = torch.bfloat16 if settings.bf16 else torch.float16 if settings.fp16 else None
        self.data_s = self.compute_s = 0.0  # seconds of this rank, since whoever reads them set them to 0
        self.half = half if device.type == "cuda" else None
        self.scaler = torch.amp.GradScaler(enabled=self.half is torch.float16)
        decays = [param for param in self.params.values() if param.ndim >= 2]
        plain = [param for param in self.params.values() if param.ndim < 2]  # biases and norms
        self.optimizer = torch.optim.AdamW(
            [{"params": decays, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_epsilon,
        )
        if is_distributed():
            for param in self.params.values():
                dist.broadcast(param.data, src=0)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.half) if self.half else contextlib.nullcontext()

    def step(self, samples: Sequence[Encoded], keys: Sequence[int], shared: int, rate: float) -> tuple[float, float]:
        """One optimizer step at learning rate `rate` on this rank's samples (none is fine).

        All chance comes from `keys`, one a sample, and from `shared` for what belongs to none (dropout.key_of).

        Returns (mean loss, weight) of the whole step over all ranks.
        """
        begin = time.monotonic()
        drawn = sorted(zip(samples, keys, strict=True), key=lambda each: self.task.part_of(each[0]))
        keys = [key for _, key in drawn]
        prepared = [self.task.prepared(sample, key) for sample, key in drawn]
        ready = time.monotonic()
        sums = self._backward(prepared, keys, shared)
        self.data_s += ready - begin
        self.compute_s += time.monotonic() - ready  # before others are waited for; the loss is on the host by then
        loss, weight = sum_over_ranks(sums, self.device)
        self._sum_gradients()
        self.scaler.unscale_(self.optimizer)  # after the sum: one overflow anywhere skips the step everywhere
        for param in self.params.values():
            if param.grad is not None:
                param.grad.mul_(self.settings.global_batch_size / max(weight, 1.0))
        if self.settings.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(list(self.params.values()), self.settings.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss / max(weight, 1.0), weight

    def _backward(self, encoded: Sequence[Encoded], keys: Sequence[int], shared: int) -> tuple[float, float]:
        """(loss, weight) summed over `encoded`, gradients added up; with half the micro-batch when memory runs out."""
        while True:
            try:
                sums, done = [0.0, 0.0], 0
                for batch, rows in self.batches(encoded):
                    mine = [
                        key_of(key, part, -1) if part else key
                        for key, row in zip(keys[done : done + len(rows)], rows, strict=True)
                        for part in range(self.task.rows_of(row))
                    ]
                    done += len(rows)
                    self.chance = RowChance(torch.tensor(mine, device=self.device), shared)
                    with self.autocast(), self.chance:
                        score = self.task.score(self.model, batch, self.settings.label_smoothing_factor)
                    # A constant divisor keeps half-precision gradients in range; `step` puts the true weight in.
                    self.scaler.scale(score.loss / self.settings.global_batch_size).backward()
                    sums[0] += float(score.loss.detach())
                    sums[1] += score.weight
                return sums[0], sums[1]
            except torch.OutOfMemoryError:
                if self.most == 1:
                    raise
            self.most = max(1, min(self.most, len(encoded)) // 2)
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            progress.report(note=f"out of memory: micro-batches of {self.most} from now on")

    def batches(self, encoded: Sequence[Encoded]) -> Iterator[tuple[Batch, Sequence[Encoded]]]:
        """`encoded`, in order of its parts, cut into micro-batches on the device, each with its samples."""
        for _, part in itertools.groupby(encoded, self.task.part_of):
            yield from self._cut([*part])

    def _cut(self, encoded: Sequence[Encoded]) -> Iterator[tuple[Batch, Sequence[Encoded]]]:
        size = self.most if self.task.reader.batches else 1
        if self.settings.micro_batch_size is None:
            longest = max(self.task.reader.size(row) * self.task.rows_of(row) for row in encoded)
            size = max(1, min(size, self.task.at_once // longest))
        for at in range(0, len(encoded), size):
            part = encoded[at : at + size]
            yield {name: tensor.to(self.device) for name, tensor in self.task.collate(part).items()}, part

    def _sum_gradients(self) -> None:
        if not is_distributed():
            return
        has = sum_over_ranks([float(param.grad is not None) for param in self.params.values()], self.device)
        grads = []
        for param, ranks in zip(self.params.values(), has, strict=True):
            if not ranks:  # a layer that is left out this time; with one worker it is not touched either
                continue
            if param.grad is None:  # every rank must bring the same list, also one that had no rows
                param.grad = torch.zeros_like(param)
            grads.append(param.grad)
        bucket: list[torch.Tensor] = []
        for place, grad in enumerate(grads, 1):
            bucket.append(grad)
            if place == len(grads) or sum(each.numel() for each in bucket) >= _BUCKET:
                flat = torch.cat([each.reshape(-1) for each in bucket])
                dist.all_reduce(flat)
                for each, piece in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                    each.copy_(piece.view_as(each))
                bucket = []
